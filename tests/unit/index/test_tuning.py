"""The search effort of an index that serves is tuned while documents are written anew and deleted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.index import tuning
from clipflow.index.build import build
from clipflow.index.choice import Wanted, choose
from clipflow.index.layered import LayeredIndex
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

COUNT, DIMENSION, RECALL = 3000, 16, 0.9


def unit(seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def records(rows: NDArray[np.float32], numbers: range) -> list[Record]:
    return [Record(f'{n}', '', '', '{}', rows[n]) for n in numbers]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, 'abc', 'm')
    store.upsert(records(unit(1), range(COUNT)))
    yield store
    store.close()


def built(store: Store, kind: str, watch: tuning.Watch = lambda task, done: None) -> LayeredIndex:
    choice = choose(Wanted(kind), COUNT, DIMENSION)
    return build(store, choice, np.empty((0, DIMENSION), np.float32), RECALL, watch)


@pytest.mark.parametrize('kind', ['HNSW16', 'IVF16,Flat', 'IVF16,SQ8'])
def test_what_is_written_anew_meanwhile_does_not_count_as_missed(kind: str, store: Store) -> None:
    index = built(store, kind)
    assert index.main is not None
    effort = index.main.effort

    def write(task: str, done: float) -> None:
        third = range(0, COUNT, 3)
        before = store.last_sequence()
        store.upsert(records(unit(2), third))
        for keys, rows in store.vectors_since(before):
            index.put(keys, rows)

    tuning.retune(store, index, np.empty((0, DIMENSION), np.float32), RECALL, write)
    assert index.main.recall >= RECALL
    assert index.main.effort <= 4 * effort


def test_what_is_deleted_while_an_index_is_built_does_not_count_as_missed(store: Store) -> None:
    def delete(task: str, done: float) -> None:
        if task == 'tuning':
            store.delete([f'{n}' for n in range(0, COUNT, 3)])

    index = built(store, 'IVF16,SQ8', delete)
    assert index.main is not None
    assert index.main.recall >= RECALL


def test_where_all_is_gone_nothing_is_missed(store: Store) -> None:
    index = built(store, 'HNSW16')
    assert index.main is not None
    tuning.retune(
        store, index, np.empty((0, DIMENSION), np.float32), RECALL, lambda task, done: index.remove(store.keys())
    )
    assert index.main.recall == 1

"""A filtered search sees the index as of one moment, whatever is written or merged while it begins."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.index import layered
from clipflow.index.approximate import Approximate, Turns
from clipflow.index.layered import LayeredIndex
from clipflow.index.slots import SlotTable

DIMENSION = 16
COUNT = 300
KEYS = np.arange(1, COUNT + 1)


@pytest.fixture
def rows() -> NDArray[np.float32]:
    """Unit vectors, [COUNT, DIMENSION]."""
    found = np.random.default_rng(3).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize('subset', [0, COUNT], ids=['among them', 'one by one'])
def test_documents_that_are_written_anew_meanwhile_are_found(
    subset: int, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layered, 'SUBSET', subset)
    index = LayeredIndex(DIMENSION)
    index.put(KEYS, rows)
    looked_up = SlotTable.slots

    def write_first(table: SlotTable, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        monkeypatch.setattr(SlotTable, 'slots', looked_up)
        index.put(KEYS[:5], rows[:5])
        return looked_up(table, keys)

    monkeypatch.setattr(SlotTable, 'slots', write_first)
    assert sorted(index.search(rows[:1], COUNT, KEYS)[0][0].tolist()) == KEYS.tolist()
    assert len(index.table.view.keys) > COUNT, 'nothing was written'


@pytest.mark.parametrize('kind', ['IVF4,Flat', 'HNSW8', 'IVF4_HNSW8,Flat'])
def test_documents_that_are_merged_meanwhile_are_found(
    kind: str, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layered, 'SUBSET_STORED', 0)
    main = Approximate.create(kind, DIMENSION)
    main.train(rows)
    main.effort = main.efforts[-1]
    index = LayeredIndex(DIMENSION, main=main)
    index.fill(KEYS[:200], rows[:200])
    index.put(KEYS[200:], rows[200:])
    reading = Turns.reading

    @contextmanager
    def merge_first(turns: Turns) -> Iterator[None]:
        monkeypatch.setattr(Turns, 'reading', reading)
        index.merge(COUNT)
        with reading(turns):
            yield

    monkeypatch.setattr(Turns, 'reading', merge_first)
    found = index.search(rows[:1], 100, KEYS[::2])[0][0]
    assert len(main) == COUNT, 'nothing was merged'
    best = KEYS[::2][np.argsort(-(rows[::2] @ rows[0]))[:100]]
    assert set(found.tolist()) >= set(best.tolist())

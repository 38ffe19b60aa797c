"""Searches beside writes, merges and new builds: every one sees each document once, in one of its versions."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.filters import compile_filter
from clipflow.index import choice, flat, keeper, layered, snapshot
from clipflow.index.choice import Wanted
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

DIMENSION = 16
COUNT = 400
SECONDS = 3.0
MOST_SECONDS = 60.0


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('kind', ['flat', 'ivf', 'hnsw', 'IVF4,SQ8'])
def test_every_search_sees_every_document_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So small that merging and building never end.
    monkeypatch.setattr(choice, 'LEAST', 100)
    monkeypatch.setattr(keeper, 'MERGE_AT', 64)
    monkeypatch.setattr(keeper, 'DEAD_LEAST', 50)
    for module in (flat, layered, snapshot):
        monkeypatch.setattr(module, 'BLOCK', 128)
    rng = np.random.default_rng(5)
    versions = unit(rng.normal(size=(2 * COUNT, DIMENSION))).reshape(2, COUNT, DIMENSION)
    live = LiveIndex(Store(tmp_path, 'abc', 'm'), Wanted(kind))

    def write(numbers: list[int], version: int) -> None:
        tags = json.dumps({'version': version})
        live.upsert([Record(f'{n}', '', '', tags, versions[version, n]) for n in numbers])

    write(list(range(COUNT)), 0)
    everything = sorted(f'{n}' for n in range(COUNT))
    every, second = compile_filter({'version': {'$gte': 0}}), compile_filter({'version': 1})
    ended = threading.Event()
    faults: list[str] = []
    built: set[int] = set()
    searched = [0, 0]

    def search(worker: int) -> None:
        own = np.random.default_rng(worker)
        while not ended.is_set() and not faults:
            query = unit(own.normal(size=(1, DIMENSION)))
            for matching in (None, every):
                hits = live.search(query, Query(COUNT + 10, matching))[0]
                if sorted(hit.record.id for hit in hits) != everything:
                    faults.append(f'{len(hits)} results, {len({hit.record.id for hit in hits})} different ones')
            for hit in hits:
                version = json.loads(hit.record.tags)['version']
                score = float(versions[version, int(hit.record.id)] @ query[0])
                if abs(hit.score - score) > 2e-5:
                    faults.append(f'{hit.record.id} has the score {hit.score}, its version {version} has {score}')
            for hit in live.search(query, Query(10, second))[0]:
                if json.loads(hit.record.tags)['version'] != 1:
                    faults.append(f'{hit.record.id} does not pass the filter')
            searched[worker] += 1

    threads = [threading.Thread(target=search, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    written, begun = 0, time.monotonic()

    def much() -> bool:
        return min(searched) > 20 and written > 20 and len(built) > 1

    while not faults and (time.monotonic() < begun + SECONDS or not much()) and time.monotonic() < begun + MOST_SECONDS:
        write(rng.choice(COUNT, 20, replace=False).tolist(), int(rng.integers(0, 2)))
        written += 1
        built.add(id(live.keeper.index))
    ended.set()
    for thread in threads:
        thread.join()
    status = live.status()
    live.close()
    assert faults == []
    assert status['warnings'] == []
    # It was worth the name: there was much of everything.
    assert much(), (searched, written, len(built))


def test_as_many_are_found_as_asked_for_while_others_are_deleted_and_come_back(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(6).normal(size=(3000, DIMENSION)))
    live = LiveIndex(Store(tmp_path, 'abc', 'm'), Wanted('flat'))

    def write(numbers: list[int]) -> None:
        live.upsert([Record(f'{n}', '', '', json.dumps({'group': n % 50}), rows[n]) for n in numbers])

    write(list(range(len(rows))))
    ended = threading.Event()
    lengths: list[tuple[int, int]] = []

    def search() -> None:
        own = np.random.default_rng(1)
        while not ended.is_set():
            query = unit(own.normal(size=(1, DIMENSION)))
            grouped = Query(50, group_by='group')
            lengths.append((len(live.search(query, Query(200))[0]), len(live.search(query, grouped)[0])))

    thread = threading.Thread(target=search)
    thread.start()
    turn, begun = 0, time.monotonic()
    while turn < 40 or (len(lengths) <= 20 and time.monotonic() < begun + MOST_SECONDS):
        some = np.random.default_rng(turn).choice(len(rows), 200, replace=False).tolist()
        live.delete([f'{n}' for n in some])
        write(some)
        turn += 1
    ended.set()
    thread.join()
    live.close()
    assert len(lengths) > 20
    assert set(lengths) == {(200, 50)}

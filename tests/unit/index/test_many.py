"""Very many documents go in one call: a million in the long form."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.filters import Filter, compile_filter
from clipflow.index.live import LiveIndex, Query
from clipflow.store import reading
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from forms import LONG

COUNT = 1_000_000 if LONG else 20_000
"""Of those that are deleted."""
BLOCK = 10_000
DIMENSION = 8
KEPT = frozenset(range(0, COUNT, COUNT // 10))
ALL = range(COUNT + len(KEPT))


def opened(folder: Path) -> LiveIndex:
    return LiveIndex(Store(folder, 'abc', 'm'))


def fill(live: LiveIndex) -> NDArray[np.float32]:
    """Store all, in blocks; returns the vectors."""
    vectors = np.random.default_rng(0).normal(size=(len(ALL), DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for start in ALL[::BLOCK]:
        some = ALL[start : start + BLOCK]
        tags = ('{"stays": true}' if n in KEPT else '{"stays": false}' for n in some)
        live.upsert([Record(f'{n}', '', '', tag, vectors[n]) for n, tag in zip(some, tags, strict=True)])
    assert len(live) == live.store.count() == len(ALL)
    return vectors


def assert_only_the_kept_are_there(live: LiveIndex, vectors: NDArray[np.float32]) -> None:
    """In the database, and in searches that would look at more."""
    assert len(live) == live.store.count() == len(KEPT)
    records = live.store.by_keys(live.store.keys().tolist())
    assert {record.id for record in records.values()} == {f'{n}' for n in KEPT}
    # Beside some that went, and beside one that stayed.
    asked = vectors[[1, COUNT // 2 + 1, COUNT - 1, max(KEPT)]]
    for query, hits in zip(asked, live.search(asked, Query(1000)), strict=True):
        expected = sorted(KEPT, key=lambda n: -float(vectors[n] @ query))
        assert [hit.record.id for hit in hits] == [f'{n}' for n in expected]


@pytest.mark.parametrize('way', ['ids', 'filter'])
def test_a_million_documents_are_deleted_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    # So that the short form too takes more variables than one statement of SQL may have.
    monkeypatch.setattr(reading, '_VARIABLES', min(reading._VARIABLES, COUNT // 5))
    ids = [f'{n}' for n in ALL if n not in KEPT] if way == 'ids' else []
    matching: Filter | None = compile_filter({'stays': False}) if way == 'filter' else None
    live = opened(tmp_path)
    try:
        vectors = fill(live)
        assert live.delete(ids, matching) == COUNT
        assert_only_the_kept_are_there(live, vectors)
        assert live.delete(ids, matching) == 0
    finally:
        live.close()
    again = opened(tmp_path)
    try:
        assert_only_the_kept_are_there(again, vectors)
    finally:
        again.close()

"""What an indexer asks of its index, without a process around it."""

import asyncio
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from docarray import Document, DocumentArray

from clipflow import ROOT, work
from clipflow.border.indexing import Indexing
from clipflow.errors import InvalidFilter
from clipflow.filters import compile_filter
from clipflow.index.live import LiveIndex, Query
from clipflow.settings import IndexerSettings
from clipflow.store import connection
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

VECTOR = np.array([1, 0], dtype=np.float32)


class Indexer(Indexing):
    def __init__(self, index: LiveIndex, **_: Any) -> None:
        self._index = index


@pytest.mark.parametrize('group_by', [None, 'g'])
def test_a_pattern_has_its_time_once_for_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_by: str | None
) -> None:
    index = LiveIndex(Store(tmp_path / '0', 'abc', 'm'))
    index.upsert([Record(f'{n}', '', '', f'{{"t": "{"a" * 22}!"}}', VECTOR) for n in range(2)])
    clock = iter(range(0, 1000, 3))  # a document takes three seconds of it
    monkeypatch.setattr(connection, 'time', SimpleNamespace(thread_time=lambda: next(clock)))
    # Enough to select the two, and too little to look at both again.
    monkeypatch.setattr(connection, 'REGEX_SECONDS', 8.0)
    query = Query(2, compile_filter({'t': {'$regex': '^(a|aa)+$|!$'}}), group_by=group_by)
    try:
        assert index.search(VECTOR[None], query)[0]
        with pytest.raises(InvalidFilter, match='too long'):
            Indexer(index)._nearest(VECTOR[None], query)
        assert len(Indexer(index)._nearest(VECTOR[None], Query(2))[0]) == 2
    finally:
        index.close()


@pytest.mark.parametrize('change', ['upsert', 'delete', 'clear', 'snapshot'])
def test_on_one_core_a_search_does_not_wait_for_what_changes_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / 'executors' / 'indexer')
    from vector_indexer import VectorIndexer

    monkeypatch.setattr(work, 'cores', lambda: 1)
    searched, begun = threading.Event(), threading.Event()
    indexer = VectorIndexer.__new__(VectorIndexer)
    indexer.settings = IndexerSettings(workspace=tmp_path)
    indexer.spec = SimpleNamespace(fingerprint='abc', name='m', dimension=2)
    indexer.runtime_args = SimpleNamespace()
    indexer.log = logging.getLogger('test')
    indexer.open()
    indexer._index.upsert([Record('a', '', '', '{}', VECTOR)])

    def slow(*_: Any, **__: Any) -> Any:
        begun.set()
        searched.wait(60)
        return {} if change == 'snapshot' else 0

    monkeypatch.setattr(indexer._index, change, slow)
    call = {'upsert': indexer.index}.get(change) or getattr(indexer, change)
    doc = Document(id='b', embedding=VECTOR, tags={'__model__': 'abc'})

    async def both() -> DocumentArray:
        changing = asyncio.create_task(call(DocumentArray([Document(doc)]), parameters={}))
        await asyncio.to_thread(begun.wait, 60)
        query = DocumentArray([Document(doc)])
        try:
            await asyncio.wait_for(indexer.search(query, parameters={}), 20)
        finally:
            searched.set()
        await changing
        return query

    try:
        assert [match.id for match in asyncio.run(both())[0].matches] == ['a']
    finally:
        indexer.close()

"""The index over Milvus answers as the one over SQLite and FAISS does, and keeps what it has acknowledged.

It needs pymilvus and Milvus Lite, which cannot live beside the checkout's pins: `tests/servers/test_milvus.py` runs
this file in an environment that has them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.stateful import rule

pytest.importorskip('pymilvus', reason='it has an environment of its own: tests/servers/test_milvus.py runs this there')

from clipflow import ROOT
from clipflow.errors import ClipflowError, Conflict, DimensionMismatch, InvalidParameter, ModelMismatch, NotFound
from clipflow.filters import compile_filter as compile_sql
from clipflow.index.live import LiveIndex, Query
from clipflow.milvus import index as milvus_index
from clipflow.milvus.collection import Collection
from clipflow.milvus.filters import compile_filter
from clipflow.milvus.index import MilvusIndex
from clipflow.milvus.rows import key_of
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from unit.milvus.test_filters import numbers
from unit.test_filters import QUERIES, ROWS, oracle

from .test_index import LiveMachine, unit

WEIRD = ['a"b', "it's", 'a\\', '\\"', 'ä', '猫', 'a\nb', '\r', '\x01', '{x}', '%', '" or id >= "', ' ', 'x' * 512]
WRITER = """
import sys
import numpy as np
from clipflow.milvus.collection import Collection
from clipflow.milvus.index import MilvusIndex
from clipflow.store.reading import Record
index = MilvusIndex(Collection(sys.argv[1], 'abc', kind='FLAT'))
vector = np.array([1, 0, 0], np.float32)
for n in range(10_000):
    index.upsert([Record(f'{n}', '', '', '{"n": 1}', vector), Record(f'gone {n}', '', '', '{}', vector)])
    index.delete([f'gone {n}'])
    index.store.merge_tags([(f'{n}', '{"n": 2}')])
    print(n, flush=True)
"""


def opened(folder: Path, fingerprint: str = 'abc') -> MilvusIndex:
    return MilvusIndex(Collection(str(folder / 'milvus.db'), fingerprint, kind='FLAT'))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[MilvusIndex]:
    found = opened(tmp_path)
    yield found
    found.close()


def record(identifier: str, tags: dict[str, Any] | None = None, vector: tuple[float, ...] = (1.0, 0.0, 0.0)) -> Record:
    return Record(identifier, f'of {identifier}', 'uri', json.dumps(tags or {}), unit(vector), b'webp')


class MilvusMachine(LiveMachine):
    """Documents in Milvus Lite beside a dictionary of ids."""

    compiled = staticmethod(compile_filter)

    def open(self) -> None:
        self.live = opened(Path(self.folder.name))

    @rule()
    def snapshot(self) -> None:
        with pytest.raises(NotFound):
            self.live.snapshot()


TestMilvus = MilvusMachine.TestCase
TestMilvus.settings = settings(
    max_examples=100,
    phases=[Phase.reuse, Phase.generate],  # Milvus is too slow to look for the shortest example
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_filter_passes_what_the_language_says(index: MilvusIndex) -> None:
    @given(QUERIES, ROWS)
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def check(query: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        assume('$regex' not in str(query) and 'inf' not in str(query))
        assume(all(abs(number) <= 2**53 or isinstance(number, float) for number in numbers([query, rows])))
        index.delete(matching=compile_filter({}))
        index.upsert([record(f'{n}', row) for n, row in enumerate(rows)])
        found = index.store.page(compile_filter(query), 10, 0)
        assert [one.id for one in found] == [f'{n}' for n, row in enumerate(rows) if oracle(query, row)]

    check()


def test_an_id_is_never_a_part_of_an_expression(index: MilvusIndex) -> None:
    index.upsert([record(name, {'name': name}) for name in WEIRD])
    for name in WEIRD:
        assert list(index.store.by_ids([name])) == [name]
        (found,) = index.store.page(compile_filter({'name': {'$gte': name, '$lte': name}}), 10, 0)
        assert found.id == name
    for name in WEIRD:
        assert index.store.merge_tags([(name, '{"a": 1}')]) == [True]
        assert index.delete([name]) == 1
    assert len(index) == 0


def test_a_record_comes_back_as_it_was(index: MilvusIndex) -> None:
    kept = record('a', {'n': 3.0, 'deep': {'er': [1, None, True]}, 'text': 'ä"\\'}, (0.1, 0.2, 0.3))
    index.upsert([kept])
    found = index.store.by_ids(['a'], thumbnails=True, vectors=True)['a']
    assert (found.text, found.uri, found.tags, found.thumbnail) == (kept.text, kept.uri, kept.tags, kept.thumbnail)
    assert found.vector is not None
    assert (found.vector == kept.vector).all()
    assert found.key == key_of('a')
    assert list(index.store.by_keys([found.key, 7])) == [found.key]
    assert index.store.by_ids(['a'])['a'].thumbnail is None


def test_pages_follow_the_ids_and_leave_nothing_out(index: MilvusIndex) -> None:
    names = sorted(f'{n * 7919 % 10_007}' for n in range(2500))
    index.upsert([record(name, {'n': int(name) % 2}) for name in reversed(names)])
    pages = [index.store.page(compile_filter({}), 700, offset) for offset in range(0, 2800, 700)]
    assert [one.id for page in pages for one in page] == names
    odd = index.store.page(compile_filter({'n': 1}), 10_000, 5)
    assert [one.id for one in odd] == [name for name in names if int(name) % 2][5:]
    assert index.delete(matching=compile_filter({'n': 1})) == sum(int(name) % 2 for name in names)
    assert len(index) == sum(int(name) % 2 == 0 for name in names)


def test_everything_that_is_made_of_scores_is_as_over_sqlite(index: MilvusIndex, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [
        record(f'{n}', {'n': n % 7} if n % 3 else {'n': f't{n % 5}'}, tuple(rng.normal(size=3))) for n in range(400)
    ]
    live = LiveIndex(Store(tmp_path / 'store', 'abc', 'm'))
    queries = np.stack([unit(tuple(rng.normal(size=3))) for _ in range(3)])
    try:
        for one in (index, live):
            one.upsert(records)
        for given_ in (
            {'limit': 30, 'group_by': 'n'},
            {'limit': 30, 'dedup': 0.99},
            {'limit': 20, 'sort_by': '-n', 'relevance': 0.9},
            {'limit': 20, 'sort_by': 'n', 'min_score': 0.2},
            {'limit': 20, 'relevance': 0.95},
            {'limit': 10, 'percentiles': True},
            {'limit': 400, 'group_by': 'n', 'dedup': 0.999, 'percentiles': True},
        ):
            for source in (None, {'n': {'$in': [1, 2, 't1']}}):
                matching = (None, None) if source is None else (compile_filter(source), compile_sql(source))
                found, expected = (
                    one.search(queries, Query(matching=own, **given_))
                    for one, own in zip((index, live), matching, strict=True)
                )
                shown = [
                    [[(hit.record.id, hit.score, hit.group, hit.percentile, hit.mark) for hit in hits] for hits in both]
                    for both in (found, expected)
                ]
                assert shown[0] == shown[1], given_
        for found, expected in zip(index.background(queries), live.background(queries), strict=True):
            assert found.tolist() == expected.tolist()
        for source in ({}, {'n': {'$gt': 2}}):
            facets = index.facets(compile_filter(source)), live.facets(compile_sql(source))
            assert [facet.json(50) for facet in facets[0][0]] == [facet.json(50) for facet in facets[1][0]]
    finally:
        live.close()


def test_many_that_tie_with_the_last_are_all_looked_at(index: MilvusIndex) -> None:
    index.upsert([record(f'{n:03}') for n in reversed(range(150))])
    (hits,) = index.search(np.array([[1, 0, 0]], np.float32), Query(5))
    assert [hit.record.id for hit in hits] == ['000', '001', '002', '003', '004']


def test_more_than_milvus_gives_is_refused(index: MilvusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    query = np.array([[1, 0, 0]], np.float32)
    with pytest.raises(InvalidParameter, match='16,384'):
        index.search(query, Query(16_385))
    monkeypatch.setattr(milvus_index, 'MOST_RESULTS', 50)
    index.upsert([record(f'{n:03}', {'n': n // 40}) for n in range(150)])
    (hits,) = index.search(query, Query(10, group_by='n'))
    assert 1 <= len(hits) <= 2  # of the best fifty


def test_a_sample_of_many_documents_is_one(index: MilvusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_index, 'COUNTED', 100)
    monkeypatch.setattr(milvus_index, 'SAMPLE', 100)
    rng = np.random.default_rng(1)
    index.upsert([record(f'{n}', {'half': n % 2}, tuple(rng.normal(size=3))) for n in range(1000)])
    (sample,) = index.background(np.array([[1, 0, 0]], np.float32))
    assert 60 < len(sample) < 150
    (facet,), sampled = index.facets(None)
    assert sampled
    assert all(300 < count < 700 for count in facet.counts.values())


def test_vectors_of_another_model_length_or_precision_are_refused(index: MilvusIndex, tmp_path: Path) -> None:
    index.upsert([record('a')])
    with pytest.raises(DimensionMismatch):
        index.upsert([Record('b', '', '', '{}', np.array([0.6, 0.8], np.float32))])
    with pytest.raises(DimensionMismatch):
        index.search(np.array([[0.6, 0.8]], np.float32), Query(1))
    with pytest.raises(ModelMismatch):
        index.upsert([record('b')], 'int8')
    index.upsert([record('b')], 'int8', mixed=True)
    index.close()
    with pytest.raises(ModelMismatch):
        opened(tmp_path, 'another')
    again = opened(tmp_path)
    try:
        assert again.precision == 'float'
        again.delete(['a', 'b'])
        assert again.precision == ''
        # Nothing is left that would bind it.
        again.upsert([Record('b', '', '', '{}', np.array([0.6, 0.8], np.float32))], 'int8')
        assert again.precision == 'int8'
    finally:
        again.close()


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(
        [sys.executable, '-c', code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    for kill in range(3):
        folder = tmp_path / f'{kill}'
        writer = run(WRITER, str(folder / 'milvus.db'))
        assert writer.stdout is not None
        done = -1
        for line in writer.stdout:
            done = int(line)
            if done == 30 + kill:
                writer.kill()
                break
        done = max([done, *(int(line) for line in writer.stdout)])
        writer.wait(timeout=30)
        index = opened(folder)
        try:
            kept = index.store.by_ids([f'{n}' for n in range(done + 1)])
            assert [json.loads(one.tags) for one in kept.values()] == [{'n': 2}] * (done + 1)
            assert index.store.existing([f'gone {n}' for n in range(done + 1)]) == set()
            (hits,) = index.search(np.array([[1, 0, 0]], np.float32), Query(5000))
            assert set(kept) <= {hit.record.id for hit in hits}
        finally:
            index.close()


def test_a_collection_that_was_only_half_made_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Collection, '_prepare', lambda self: None)  # it ended before this
        begun = opened(tmp_path)
        begun.upsert([record('a')])
        begun.close()
    index = opened(tmp_path)
    try:
        (hits,) = index.search(np.array([[1, 0, 0]], np.float32), Query(1))
        assert [hit.record.id for hit in hits] == ['a']
    finally:
        index.close()


def test_a_second_process_is_refused_in_a_sentence(index: MilvusIndex, tmp_path: Path) -> None:
    code = (
        'import sys\nfrom clipflow.errors import Conflict\nfrom clipflow.milvus.collection import Collection\n'
        'try:\n    Collection(sys.argv[1], "abc")\nexcept Conflict as error:\n    print(error.message)'
    )
    other = run(code, str(tmp_path / 'milvus.db'))
    said, _ = other.communicate(timeout=200)
    assert 'another process' in said


def test_a_milvus_that_is_away_is_one_sentence_without_the_token() -> None:
    with pytest.raises(ClipflowError, match=r'no Milvus at http://127\.0\.0\.1:1\b') as caught:
        Collection('http://root:secret@127.0.0.1:1', 'abc', token='root:secret', timeout=2)
    assert caught.value.retryable
    assert 'secret' not in caught.value.message
    assert not isinstance(caught.value, Conflict)

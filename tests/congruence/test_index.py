"""Whatever happens to an index, in whatever order: it answers as the simple one does."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from clipflow.filters import compile_filter
from clipflow.index import choice, flat, keeper, layered, snapshot
from clipflow.index.choice import Wanted
from clipflow.index.layered import LayeredIndex
from clipflow.index.live import Hit, LiveIndex, Query
from clipflow.index.reference import ReferenceIndex
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from forms import LONG, long

DIMENSION = 3
IN_MEMORY = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
"""Where syncs cost nothing: thousands of them would take minutes on a busy disk."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that merging, compacting and building happen with a handful of documents."""
    monkeypatch.setattr(choice, 'LEAST', 3)
    monkeypatch.setattr(keeper, 'MERGE_AT', 3)
    monkeypatch.setattr(keeper, 'DEAD_LEAST', 2)
    for module in (flat, layered, snapshot):
        monkeypatch.setattr(module, 'BLOCK', 4)


def unit(components: tuple[float, ...]) -> NDArray[np.float32]:
    raw = np.array(components, dtype=np.float64)
    return (raw / np.linalg.norm(raw)).astype(np.float32)


# Few directions, so that many documents tie; some a hair's breadth away from them, and any other ones.
GRID = st.tuples(*[st.sampled_from([-1.0, 0.0, 1.0])] * DIMENSION).filter(any)
HAIR = st.tuples(GRID, st.sampled_from([3e-7, 2e-6])).map(lambda pair: (pair[0][0] + pair[1], *pair[0][1:]))
ANY = st.tuples(*[st.floats(-1, 1, width=16)] * DIMENSION).filter(lambda vector: max(map(abs, vector)) > 0.01)
VECTORS = (GRID | HAIR | ANY).map(unit)
LIMITS = st.sampled_from([1, 2, 3, 5, 15, 50])


def comparable(ranked: list[tuple[Any, Any]]) -> list[list[tuple[float, int]]]:
    """Keys and scores of each query, ties in one order."""
    return [
        sorted((-round(score, 9), key) for key, score in zip(keys.tolist(), scores.tolist(), strict=True))
        for keys, scores in ranked
    ]


class FlatMachine(RuleBasedStateMachine):
    """LayeredIndex beside ReferenceIndex."""

    @initialize()
    def start(self) -> None:
        self.flat, self.reference = LayeredIndex(DIMENSION), ReferenceIndex()

    @rule(items=st.lists(st.tuples(st.integers(1, 25), VECTORS), max_size=12))
    def put(self, items: list[tuple[int, NDArray[np.float32]]]) -> None:
        keys = np.array([key for key, _ in items], dtype=np.int64)
        vectors = np.array([vector for _, vector in items], dtype=np.float32).reshape(-1, DIMENSION)
        for index in (self.flat, self.reference):
            index.put(keys, vectors)

    @rule(keys=st.lists(st.integers(0, 30), max_size=10))
    def remove(self, keys: list[int]) -> None:
        for index in (self.flat, self.reference):
            index.remove(np.array(keys, dtype=np.int64))

    @rule(
        queries=st.lists(VECTORS, min_size=1, max_size=3),
        limit=LIMITS,
        allowed=st.none() | st.lists(st.integers(0, 30), unique=True),
    )
    def search(self, queries: list[NDArray[np.float32]], limit: int, allowed: list[int] | None) -> None:
        keys = None if allowed is None else np.array(allowed, dtype=np.int64)
        found, expected = (index.search(np.stack(queries), limit, keys) for index in (self.flat, self.reference))
        assert comparable(found) == comparable(expected)
        assert all((np.diff(scores) <= 0).all() for _, scores in found)

    @invariant()
    def sizes(self) -> None:
        if hasattr(self, 'flat'):
            assert len(self.flat) == len(self.reference)


TestFlat = FlatMachine.TestCase
TestFlat.settings = settings(max_examples=250 if LONG else 100, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize('queries', [1, 5, 64])
def test_flat_search_equals_the_reference_at_a_size_where_blas_takes_over(queries: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 64))
    vectors[500:900] = vectors[17]  # 401 that tie
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    keys = rng.permutation(10_000)[:3000].astype(np.int64)
    flat, reference = LayeredIndex(64), ReferenceIndex()
    for index in (flat, reference):
        index.put(keys, vectors)
        index.remove(keys[::7])
    asked = np.concatenate([vectors[17:18], rng.normal(size=(queries, 64)).astype(np.float32)])[:queries]
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    for limit, allowed in ((1, None), (10, None), (10, keys[:800]), (450, None), (5000, None)):
        assert comparable(flat.search(asked, limit, allowed)) == comparable(reference.search(asked, limit, allowed))


COLOURS = st.sampled_from(['red', 'blue', 'green'])
TAGS = st.fixed_dictionaries(
    {}, optional={'color': COLOURS, 'n': st.integers(0, 5), 'shop': st.fixed_dictionaries({'city': COLOURS})}
)
IDS = st.sampled_from([f'{n}' for n in range(18)] + ['ä', 'Z', 'a b'])
FILTERS = st.sampled_from([{'color': 'red'}, {'color': {'$neq': 'red'}}, {'n': {'$lt': 3}}, {'shop__city': 'blue'}, {}])
PASSES = {
    json.dumps({'color': 'red'}): lambda tags: tags.get('color') == 'red',
    json.dumps({'color': {'$neq': 'red'}}): lambda tags: tags.get('color') != 'red',
    json.dumps({'n': {'$lt': 3}}): lambda tags: 'n' in tags and tags['n'] < 3,
    json.dumps({'shop__city': 'blue'}): lambda tags: tags.get('shop', {}).get('city') == 'blue',
    json.dumps({}): lambda tags: True,
}


def passes(query: dict[str, Any] | None, tags: dict[str, Any]) -> bool:
    return query is None or PASSES[json.dumps(query)](tags)


def group_of(path: str, tags: dict[str, Any]) -> Any:
    return tags.get('color') if path == 'color' else tags.get('shop', {}).get('city')


class LiveMachine(RuleBasedStateMachine):
    """LiveIndex over a store on disk beside a dictionary of ids."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.documents: dict[str, tuple[NDArray[np.float32], dict[str, Any], bytes | None]] = {}
        self.open()

    wanted = Wanted()
    compiled = staticmethod(compile_filter)

    def open(self) -> None:
        self.live = LiveIndex(Store(Path(self.folder.name) / 'store', 'abc', 'm'), self.wanted)

    def teardown(self) -> None:
        if hasattr(self, 'live'):
            self.live.close()
            self.folder.cleanup()

    @rule(items=st.lists(st.tuples(IDS, VECTORS, TAGS, st.none() | st.just(b'webp')), max_size=10))
    def upsert(self, items: list[tuple[str, NDArray[np.float32], dict[str, Any], bytes | None]]) -> None:
        self.live.upsert([Record(i, '', '', json.dumps(tags), vector, webp) for i, vector, tags, webp in items])
        self.documents.update({i: (vector, tags, webp) for i, vector, tags, webp in items})

    @rule(ids=st.lists(IDS | st.just('unknown'), max_size=4), query=st.none() | FILTERS.filter(bool))
    def delete(self, ids: list[str], query: dict[str, Any] | None) -> None:
        matching = None if query is None else self.compiled(query)
        gone = {
            i for i, (_, tags, _) in self.documents.items() if i in ids or (query is not None and passes(query, tags))
        }
        assert self.live.delete(ids, matching) == len(gone)
        for i in gone:
            del self.documents[i]

    @rule(identifier=IDS, colour=st.none() | COLOURS)
    def retag(self, identifier: str, colour: str | None) -> None:
        known = self.live.store.merge_tags([(identifier, json.dumps({'color': colour}))])
        assert known == [identifier in self.documents]
        if identifier in self.documents:
            vector, tags, webp = self.documents[identifier]
            rest = {name: value for name, value in tags.items() if name != 'color'}
            self.documents[identifier] = vector, rest | ({'color': colour} if colour else {}), webp

    @rule()
    def clear(self) -> None:
        assert self.live.clear() == len(self.documents)
        self.documents.clear()

    @rule()
    def snapshot(self) -> None:
        assert self.live.keeper.snapshot()['documents'] == len(self.documents)

    @rule()
    def reopen(self) -> None:
        self.live.close()
        self.open()

    def expected(self, vector: NDArray[np.float32], query: Query, source: dict[str, Any] | None) -> list[Any]:
        names = sorted(self.documents)
        reference = ReferenceIndex()
        matrix = np.array([self.documents[name][0] for name in names], np.float32).reshape(-1, DIMENSION)
        reference.put(np.arange(len(names)), matrix)
        ((keys, scores),) = reference.search(vector[None], max(1, len(names)), None)
        ranked = sorted((-round(score, 6), names[key]) for key, score in zip(keys, scores, strict=True))
        floor = -2.0 if query.min_score is None else query.min_score
        result, groups = [], set()
        for negative, name in ranked:
            tags = self.documents[name][1]
            group = group_of(query.group_by, tags) if query.group_by else name
            if not passes(source, tags) or group in groups or -negative < floor:
                continue
            groups.add(group)
            result.append((name, -negative))
        return result[: query.limit]

    @rule(
        vectors=st.lists(VECTORS, min_size=1, max_size=2),
        limit=LIMITS,
        source=st.none() | FILTERS,
        min_score=st.sampled_from([None, 0.0, 0.5, 1.0]),
        group_by=st.sampled_from([None, None, 'color', 'shop__city']),
    )
    def search(
        self,
        vectors: list[NDArray[np.float32]],
        limit: int,
        source: dict[str, Any] | None,
        min_score: float | None,
        group_by: str | None,
    ) -> None:
        matching = None if source is None else self.compiled(source)
        query = Query(limit, matching, min_score=min_score, group_by=group_by, thumbnails=True, vectors=True)
        found = self.live.search(np.stack(vectors), query)
        for vector, hits in zip(vectors, found, strict=True):
            assert [(hit.record.id, hit.score) for hit in hits] == self.expected(vector, query, source)
            for hit in hits:
                own, tags, webp = self.documents[hit.record.id]
                assert (json.loads(hit.record.tags), hit.record.thumbnail) == (tags, webp)
                assert hit.record.vector is not None
                assert (hit.record.vector == own).all()
                assert group_by is None or json.loads(hit.group) == group_of(group_by, tags)

    @rule(vector=VECTORS, source=st.none() | FILTERS, group_by=st.sampled_from([None, 'color']))
    def fewer_are_a_prefix_of_more(
        self, vector: NDArray[np.float32], source: dict[str, Any] | None, group_by: str | None
    ) -> None:
        def top(limit: int) -> list[Hit]:
            matching = None if source is None else self.compiled(source)
            return self.live.search(vector[None], Query(limit, matching, group_by=group_by))[0]

        assert [(hit.record.id, hit.score) for hit in top(5)] == [(h.record.id, h.score) for h in top(15)][:5]

    @invariant()
    def sizes(self) -> None:
        if hasattr(self, 'live'):
            assert len(self.live) == self.live.store.count() == len(self.documents)


TestLive = LiveMachine.TestCase
TestLive.settings = settings(
    max_examples=200 if LONG else 80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class IvfMachine(LiveMachine):
    """The same with a FAISS part. It has one list at this size, so that it has to be exact too."""

    wanted = Wanted('ivf')


class HnswMachine(LiveMachine):
    """The same with a graph, in which so few are all neighbours of each other."""

    wanted = Wanted('hnsw')


TestIvf, TestHnsw = IvfMachine.TestCase, HnswMachine.TestCase
TestIvf.settings = TestHnsw.settings = settings(TestLive.settings, max_examples=60 if LONG else 30)


CENTRES = 256
"""Product quantisation cannot learn so many from fewer vectors."""
MANY = 300
RECALL = 0.95
"""Of the ten best of all queries together; a start tunes each kind to at least 0.98."""


class LossyMachine(LiveMachine):
    """A kind that keeps codes in the place of vectors: it may miss a document, and what it finds is exact."""

    seen: Counter[str]

    @initialize()
    def start(self) -> None:
        super().start()
        self.refill()
        self.reopen()

    @rule()
    def refill(self) -> None:
        """Enough for a FAISS part, after deletions too."""
        rng = np.random.default_rng(len(self.documents))
        rows = [unit(tuple(row)) for row in rng.normal(size=(MANY, DIMENSION))]
        self.upsert(
            [(f'many {n}', row, {'n': n % 6, 'color': 'red'} if n % 2 else {}, None) for n, row in enumerate(rows)]
        )

    @rule()
    def clear(self) -> None:
        super().clear()
        self.refill()

    @rule(
        vectors=st.lists(VECTORS, min_size=2, max_size=6),
        limit=LIMITS,
        source=st.none() | FILTERS,
        min_score=st.sampled_from([None, None, 0.0, 0.5]),
        group_by=st.sampled_from([None, None, 'color', 'shop__city']),
    )
    def search(
        self,
        vectors: list[NDArray[np.float32]],
        limit: int,
        source: dict[str, Any] | None,
        min_score: float | None,
        group_by: str | None,
    ) -> None:
        self.checked(vectors, Query(limit, min_score=min_score, group_by=group_by, vectors=True), source)

    def teardown(self) -> None:
        if hasattr(self, 'live'):
            try:
                self.measure()
            finally:
                super().teardown()

    def measure(self) -> None:
        """What can be counted and foreseen, however the index came to be as it is."""
        self.refill()
        self.reopen()
        self.live.keeper.close()  # nothing is built or merged from here on
        index = self.live.keeper.index
        if index is None or index.main is None:
            return  # a snapshot of the time when it was flat
        queries = [unit(tuple(row)) for row in np.random.default_rng(1).normal(size=(20, DIMENSION))]
        for vector, hits in self.checked(queries, Query(10, vectors=True)):
            # By scores, for any of those that tie with the last is right.
            last = self.expected(vector, Query(10), None)[-1][1]
            self.seen['wanted'] += 10
            self.seen['found'] += sum(hit.score >= last for hit in hits)
        # Few live among the candidates: others have to be looked for.
        self.delete([f'many {n}' for n in range(MANY) if n % 7], None)
        for source in (None, {'color': 'red'}, {'color': {'$neq': 'red'}}, {'n': {'$lt': 3}}):
            for limit in (1, 10, 60):
                self.checked(queries[:4], Query(limit, vectors=True), source)

    def checked(
        self, vectors: list[NDArray[np.float32]], query: Query, source: dict[str, Any] | None = None
    ) -> list[tuple[NDArray[np.float32], list[Hit]]]:
        """Search; each vector with what is found for it."""
        query = replace(query, matching=None if source is None else compile_filter(source))
        found = list(zip(vectors, self.live.search(np.stack(vectors), query), strict=True))
        for vector, hits in found:
            self.check(vector, query, source, hits)
        return found

    def check(self, vector: NDArray[np.float32], query: Query, source: dict[str, Any] | None, hits: list[Hit]) -> None:
        """Everything but which of the nearest are found."""
        possible = {name: tags for name, (_, tags, _) in self.documents.items() if passes(source, tags)}
        names = [hit.record.id for hit in hits]
        assert set(names) <= possible.keys(), 'deleted, or kept back by the filter'
        assert len(set(names)) == len(names), 'one document twice'
        assert [(-hit.score, hit.record.id) for hit in hits] == sorted((-hit.score, hit.record.id) for hit in hits)
        for hit in hits:
            own = self.documents[hit.record.id][0]
            assert abs(hit.score - own.astype(np.float64) @ vector.astype(np.float64)) <= 1e-6
            assert hit.record.vector is not None
            assert (hit.record.vector == own).all()
            assert query.min_score is None or hit.score >= query.min_score
        most = len(possible)
        if query.group_by is not None:
            groups = [group_of(query.group_by, possible[name]) for name in names]
            assert [json.loads(hit.group) for hit in hits] == groups
            assert len(set(groups)) == len(groups), 'one group twice'
            most = len({group_of(query.group_by, tags) for tags in possible.values()})
        # What is missed may have reached the lowest score: then it is known only how many there can be.
        assert len(hits) == min(query.limit, most) or (query.min_score is not None and len(hits) < query.limit)

    # With another limit other candidates are looked at.
    fewer_are_a_prefix_of_more = None


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """So few vectors are done before a second thread of FAISS has begun: waiting for it takes most of the time."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.mark.usefixtures('_one_thread')
@pytest.mark.parametrize(
    ('wanted', 'least'),
    [
        pytest.param(Wanted('ivfpq', memory=0), CENTRES, id='ivfpq'),
        pytest.param(Wanted('hnsw', 'int8', memory=0), 8, id='hnsw int8'),
        pytest.param(Wanted('IVF4,PQ1x4', memory=0), 40, id='coarse codes', marks=long),
        pytest.param(Wanted('IVF4,SQ8', memory=0), 8, id='ivf int8', marks=long),
    ],
)
def test_a_lossy_kind_may_miss_and_does_nothing_else_wrong(
    wanted: Wanted, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, 'LEAST', least)
    monkeypatch.setattr(layered, 'SUBSET_STORED', 10)  # above it filters go along into the FAISS part
    # Without memory for flat a start builds the kind itself, and not the thread of the keeper some time later.
    machine = type('Machine', (LossyMachine,), {'wanted': wanted, 'seen': Counter()})
    run_state_machine_as_test(machine, settings=settings(TestLive.settings, max_examples=60 if LONG else 8))
    assert machine.seen['found'] >= RECALL * machine.seen['wanted'] > 0

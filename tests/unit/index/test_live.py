"""Store and vectors as one, also while several threads use them."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.errors import DimensionMismatch
from clipflow.filters import compile_filter
from clipflow.index import sifting
from clipflow.index.approximate import Approximate
from clipflow.index.choice import Wanted
from clipflow.index.layered import LayeredIndex
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from service import until

AXES = np.eye(4, dtype=np.float32)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveIndex]:
    store = Store(tmp_path, 'abc', 'm')
    index = LiveIndex(store)
    yield index
    index.close()


def record(identifier: str, vector: np.ndarray, **tags: Any) -> Record:
    return Record(identifier, '', '', json.dumps(tags), vector)


def top(live: LiveIndex, vector: np.ndarray, limit: int = 10, **options: Any) -> list[tuple[str, float]]:
    (hits,) = live.search(vector[None], Query(limit, **options))
    return [(hit.record.id, hit.score) for hit in hits]


def test_an_empty_index_answers_every_query(live: LiveIndex) -> None:
    assert live.search(AXES[:2], Query(5)) == [[], []]
    assert live.search(AXES[:2], Query(5, group_by='a')) == [[], []]
    live.upsert([])
    assert (len(live), live.delete(['a']), live.clear()) == (0, 0, 0)


def test_scores_are_rounded_to_six_decimals_and_ties_go_by_id(live: LiveIndex) -> None:
    near = np.array([1, 1e-4, 0, 0], np.float32)
    live.upsert([record('b', AXES[0]), record('c', near / np.linalg.norm(near)), record('a', AXES[0])])
    assert top(live, AXES[0]) == [('a', 1.0), ('b', 1.0), ('c', 1.0)]


def test_the_lowest_score_is_inclusive(live: LiveIndex) -> None:
    live.upsert([record('a', AXES[0]), record('b', np.array([0.6, 0.8, 0, 0], np.float32)), record('c', -AXES[0])])
    assert top(live, AXES[0], min_score=0.6) == [('a', 1.0), ('b', 0.6)]
    assert top(live, AXES[0], min_score=0.0) == [('a', 1.0), ('b', 0.6)]
    assert len(top(live, AXES[0], min_score=-1.0)) == 3


def test_a_search_with_groups_looks_on_until_it_has_enough(live: LiveIndex) -> None:
    # Two hundred of one colour stand before the first of another.
    many = [record(f'red {n:03}', AXES[0], colour='red') for n in range(200)]
    far = np.array([0.6, 0.8, 0, 0], np.float32)
    live.upsert([*many, record('blue', far, colour='blue'), record('none', far), record('null', far, colour=None)])
    found = top(live, AXES[0], limit=3, group_by='colour')
    # A missing tag and null are one group.
    assert found == [('red 000', 1.0), ('blue', 0.6), ('none', 0.6)]
    assert top(live, AXES[0], limit=1, group_by='colour') == found[:1]


def test_while_most_are_being_deleted_the_others_are_found(live: LiveIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.linspace(0, 1, 505)
    rows = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1).astype(np.float32)
    live.upsert([record(f'{n}', row) for n, row in enumerate(rows)])
    reads: list[int] = []
    by_keys = live.store.by_keys

    def counted(keys: Any, **options: Any) -> Any:
        reads.append(len(keys))
        return by_keys(keys, **options)

    monkeypatch.setattr(live.store, 'by_keys', counted)
    with ThreadPoolExecutor(1) as pool:
        with live._writing:
            # Gone from the store, and not yet from the index.
            gone = live.store.delete([f'{n}' for n in range(500)])
            search = pool.submit(top, live, AXES[0], 5)
            until(lambda: len(reads) >= 3 or search.done(), 20, 'the search finds what is gone')
            live.keeper.remove(gone)
        assert [name for name, _ in search.result(20)] == [f'{n}' for n in range(500, 505)]


def test_groups_are_told_apart_by_value_and_kind(live: LiveIndex) -> None:
    values: list[Any] = [1, '1', [1], {'a': 1}, 'null', None]
    equal: list[Any] = [True, 1.0, [1.0], {'a': True}]  # as a filter compares
    live.upsert([record(f'{n}', AXES[0], deep={'x': value}) for n, value in enumerate(values + equal)])
    assert len(top(live, AXES[0], group_by='deep__x')) == len(values)


@pytest.mark.parametrize(
    ('group_by', 'groups', 'most'),
    [('colour', ['red', 'blue', None, [1]], 60), ('mistyped', [None], 50), ('not"named', [None], 3000)],
)
def test_fewer_groups_than_asked_for_are_found_without_reading_everything(
    live: LiveIndex, monkeypatch: pytest.MonkeyPatch, group_by: str, groups: list[Any], most: int
) -> None:
    monkeypatch.setattr(sifting, '_DEEP', 30)
    colours = {0: 'blue', 1: None, 2: [1]}
    angles = np.linspace(1, 0, 1000)
    rows = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1).astype(np.float32)
    live.upsert([record(f'{n:03}', row, colour=colours.get(n, 'red'), even=n % 2 == 0) for n, row in enumerate(rows)])
    read: list[int] = []
    by_keys = live.store.by_keys

    def counted(keys: Any, **options: Any) -> Any:
        read.extend(keys)
        return by_keys(keys, **options)

    monkeypatch.setattr(live.store, 'by_keys', counted)
    found = [json.loads(hit.group) for hit in live.search(AXES[:1], Query(10, group_by=group_by))[0]]
    assert sorted(found, key=str) == sorted(groups, key=str)
    assert found[0] == ('red' if group_by == 'colour' else None)
    assert len(read) <= most
    even = live.search(AXES[:1], Query(10, compile_filter({'even': True}), group_by=group_by))[0]
    assert {hit.group for hit in even} == {json.dumps(group) for group in groups if group_by != 'colour' or group}
    assert all(json.loads(hit.record.tags)['even'] for hit in even)


def test_groups_and_filter_and_score_work_together(live: LiveIndex) -> None:
    far = np.array([0.6, 0.8, 0, 0], np.float32)
    live.upsert([record('a', AXES[0], g=1, on=True), record('b', far, g=1, on=True), record('c', far, g=2, on=False)])
    matching = compile_filter({'on': True})
    assert top(live, AXES[0], group_by='g', matching=matching, min_score=0.5) == [('a', 1.0)]


def test_a_refused_write_changes_neither_store_nor_results(live: LiveIndex) -> None:
    live.upsert([record('a', AXES[0])])
    with pytest.raises(DimensionMismatch):
        live.upsert([record('a', AXES[1]), Record('b', '', '', '{}', np.ones(3, np.float32))])
    assert top(live, AXES[0]) == [('a', 1.0)]
    assert live.store.count() == len(live) == 1


def test_after_clearing_vectors_of_another_size_are_welcome(live: LiveIndex) -> None:
    live.upsert([record('a', AXES[0])])
    live.clear()
    live.upsert([Record('b', '', '', '{}', np.array([0, 1], np.float32))])
    assert top(live, np.array([0, 1], np.float32)) == [('b', 1.0)]


def test_after_deleting_the_last_document_vectors_of_another_size_are_welcome_too(live: LiveIndex) -> None:
    live.upsert([record('a', AXES[0])])
    live.delete(['a'])
    live.upsert([Record('b', '', '', '{}', np.array([0, 1], np.float32))])
    assert top(live, np.array([0, 1], np.float32)) == [('b', 1.0)]


def test_searches_beside_writes_see_whole_documents_and_no_deleted_one(live: LiveIndex) -> None:
    """Readers run as long as the writer: each answer holds the fixed document and no half of a changing one."""
    live.upsert([record('fixed', AXES[0])])
    stop, faults = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = dict(top(live, AXES[0]))
            if found.get('fixed') != 1.0 or set(found) - {'fixed', 'a', 'b'} or 'gone' in found:
                faults.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for n in range(40):
            live.upsert([record('a', AXES[n % 4]), record('b', AXES[1])])
            live.delete(['a'])
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert faults == []
    assert dict(top(live, AXES[0])) == {'fixed': 1.0, 'b': 0.0}


def test_the_status_counts_documents(live: LiveIndex) -> None:
    live.upsert([record('a', AXES[0]), record('b', AXES[1])])
    assert live.status()['documents'] == 2
    assert live.status()['kind'] == 'flat'


def ids(live: LiveIndex, vector: np.ndarray, limit: int, **options: Any) -> list[str]:
    return [identifier for identifier, _ in top(live, vector, limit, **options)]


def near(cosine: float, axis: int = 1) -> np.ndarray:
    """A unit vector at this cosine from the first axis."""
    return (cosine * AXES[0] + np.sqrt(1 - cosine**2) * AXES[axis]).astype(np.float32)


def test_near_duplicates_are_left_out_and_others_take_their_places(live: LiveIndex) -> None:
    # Twenty that are nearly one, and three that are not: more has to be looked at than was asked for.
    same = [record(f's{n:02}', near(0.99 - n * 1e-5)) for n in range(20)]
    live.upsert([*same, record('x', near(0.5, 2)), record('y', near(0.4, 3)), record('z', near(0.3))])
    assert ids(live, AXES[0], 3, dedup=0.95) == ['s00', 'x', 'y']
    assert ids(live, AXES[0], 3) == ['s00', 's01', 's02']
    assert ids(live, AXES[0], 4, dedup=0.95)[:3] == ids(live, AXES[0], 3, dedup=0.95)


def test_what_is_relevant_comes_in_the_order_of_a_tag(live: LiveIndex) -> None:
    prices = [5, 1, None, 3, 9]
    live.upsert([record(f'{n}', near(0.9 - n / 10), price=price) for n, price in enumerate(prices)])
    assert ids(live, AXES[0], 9, sort_by='price', min_score=0.55) == ['1', '3', '0', '2']
    assert ids(live, AXES[0], 9, sort_by='-price', min_score=0.45) == ['4', '0', '3', '1', '2']
    assert ids(live, AXES[0], 2, sort_by='price', min_score=0.55) == ['1', '3']


def test_relevance_keeps_what_scores_higher_than_a_share_of_the_collection(live: LiveIndex) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    live.upsert([record(f'{n}', row) for n, row in enumerate(rows)])
    scores = np.sort(rows @ AXES[0])
    for share in (0.5, 0.9, 0.99):
        (hits,) = live.search(AXES[:1], Query(1000, relevance=share, percentiles=True))
        # The whole collection is the sample here, so that the share is exact.
        assert len(hits) == np.count_nonzero(scores > np.quantile(scores, share))
        for hit in hits:
            assert hit.percentile == pytest.approx(np.mean(scores < hit.score), abs=0.003)
    assert live.search(AXES[:1], Query(3))[0][0].percentile is None
    live.upsert([record('more', AXES[0])])
    assert live.search(AXES[:1], Query(1, percentiles=True))[0][0].percentile == 1.0


def test_a_share_of_nought_keeps_all_though_some_score_less_than_the_whole_sample(live: LiveIndex) -> None:
    rows = np.random.default_rng(1).normal(size=(1300, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    live.upsert([record(f'{n}', row) for n, row in enumerate(rows)])
    assert len(live.search(AXES[:1], Query(2000, relevance=0.0))[0]) == 1300


def test_the_sample_is_drawn_again_when_the_collection_has_changed(live: LiveIndex) -> None:
    live.upsert([record(f'{n}', AXES[1]) for n in range(50)])
    assert live.search(near(0.5)[None], Query(1, percentiles=True))[0][0].percentile == 0.0
    live.upsert([record(f'low{n}', -AXES[1]) for n in range(50)])
    assert live.search(near(0.5)[None], Query(1, percentiles=True))[0][0].percentile == pytest.approx(0.5)


def percentile_of_all(live: LiveIndex, vector: np.ndarray) -> float | None:
    return live.search(vector[None], Query(1, percentiles=True))[0][0].percentile


def test_the_sample_is_drawn_again_when_documents_were_replaced_one_for_one(live: LiveIndex) -> None:
    live.upsert([record(f'{n}', AXES[1]) for n in range(50)])
    assert live.background(AXES[:1])[0].tolist() == [0.0] * 50
    live.upsert([record(f'{n}', AXES[0]) for n in range(5)])
    assert live.background(AXES[:1])[0].tolist() == [0.0] * 50, 'a tenth is not more than a tenth'
    live.upsert([record('5', AXES[0])])
    assert live.background(AXES[:1])[0].tolist() == [0.0] * 44 + [1.0] * 6
    live.delete([f'{n}' for n in range(5)])
    live.upsert([record(f'new {n}', AXES[1]) for n in range(5)])
    assert live.background(AXES[:1])[0].tolist() == [0.0] * 49 + [1.0]


def test_after_clearing_scores_are_compared_with_what_came_then(live: LiveIndex) -> None:
    live.upsert([record(f'{n}', AXES[1]) for n in range(50)])
    assert percentile_of_all(live, AXES[1]) == 0.0
    live.clear()
    live.upsert([record(f'{n}', AXES[0]) for n in range(50)])
    assert live.background(AXES[:1])[0].tolist() == [1.0] * 50
    # Also vectors of another length: a sample of the old ones could not be compared at all.
    live.clear()
    live.upsert([Record(f'{n}', '', '', '{}', np.array([0, 1], np.float32)) for n in range(50)])
    assert percentile_of_all(live, np.array([0, 1], np.float32)) == 0.0


def test_documents_that_vanish_between_the_filter_and_their_vectors_are_no_fault() -> None:
    # A kind that reads vectors from the store, and a store from which another thread has just deleted them.
    main = Approximate.create('SQ8', 4)
    main.train(AXES)
    index = LayeredIndex(4, lambda keys: (np.empty(0, np.int64), np.empty((0, 0), np.float32)), main)
    index.fill(np.array([1, 2], dtype=np.int64), AXES[:2])
    found = index.search(AXES[:2], 5, np.array([1, 2], dtype=np.int64))
    assert [(len(keys), len(scores)) for keys, scores in found] == [(0, 0), (0, 0)]


def test_a_collection_that_is_emptied_while_its_index_is_built_is_no_fault(
    live: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.upsert([record(f'r{n}', AXES[n % len(AXES)]) for n in range(1500)])
    live.keeper._wanted = Wanted('SQ8')

    def emptied(*_: object) -> LayeredIndex:
        live.clear()
        raise RuntimeError('nothing to learn from')

    monkeypatch.setattr('clipflow.index.keeper.build', emptied)
    live.keeper._renew()
    assert live.status()['warnings'] == []
    live.upsert([record('again', AXES[0])])
    assert [hit.record.id for hit in live.search(AXES[:1], Query(5))[0]] == ['again']


def test_a_fault_of_a_build_is_raised_to_the_keeper(live: LiveIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    live.upsert([record(f'r{n}', AXES[n % len(AXES)]) for n in range(1500)])
    live.keeper._wanted = Wanted('SQ8')

    def broken(*_: object) -> LayeredIndex:
        raise RuntimeError('broken')

    monkeypatch.setattr('clipflow.index.keeper.build', broken)
    with pytest.raises(RuntimeError, match='broken'):
        live.keeper._renew()

"""Counts of the values of tags, and the sample that stands for many documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.filters import compile_filter
from clipflow.store import facets
from clipflow.store.facets import Facet, count_values, merged
from clipflow.store.reading import Record, thinned
from clipflow.store.sqlite import Store

VECTOR = np.array([1, 0], dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / 'store', 'abc', 'm')
    yield opened
    opened.close()


def fill(store: Store, tags: list[dict[str, Any]]) -> None:
    store.upsert(
        [Record(f'{n}', '', '', json.dumps(found, ensure_ascii=False), VECTOR) for n, found in enumerate(tags)]
    )


def counts(store: Store) -> dict[str, dict[Any, int]]:
    return {facet.tag: facet.counts for facet in count_values(store, None)[0]}


def test_what_a_filter_takes_for_equal_counts_as_one_value(store: Store) -> None:
    fill(store, [{'n': value} for value in (1, 1, 1, 1.0, 1.0, True, False, 'x', 2.5)])
    found = counts(store)['n']
    assert found == {1: 6, 0: 1, 'x': 1, 2.5: 1}
    assert {type(value) for value in found if value == 1} == {int}


def test_only_tags_that_a_filter_can_name_are_offered(store: Store) -> None:
    names = ['a', 'a_b', '_a', 'a b', "it's", '猫', 'a$', '\\', 'a__b', 'a___b', 'b__', 'q"r', '$price', '']
    fill(store, [dict.fromkeys(names, 'x')] * 2)
    found = [facet.tag for facet in count_values(store, None)[0]]
    assert found == sorted(['a', 'a_b', '_a', 'a b', "it's", '猫', 'a$', '\\'])
    for tag in found:
        assert len(store.matching_keys(compile_filter({tag: 'x'}))) == 2


def test_a_number_in_one_shard_and_a_boolean_in_another_are_one_number() -> None:
    parts = [Facet('n', {True: 2, False: 1}), Facet('n', {1: 3, 'x': 1}), Facet('m', {True: 1})]
    for some in (parts, parts[::-1]):
        m, n = merged(some)
        assert (n.tag, n.counts, {type(value) for value in n.counts}) == ('n', {1: 5, 0: 1, 'x': 1}, {int, bool, str})
        assert next(type(value) for value in n.counts if value == 1) is int
        assert next(type(value) for value in m.counts) is bool


def test_booleans_alone_show_as_booleans(store: Store) -> None:
    fill(store, [{'on': True}, {'on': False}, {'on': True}])
    assert [(value, count) for value, count in counts(store)['on'].items() if isinstance(value, bool)] == [
        (False, 1),
        (True, 2),
    ]


@pytest.mark.parametrize('period', [2, 3, 10])
def test_a_rhythm_in_the_documents_does_not_show_in_the_sample(
    store: Store, period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facets, 'COUNTED', 500)
    fill(store, [{'turn': n % period} for n in range(1502)])
    found, sampled = count_values(store, None)
    assert sampled
    assert set(found[0].counts) == set(range(period))
    for count in found[0].counts.values():  # four standard deviations of 500 of 1502
        assert abs(count - 1502 / period) < 4 * 1502 * (1 / period / 500 * 2 / 3) ** 0.5
    assert abs(sum(found[0].counts.values()) - 1502) <= period


def test_a_sample_is_of_the_size_asked_for_and_mostly_stays(store: Store) -> None:
    fill(store, [{} for _ in range(300)])
    everything = store.keys()
    assert store.sample_keys(300).tolist() == store.sample_keys(1000).tolist() == everything.tolist()
    assert store.sample_keys(0).tolist() == []
    before = store.sample_keys(50)
    assert len(before) == len(set(before.tolist())) == 50
    assert np.isin(before, everything).all()
    store.upsert([Record(f'more {n}', '', '', '{}', VECTOR) for n in range(30)])
    assert len(np.intersect1d(before, store.sample_keys(50))) > 40


def test_a_sample_of_the_order_of_storing_has_no_gaps_and_no_steps() -> None:
    keys = thinned(np.arange(1, 1_000_001), 20_000)
    for parts in ((keys - 1) // 100_000, keys % 2, keys % 100, keys % 987, keys % 1597):
        counted = np.bincount(parts)
        expected = len(keys) / len(counted)
        # Five standard deviations of a random sample.
        assert (np.abs(counted - expected) < 5 * np.sqrt(expected) + 2).all(), len(counted)

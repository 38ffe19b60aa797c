"""Tags that are declared have an index in the database: the same answers, without reading every document."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.errors import InvalidFilter
from clipflow.filters import compile_filter, index_expression
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

TAGS = ('n', 'shop__city', "it's", 'what?', 'ä')
VECTOR = np.array([1, 0], dtype=np.float32)


def opened(folder: Path, tags: tuple[str, ...]) -> Store:
    return Store(folder / 'store', 'abc', 'm', tags)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = opened(tmp_path, TAGS)
    values: list[Any] = [None, True, 'x', [1], {'a': 1}, 2.5, 0]
    documents = [{'n': n, 'shop': {'city': f'c{n % 7}'}, "it's": n % 3, 'what?': values[n % 7]} for n in range(300)]
    documents += [{}, {'n': 'text'}, {'n': [5]}, {'n': None}, {'ä': 1}]
    found.upsert(
        [Record(f'{n}', '', '', json.dumps(tags, ensure_ascii=False), VECTOR) for n, tags in enumerate(documents)]
    )
    yield found
    found.close()


FILTERS: list[dict[str, Any]] = [
    {'n': 5},
    {'n': {'$in': [5, 'text', 7]}},
    {'n': {'$nin': [5, 'text', 7]}},
    {'n': {'$in': [None, 3]}},
    {'n': {'$gte': 10, '$lt': 20}},
    {'n': {'$neq': 5}},
    {'n': None},
    {'shop__city': 'c3', 'n': {'$lt': 100}},
    {"it's": 2},
    {'what?': True},
    {'what?': {'$exists': False}},
    {'ä': 1},
    {'$or': [{'n': 5}, {'shop__city': 'c1'}]},
    {'$not': {'n': {'$lt': 290}}},
    {'other': 1},
]


@pytest.mark.parametrize('query', FILTERS, ids=str)
def test_the_answers_are_those_without_an_index(store: Store, query: dict[str, Any]) -> None:
    expected = store.matching_keys(compile_filter(query)).tolist()
    assert sorted(store.matching_keys(compile_filter(query, TAGS)).tolist()) == sorted(expected)


@pytest.mark.parametrize(
    'query', [{'n': 5}, {'n': {'$in': [1, 2]}}, {'n': {'$gt': 290}}, {'shop__city': 'c3'}, {"it's": 2}]
)
def test_the_index_is_used(store: Store, query: dict[str, Any]) -> None:
    compiled = compile_filter(query, TAGS)
    # EXPLAIN alone does not notice that another connection has made the index since this one read the schema.
    assert len(store.matching_keys(compiled))
    plan = store._read(f'EXPLAIN QUERY PLAN SELECT key FROM documents WHERE {compiled.sql}', compiled.parameters)
    assert any('USING INDEX' in row[3] for row in plan), plan


def test_indexes_follow_what_is_declared(tmp_path: Path) -> None:
    for tags in (('a', 'b'), ('b',), (), ('c',), ('price', 'Price'), ('Price',)):
        store = opened(tmp_path, tags)
        rows = store._read("SELECT sql FROM sqlite_master WHERE type = 'index' AND name LIKE 'tag%'")
        store.close()
        assert sorted(row[0].partition(' ON ')[2] for row in rows) == sorted(
            f'documents ({index_expression(name)})' for name in tags
        )


def test_a_name_that_no_tag_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFilter, match='name of a tag'):
        opened(tmp_path, ('a"b',))

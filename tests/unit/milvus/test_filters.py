"""Filters compiled for Milvus, against the reading of the language that those for SQLite are compared with.

An expression of Milvus is one of Python too, as far as these go; Milvus itself reads it in `tests/congruence`.
"""

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings

from clipflow.errors import InvalidFilter
from clipflow.milvus.filters import compile_filter, literal
from clipflow.milvus.terms import field_name, terms_of, values_of
from unit.test_filters import QUERIES, ROWS, oracle


class Values(dict[str, Any]):
    """Fails where a value is compared that no term has spoken of."""

    def __missing__(self, name: str) -> Any:
        raise AssertionError(f'{name} is compared and is not there')


def passes(expression: str, row: dict[str, Any]) -> bool:
    terms = set(terms_of(row))
    names = {
        'id': 'x',
        'terms': terms,
        'values': Values(values_of(row)),
        'array_contains_any': lambda there, wanted: bool(there & set(wanted)),
    }
    return bool(eval(expression, {'__builtins__': {}}, names))


@given(QUERIES, ROWS)
@settings(max_examples=500, deadline=None)
@example({'a': None}, [{'a': None}, {}, {'a': 0}])
@example({'a': {'$exists': True}}, [{'a': None}, {}])
@example({'a': 1}, [{'a': True}, {'a': 1.0}, {'a': '1'}, {'a': [1]}])
@example({'a': {'$lt': 1}}, [{'a': False}, {'a': '0'}, {'a': 0}])
@example({'a__b': 1}, [{'a__b': 1}, {'a': {'b': 1}}])
@example({'a': {'$in': []}}, [{'a': 1}, {}])
@example({'a': {'$nin': []}}, [{'a': 1}, {}])
@example({'a': -0.0}, [{'a': 0}])
@example({'$not': {}}, [{}])
def test_a_compiled_filter_passes_what_the_language_says(query: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assume('$regex' not in str(query) and 'inf' not in str(query))  # what Milvus cannot do
    # Numbers are kept as floats, as they travel.
    assume(all(abs(number) <= 2**53 or isinstance(number, float) for number in numbers([query, rows])))
    expression = compile_filter(query)
    assert [passes(expression, row) for row in rows] == [oracle(query, row) for row in rows]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    'query',
    [
        {'a': {'$regex': '^a'}},
        {'a': {'$lt': float('inf')}},
        {'a': {'$gt': 2**53 + 1}},
        {'$and': [{'b': 1}, {'$not': {'a': {'$in': [1, float('-inf')]}}}]},
    ],
)
def test_what_milvus_cannot_do_exactly_is_refused_in_a_sentence(query: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilter, match='Milvus'):
        compile_filter(query)


@pytest.mark.parametrize('query', [None, {'a': {'$equals': 1}}, {'$nor': []}, {'a': {'$lt': None}}, {'a"b': 1}])
def test_what_is_no_filter_is_refused_as_ever(query: Any) -> None:
    with pytest.raises(InvalidFilter):
        compile_filter(query)


@pytest.mark.parametrize(
    'text', ['"', '\\', '\\"', 'a\nb', '\r', "it's", '{x}', '" or id >= "', '\\" or id >= \\"', '猫']
)
def test_a_text_cannot_leave_its_quotes(text: str) -> None:
    assert json.loads(literal(text)) == text
    found = compile_filter({text.replace('"', '') or 'a': {'$gte': text}})
    assert '\n' not in found
    assert json.loads('"' + found.split('>= "', 1)[1].removesuffix(')')) == text


def test_names_of_values_are_apart_and_plain() -> None:
    paths = ['a', 'a b', 'a_20_b', 'a__b', 'a_b', '_', '__', 'ä', 'a.b', '猫', 'A']
    names = [field_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert all(name.replace('_', '').isalnum() and name.isascii() for name in names if name.strip('_'))

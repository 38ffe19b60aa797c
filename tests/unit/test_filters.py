"""Filters, run on SQLite, against a small reading of the language in Python."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipflow.errors import InvalidFilter
from clipflow.filters import MAX_CONDITIONS, MAX_DEPTH, OPERATORS, REGEX_FUNCTION, compile_filter

MISSING = object()


def connection() -> sqlite3.Connection:
    """SQLite as the store sets it up, with a table of tags."""
    db = sqlite3.connect(':memory:')
    db.create_function(REGEX_FUNCTION, 2, lambda pattern, v: isinstance(v, str) and bool(re.search(pattern, v)))
    db.execute('CREATE TABLE documents (key INTEGER PRIMARY KEY, tags TEXT NOT NULL)')
    return db


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    opened = connection()
    yield opened
    opened.close()


def passing(db: sqlite3.Connection, query: dict[str, Any], rows: list[dict[str, Any]]) -> list[int]:
    """Positions of the rows that pass the compiled filter."""
    db.execute('DELETE FROM documents')
    db.executemany(
        'INSERT INTO documents VALUES (?, ?)', [(n, json.dumps(row, ensure_ascii=False)) for n, row in enumerate(rows)]
    )
    compiled = compile_filter(query)
    found = db.execute(f'SELECT key FROM documents WHERE {compiled.sql} ORDER BY key', compiled.parameters)
    return [row[0] for row in found]


def value_at(row: Any, path: str) -> Any:
    """The value behind `a__b`, or MISSING."""
    for name in path.split('__'):
        if not isinstance(row, dict) or name not in row:
            return MISSING
        row = row[name]
    return row


def is_plain(value: Any) -> bool:
    return not isinstance(value, list | dict)


def is_equal(value: Any, operand: Any) -> bool:
    if operand is None:
        return value is None or value is MISSING
    return is_plain(value) and value is not MISSING and value == operand


def is_ordered(value: Any, operator: str, operand: Any) -> bool:
    number = isinstance(value, int | float) and isinstance(operand, int | float)
    if not number and not (isinstance(value, str) and isinstance(operand, str)):
        return False
    return {
        '$lt': value < operand,
        '$lte': value <= operand,
        '$gt': value > operand,
        '$gte': value >= operand,
    }[operator]


def holds(value: Any, operator: str, operand: Any) -> bool:
    """One condition, read as the documentation says."""
    simple = {
        '$eq': lambda: is_equal(value, operand),
        '$neq': lambda: not is_equal(value, operand),
        '$in': lambda: any(is_equal(value, item) for item in operand),
        '$nin': lambda: not any(is_equal(value, item) for item in operand),
        '$exists': lambda: (value is not MISSING) == operand,
        '$size': lambda: isinstance(value, list) and len(value) == operand,
        '$regex': lambda: isinstance(value, str) and bool(re.search(operand, value)),
    }
    return simple[operator]() if operator in simple else is_ordered(value, operator, operand)


def oracle(query: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row passes."""

    def part(key: str, value: Any) -> bool:
        if key == '$and':
            return all(oracle(item, row) for item in value)
        if key == '$or':
            return any(oracle(item, row) for item in value)
        if key == '$not':
            return not oracle(value, row)
        conditions = value if isinstance(value, dict) else {'$eq': value}
        return all(holds(value_at(row, key), operator, operand) for operator, operand in conditions.items())

    return all(part(key, value) for key, value in query.items())


# Few names and values, so that they meet; beside them any text that JSON and SQLite can hold.
TEXTS = st.sampled_from(
    ['', 'a', 'b', 'A', '5', '1', 'true', 'null', '[]', '{}', '[1]', "'", '"', '%', 'ä', '猫']
) | st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=4)
NUMBERS = st.integers(-3, 6) | st.sampled_from([0.5, 5.0, -1.5, 1e300, 2**53, -(2**63), 2**63 - 1, float('inf')])
FINITE = NUMBERS.filter(lambda number: number != float('inf'))
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
NAMES = st.sampled_from(['a', 'b', 'c', 'a b', "a'b", 'a.b', '[0]', '$', 'ä', '\\', 'a\nb', '\x7f', '?', '%'])
PATHS = st.lists(NAMES.filter(lambda name: name != '$'), min_size=1, max_size=2).map('__'.join)
STORED = st.none() | st.booleans() | FINITE | TEXTS
VALUES = (
    STORED | st.lists(STORED, max_size=3) | st.dictionaries(NAMES, STORED | st.lists(STORED, max_size=2), max_size=3)
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=6)
PATTERNS = st.sampled_from(['a', '^a', 'b$', '^$', '[a-z]', '.', r'\d', '(?i)A', 'a|5', '猫', r'\['])
ORDERED = ('$lt', '$lte', '$gt', '$gte')


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    operands = {
        **dict.fromkeys(('$eq', '$neq'), SCALARS),
        **dict.fromkeys(ORDERED, st.booleans() | NUMBERS | TEXTS),
        **dict.fromkeys(('$in', '$nin'), st.lists(SCALARS, max_size=4)),
        '$regex': PATTERNS,
        '$exists': st.booleans(),
        '$size': st.integers(0, 3) | st.sampled_from([2.0]),
    }
    names = draw(st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=2, unique=True))
    return {name: draw(operands[name]) for name in names}


QUERIES = st.recursive(
    st.dictionaries(PATHS, SCALARS | conditions(), max_size=2),
    lambda inner: (
        st.fixed_dictionaries({'$and': st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({'$or': st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({'$not': inner})
    ),
    max_leaves=4,
)


@given(QUERIES, ROWS)
@settings(max_examples=600, deadline=None)
@example({'a': None}, [{}, {'a': None}, {'a': []}, {'a': 0}])
@example({'a': {'$in': [None, 'x']}}, [{}, {'a': None}, {'a': 'x'}, {'a': 'y'}])
@example({'a': {'$nin': [None]}}, [{}, {'a': None}, {'a': 'x'}])
@example({'a': '[1]'}, [{'a': [1]}, {'a': '[1]'}])
@example({'a': {'$regex': 'x'}}, [{'a': ['x']}, {'a': 'x'}])
@example({'$not': {'a': {'$gt': 1}}}, [{}, {'a': 'z'}, {'a': 2}])
@example({'a': {'$lte': 1}}, [{'a': True}, {'a': False}, {'a': 1}, {'a': 2}, {'a': '1'}])
@example({'a': {'$gt': False}}, [{'a': True}, {'a': False}, {'a': 1}, {'a': -1}, {}])
@example({'\\': 1}, [{'\\': 1}])
@example({'a\nb': 1}, [{'a\nb': 1}])
def test_a_compiled_filter_passes_what_the_language_says(query: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    db = connection()
    try:
        assert passing(db, query, rows) == [n for n, row in enumerate(rows) if oracle(query, row)]
    finally:
        db.close()


@pytest.mark.parametrize(
    ('query', 'expected'),
    [
        ({}, 'abcdefgh'),
        ({'color': 'red'}, 'a'),
        ({'color': {'$neq': 'red'}}, 'bcdefgh'),
        ({'price': {'$lt': 50}}, 'a'),
        ({'price': {'$gte': 10, '$lt': 100}}, 'ab'),
        ({'price': {'$lt': '60'}}, 'c'),
        ({'price': 50}, 'b'),
        ({'price': '50'}, 'c'),
        ({'new': True}, 'd'),
        ({'new': 1}, 'd'),
        ({'new': {'$gt': 0}}, 'd'),
        ({'new': {'$lte': True}}, 'd'),
        ({'new': {'$lt': 1}}, ''),
        ({'new': {'$gte': '1'}}, ''),
        ({'shop': None}, 'abcdefh'),
        ({'shop__city': 'Rome'}, 'g'),
        ({'shop__city': {'$exists': True}}, 'g'),
        ({'shop': {'$exists': False}}, 'abcdef'),
        ({'words': {'$size': 2}}, 'e'),
        ({'words': {'$size': 0}}, 'f'),
        ({'color': {'$in': ['red', 'blue']}}, 'ab'),
        ({'color': {'$in': []}}, ''),
        ({'color': {'$nin': ['red']}}, 'bcdefgh'),
        ({'color': {'$regex': '^(re|bl)'}}, 'ab'),
        ({'$or': [{'color': 'red'}, {'new': True}]}, 'ad'),
        ({'$and': [{'color': 'red'}, {'new': True}]}, ''),
        ({'$not': {'color': {'$in': ['red', 'blue']}}}, 'cdefgh'),
        ({'$not': {}}, ''),
    ],
)
def test_the_language_by_example(db: sqlite3.Connection, query: dict[str, Any], expected: str) -> None:
    rows = {
        'a': {'color': 'red', 'price': 10},
        'b': {'color': 'blue', 'price': 50.0},
        'c': {'price': '50'},
        'd': {'new': True},
        'e': {'words': ['x', 'y']},
        'f': {'words': []},
        'g': {'shop': {'city': 'Rome'}},
        'h': {'shop': None},
    }
    assert passing(db, query, list(rows.values())) == [n for n, name in enumerate(rows) if name in expected]


@pytest.mark.parametrize(
    'text',
    [
        "'; DROP TABLE documents; --",
        "x') OR 1=1 --",
        '" OR ""="',
        '$."a"',
        'a") IS NULL OR (1',
        '?',
        ':name',
        '\\"',
        "a' || (SELECT 1) || '",
    ],
)
def test_names_and_values_never_become_sql(db: sqlite3.Connection, text: str) -> None:
    rows = [{'a': 'harmless'}, {'a': text}]
    assert passing(db, {'a': text}, rows) == [1]
    assert passing(db, {'a': {'$in': [text]}}, rows) == [1]
    try:
        assert passing(db, {text: 'harmless'}, rows) == []
    except InvalidFilter:
        assert '"' in text
    compiled = compile_filter({'a': {'$in': [text], '$neq': text}})
    assert len(text) == 1 or text not in compiled.sql


def test_any_name_of_a_tag_compiles_or_is_refused_in_one_sentence() -> None:
    @given(st.text(st.characters(exclude_categories=['Cs']), max_size=6))
    @settings(max_examples=200, deadline=None)
    def check(name: str) -> None:
        db = connection()
        rows = [{name: 1}, {}]
        try:
            assert passing(db, {name: {'$eq': 1}}, rows) == [n for n in range(2) if value_at(rows[n], name) == 1]
        except InvalidFilter:
            assert not name or '"' in name or name.startswith('$')
        finally:
            db.close()

    check()


@pytest.mark.parametrize(
    ('query', 'named'),
    [
        (None, 'object'),
        ('color = red', 'object'),
        ([{'a': 1}], 'object'),
        ({'a': {'$equals': 1}}, r'\$equals'),
        ({'a': {}}, "'a'"),
        ({'$nor': []}, r'\$nor'),
        ({'$and': []}, r'\$and'),
        ({'$and': {'a': 1}}, r'\$and'),
        ({'$or': [1]}, r'\$or'),
        ({'$not': [{'a': 1}]}, r'\$not'),
        ({'a': {'$in': 'red'}}, r'\$in'),
        ({'a': {'$in': [[1]]}}, r'\$in'),
        ({'a': {'$in': [0] * 10_001}}, r'\$in'),
        ({'a': {'$lt': None}}, r'\$lt'),
        ({'a': {'$lt': [1]}}, r'\$lt'),
        ({'a': {'$eq': {'b': 1}}}, r'\$eq'),
        ({'a': [1, 2]}, r'\$eq'),
        ({'a': {'b': 1}}, "'b'"),
        ({'a': {'$exists': 1}}, r'\$exists'),
        ({'a': {'$size': 1.5}}, r'\$size'),
        ({'a': {'$size': True}}, r'\$size'),
        ({'a': {'$size': -1}}, r'\$size'),
        ({'a': {'$size': 1e30}}, r'\$size'),
        ({'a': {'$size': float('inf')}}, r'\$size'),
        ({'a': {'$size': float('nan')}}, r'\$size'),
        ({'a': {'$regex': 5}}, r'\$regex'),
        ({'a': {'$regex': '('}}, r'\$regex'),
        ({'a': {'$regex': 'i({9d<}>k'}}, r'\$regex'),
        ({'a': {'$regex': '(' * 450 + ')' * 450}}, r'\$regex'),
        ({'a': {'$regex': 'a' * 1001}}, r'\$regex'),
        ({'a': {'$regex': '(?:a{10000}){1000}'}}, 'repeats'),
        ({'a': {'$regex': '(?:(?:a{99}){99}){99}'}}, 'repeats'),
        ({'a': {'$regex': 'a{1000000,}'}}, 'repeats'),
        ({'a': {'$regex': '(?:' + 'a' * 900 + '){1000}'}}, 'repeats'),
        ({'a': {'$regex': '(?:a{1000})(?#c){1000}'}}, 'repeats'),
        ({'a': {'$regex': '(?x)(?:a{ 1 0 0 0 }) { 1000 }'}}, 'flag x'),
        ({'a': {'$regex': '(?i-x:a)'}}, 'flag x'),
        ({'a': float('nan')}, r'\$eq'),
        ({'a': {'$gt': 2**63}}, r'\$gt'),
        ({'': 1}, "''"),
        ({'a"' + 'x' * 10_000: 1}, 'name of a tag'),
        ({'$' + 'x' * 10_000: 1}, 'unknown operator'),
        ({'a': {'$' + 'x' * 10_000: 1}}, 'unknown operator'),
        ({'x' * 10_000: {}}, 'no condition'),
        ({'x' * 10_000: {'b': 1}}, 'unknown operator'),
        ({'a"b': 1}, 'a"b'),
    ],
)
def test_what_is_no_filter_is_refused_by_name(query: Any, named: str) -> None:
    with pytest.raises(InvalidFilter, match=named) as caught:
        compile_filter(query)
    assert len(caught.value.message) < 1500


@pytest.mark.parametrize(
    ('pattern', 'text'),
    [
        (r'^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$', '01234567-89ab-cdef-0123-456789abcdef'),
        ('^[0-9a-f]{64}$', 'a' * 64),
        (r'^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}$', '2024-01-02T03:04'),
        ('^(?:[0-9a-f]{4}:){7}[0-9a-f]{4}$', '0123:' * 7 + '0123'),
        ('^.{0,100000}$', 'x'),
        ('(?i)^X+$', 'xx'),
    ],
)
def test_patterns_that_people_write_are_taken(db: sqlite3.Connection, pattern: str, text: str) -> None:
    assert passing(db, {'a': {'$regex': pattern}}, [{'a': text}, {'a': 'y!'}])[:1] == [0]


def test_a_pattern_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(pattern: str) -> None:
        raise MemoryError

    monkeypatch.setattr('regex.compile', full)
    with pytest.raises(InvalidFilter, match='memory'):
        compile_filter({'a': {'$regex': 'a'}})


BESIDE = {'b': {'$in': [2, None], '$neq': 3}}
NESTS: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda inner: {'$not': {'$not': inner}},
    lambda inner: {**BESIDE, '$not': {'$not': inner}},
    lambda inner: {**BESIDE, '$not': {'$or': [{'c': 1}, {**BESIDE, '$not': inner}]}},
    lambda inner: {**BESIDE, '$and': [BESIDE, {**BESIDE, **inner}]},
    lambda inner: {'$or': [{'c': 1}, {**BESIDE, '$and': [BESIDE, inner]}]},
]


def nested(nest: Callable[[dict[str, Any]], dict[str, Any]], depth: int) -> dict[str, Any]:
    """The deepest filter of this form within `depth` levels."""
    query: dict[str, Any] = {'a': {'$in': [1, None], '$exists': True, '$lt': 5}}
    steps = str(nest({'a': 1})).count('$not') + str(nest({'a': 1})).count('$or') + str(nest({'a': 1})).count('$and')
    for _ in range(depth // steps):
        query = nest(query)
    return query


@pytest.mark.parametrize('nest', NESTS)
def test_a_filter_may_be_as_deep_as_promised(db: sqlite3.Connection, nest: Any) -> None:
    query, rows = nested(nest, MAX_DEPTH), [{'a': 1, 'b': 2}, {'b': 2}, {'a': 1, 'b': 3}, {}]
    assert passing(db, query, rows) == [n for n, row in enumerate(rows) if oracle(query, row)]


def test_a_filter_may_be_as_wide_as_promised(db: sqlite3.Connection) -> None:
    rows = [{'a': 1, 'b': 2}, {}]
    assert passing(db, {'$or': [{'a': n} for n in range(MAX_CONDITIONS - 1)]}, rows) == [0]
    assert passing(db, {'$and': [{}] * (MAX_CONDITIONS - 1)}, rows) == [0, 1]
    assert passing(db, {'a': {'$in': list(range(10_000))}}, rows) == [0]


@pytest.mark.parametrize(
    'query',
    [
        nested(NESTS[0], MAX_DEPTH + 2),
        nested(NESTS[0], 10_000),
        {'$or': [{'a': n} for n in range(MAX_CONDITIONS + 1)]},
        {'$or': [{}] * (MAX_CONDITIONS + 1)},
        {'$and': [{'$and': [{}] * (MAX_CONDITIONS // 2)}] * 2},
        {'$or': [{'a': {'$in': list(range(10_000))}} for _ in range(4)]},
    ],
    ids=['deep', 'very deep', 'wide', 'empty', 'empty within', 'values'],
)
def test_a_larger_filter_is_refused_before_sqlite_sees_it(query: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilter):
        compile_filter(query)

"""The filter language: DocArray's query language over tags, compiled to SQL with bound parameters.

`{'price': {'$lt': 50}}`, nested paths `a__b`, `$and`, `$or`, `$not`, and the short form `{'color': 'red'}`
for `$eq`. A document without the tag passes only `$neq`, `$nin` and `{'$exists': false}`; to compare with null means
the same as to compare with no tag. A list or an object equals nothing. true and false are the numbers 1 and 0.
"""

import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from clipflow.errors import InvalidFilter

MAX_DEPTH = 10
"""SQLite before 3.46 has a parser stack of 100; a level takes up to seven places."""
MAX_CONDITIONS = 500
MAX_PARAMETERS = 30_000
"""Of the whole filter; SQLite binds at most 32,766 in some builds."""
MAX_MEMBERS = 10_000
"""Values of one $in or $nin."""
_COMPARISONS = {'$lt': '<', '$lte': '<=', '$gt': '>', '$gte': '>='}
OPERATORS = ('$eq', '$neq', *_COMPARISONS, '$in', '$nin', '$regex', '$exists', '$size')
# Every condition is true or false, never NULL, so that NOT turns it round.
_KIND = "coalesce(json_type(tags, ?), '')"
# json_extract gives a list or an object as JSON text, which must not pass for a text.
_PLAIN = f"{_KIND} NOT IN ('array', 'object')"
MAX_COPIES = 50_000
"""Characters of a pattern with what it repeats written out, as `regex` keeps it: about 300 bytes each."""
_COUNT = re.compile(r'(\)?)\{(\d+)')
_VERBOSE = re.compile(r'\(\?[\w-]*x')
REGEX_FUNCTION = 'clipflow_regex'
"""Name under which the store registers the search function of `$regex`, with a time limit."""


@dataclass(frozen=True)
class Filter:
    """A condition for a WHERE clause over the column `tags` (JSON), and its bound parameters."""

    sql: str
    parameters: tuple[Any, ...]


def compile_filter(query: Any, indexed: Collection[str] = ()) -> Filter:
    """Compile `query`.

    Args:
        query: the filter.
        indexed: tags that the store has an index of; they are written out, as SQLite takes an index of an expression
            only for the same expression.

    Raises:
        InvalidFilter: with the place and the operators that are known.
    """
    if not isinstance(query, dict):
        raise InvalidFilter(f"a filter is an object such as {{'price': {{'$lt': 50}}}}, not {shown(query)}")
    budget = [MAX_CONDITIONS]
    compiled = _all(query, 0, budget)
    compiled = _written_out(compiled, {_path(name) for name in indexed}) if indexed else compiled
    if len(compiled.parameters) > MAX_PARAMETERS:
        raise InvalidFilter(f'the filter compares with too many values; at most about {MAX_PARAMETERS:,} in all')
    return compiled


def index_expression(name: str) -> str:
    """The SQL expression of a tag's value, as an index has it and a filter on that tag."""
    return f'json_extract(tags, {_literal(_path(name))})'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _written_out(compiled: Filter, paths: set[str]) -> Filter:
    """The filter with these paths of `json_extract` as literals in place of parameters."""
    pieces, kept = compiled.sql.split('?'), []
    sql = pieces[0]
    for value, piece in zip(compiled.parameters, pieces[1:], strict=True):
        if value in paths and sql.endswith('json_extract(tags, '):
            sql += _literal(value) + piece
        else:
            kept.append(value)
            sql += '?' + piece
    return Filter(sql, tuple(kept))


def _all(query: dict[str, Any], depth: int, budget: list[int]) -> Filter:
    if not query:
        _spend(depth, budget)  # SQLite has to take it in all the same
    return _join([_part(str(key), value, depth, budget) for key, value in query.items()], 'AND')


def _join(parts: list[Filter], word: str) -> Filter:
    if not parts:
        return Filter('1', ())
    if len(parts) == 1:
        return parts[0]
    sql = '(' + f' {word} '.join(part.sql for part in parts) + ')'
    return Filter(sql, tuple(value for part in parts for value in part.parameters))


def _part(key: str, value: Any, depth: int, budget: list[int]) -> Filter:
    _spend(depth, budget)
    if key in ('$and', '$or'):
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise InvalidFilter(f'{key} needs a list of filters, not {shown(value)}')
        return _join([_all(item, depth + 1, budget) for item in value], key[1:].upper())
    if key == '$not':
        if not isinstance(value, dict):
            raise InvalidFilter(f'$not needs a filter, not {shown(value)}')
        return _unless(True, _all(value, depth + 1, budget))
    if key.startswith('$'):
        raise InvalidFilter(
            f'unknown operator {shown(key)}; at this place $and, $or, $not or the name of a tag can stand'
        )
    conditions = value if isinstance(value, dict) else {'$eq': value}
    if not conditions:
        raise InvalidFilter(f'the tag {shown(key)} has no condition; write for instance {{"$exists": true}}')
    return _join([_condition(key, str(name), operand) for name, operand in conditions.items()], 'AND')


def _spend(depth: int, budget: list[int]) -> None:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise InvalidFilter(f'the filter is too large: at most {MAX_CONDITIONS} conditions, {MAX_DEPTH} levels deep')


def _condition(key: str, operator: str, operand: Any) -> Filter:
    path = _path(key)
    if operator in ('$eq', '$neq'):
        return _unless(operator == '$neq', _equal(path, _scalar(operator, operand)))
    if operator in _COMPARISONS:
        return _ordered(path, operator, operand)
    check = _SPECIAL.get(operator)
    if check is None:
        raise InvalidFilter(
            f'unknown operator {shown(operator)} on the tag {shown(key)}; known are {", ".join(OPERATORS)}'
        )
    return check(path, operator, operand)


def _equal(path: str, value: str | int | float | None) -> Filter:
    if not isinstance(value, str):
        # A list is given as a text, which equals no number: nothing to tell apart, and an index is enough.
        return Filter('(json_extract(tags, ?) IS ?)', (path, value))
    return Filter(f'({_PLAIN} AND json_extract(tags, ?) IS ?)', (path, path, value))


def _unless(negated: bool, inner: Filter) -> Filter:
    return Filter(f'(NOT {inner.sql})', inner.parameters) if negated else inner


def _ordered(path: str, operator: str, operand: Any) -> Filter:
    operand = _scalar(operator, operand)
    # SQLite orders numbers before texts, so a comparison has to stay within one kind.
    kinds = "('text')" if isinstance(operand, str) else "('integer', 'real', 'true', 'false')"
    if operand is None:
        raise InvalidFilter(f'{operator} needs a number or a text, not null')
    sql = f'({_KIND} IN {kinds} AND json_extract(tags, ?) {_COMPARISONS[operator]} ?)'
    return Filter(sql, (path, path, operand))


def _membership(path: str, operator: str, operand: Any) -> Filter:
    if not isinstance(operand, list) or len(operand) > MAX_MEMBERS:
        raise InvalidFilter(f'{operator} needs a list of at most {MAX_MEMBERS:,} values, not {shown(operand)}')
    values = tuple(_scalar(operator, item) for item in operand if item is not None)
    marks = ', '.join('?' * len(values))
    # Not NULL is said first, so that an index can be used and the whole is never NULL.
    within = f'json_extract(tags, ?) IS NOT NULL AND json_extract(tags, ?) IN ({marks})'
    inside = Filter(f'({within})', (path, path, *values))
    if any(isinstance(item, str) for item in values):
        inside = Filter(f'({_PLAIN} AND {within})', (path, *inside.parameters))
    if None in operand:
        inside = _join([inside, _equal(path, None)], 'OR')
    return _unless(operator == '$nin', inside)


def _regex(path: str, operator: str, operand: Any) -> Filter:
    if not isinstance(operand, str) or len(operand) > 1000:
        raise InvalidFilter(f'$regex needs a pattern of at most 1,000 characters, not {shown(operand)}')
    import regex

    if _VERBOSE.search(operand):
        raise InvalidFilter(f'the pattern {shown(operand)} of $regex has the flag x, which is not taken')
    if _copies(operand) > MAX_COPIES:
        raise InvalidFilter(
            f'the pattern {shown(operand)} of $regex repeats too much: its length times what stands in braces is more '
            f'than {MAX_COPIES:,}; write * or + for a large number'
        )
    try:
        regex.compile(operand)
    except (regex.error, ValueError, RecursionError) as error:
        raise InvalidFilter(f'the pattern {shown(operand)} of $regex is not valid: {error}') from None
    except MemoryError:
        raise InvalidFilter(f'the pattern {shown(operand)} of $regex needs more memory than there is') from None
    return Filter(f'({_PLAIN} AND {REGEX_FUNCTION}(?, json_extract(tags, ?)))', (path, operand, path))


def _copies(pattern: str) -> int:
    """At most so many characters are in a pattern once its repetitions are written out.

    Groups that are repeated are taken as if each stood in the next, so that no bracket in a set of characters or in a
    comment leads astray.
    """
    groups, widest = 1, 1
    for group, count in _COUNT.findall(pattern):
        if group:
            groups *= max(1, int(count))
        else:
            widest = max(widest, int(count))
    return len(pattern) * groups * widest


def _exists(path: str, operator: str, operand: Any) -> Filter:
    if not isinstance(operand, bool):
        raise InvalidFilter(f'$exists needs true or false, not {shown(operand)}')
    return Filter(f'(json_type(tags, ?) IS {"NOT " if operand else ""}NULL)', (path,))


def _size(path: str, operator: str, operand: Any) -> Filter:
    number = isinstance(operand, int | float) and not isinstance(operand, bool)
    if not number or not 0 <= operand < 2**31 or operand != int(operand):
        raise InvalidFilter(f'$size needs a whole number, not {shown(operand)}')
    return Filter(f"({_KIND} = 'array' AND json_array_length(tags, ?) = ?)", (path, path, int(operand)))


_SPECIAL: dict[str, Callable[[str, str, Any], Filter]] = {
    '$in': _membership,
    '$nin': _membership,
    '$regex': _regex,
    '$exists': _exists,
    '$size': _size,
}


def can_name(tag: str) -> bool:
    """Whether a filter can speak of the tag of this name, one that is not inside another."""
    return bool(tag) and not tag.startswith('$') and '__' not in tag and '"' not in tag


def _path(key: str) -> str:
    """`a__b` as the JSON path `$."a"."b"`; a quote in a name cannot leave its quotes."""
    parts = key.split('__')
    if not key or '"' in key:
        raise InvalidFilter(f'{shown(key)} cannot be the name of a tag in a filter')
    # Names are compared as they are written in the JSON text, so they are escaped as there.
    return '$' + ''.join('.' + json.dumps(part, ensure_ascii=False) for part in parts)


def _scalar(operator: str, value: Any) -> str | int | float | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidFilter(f'{operator} compares with 64-bit numbers, not with {shown(value)}')
    if isinstance(value, str) and '\0' in value:
        raise InvalidFilter(f'{operator} compares with a text without the character NUL; no tag can hold one')
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    raise InvalidFilter(f'{operator} compares with a number, a text, true, false or null, not with {shown(value)}')


def shown(value: Any) -> str:
    """What somebody gave, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'

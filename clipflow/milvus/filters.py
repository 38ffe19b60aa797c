"""The filter language compiled to an expression of Milvus over `terms` and `values` of a document (`terms.py`).

What is asked for is the same as of SQLite (`clipflow.filters`), where the language is explained and checked.
"""

import json
import math
from operator import ge, gt, le, lt
from typing import Any

from clipflow import filters
from clipflow.errors import InvalidFilter
from clipflow.milvus.terms import KINDS, PRESENT, field_name, kind_term, number_term, size_term, text_term

ALL = 'id >= ""'
NONE = 'id == ""'
_COMPARISONS = {'$lt': ('<', lt), '$lte': ('<=', le), '$gt': ('>', gt), '$gte': ('>=', ge)}
_LARGEST = 2**53


def compile_filter(query: Any) -> str:
    """Compile `query`.

    Raises:
        InvalidFilter: it is no filter, or Milvus cannot apply it exactly.
    """
    filters.compile_filter(query)
    return _all(query)


def literal(text: str) -> str:
    """A text as it stands in an expression. Milvus and Milvus Lite know these escapes alike, and no others."""
    escaped = text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n').replace('\r', '\\r')
    return f'"{escaped}"'


def _all(query: dict[str, Any]) -> str:
    return _join([_part(str(key), value) for key, value in query.items()], 'and')


def _join(parts: list[str], word: str) -> str:
    if len(parts) == 1:
        return parts[0]
    return '(' + f' {word} '.join(parts) + ')' if parts else ALL


def _part(key: str, value: Any) -> str:
    if key in ('$and', '$or'):
        return _join([_all(item) for item in value], key[1:])
    if key == '$not':
        return _not(_all(value))
    conditions = value if isinstance(value, dict) else {'$eq': value}
    return _join([_condition(key, str(name), operand) for name, operand in conditions.items()], 'and')


def _condition(path: str, operator: str, operand: Any) -> str:
    if operator in ('$eq', '$neq', '$in', '$nin'):
        inside = _among(path, operand if isinstance(operand, list) else [operand])
        return _not(inside) if operator in ('$neq', '$nin') else inside
    if operator in _COMPARISONS:
        return _ordered(path, operator, operand)
    if operator == '$exists':
        there = _any([kind_term(path, kind) for kind in KINDS])
        return there if operand else _not(there)
    if operator == '$size':
        return _any([size_term(path, int(operand))])
    raise InvalidFilter(
        f'{operator} on the tag {filters.shown(path)}: documents in Milvus cannot be filtered by a pattern'
    )


def _among(path: str, operands: list[Any]) -> str:
    terms = [
        text_term(path, value) if isinstance(value, str) else number_term(path, _number('$eq', value))
        for value in operands
        if value is not None
    ]
    missing = [_not(_any([kind_term(path, kind) for kind in PRESENT]))] if None in operands else []
    return _join([*([_any(terms)] if terms else []), *missing], 'or') if operands else NONE


def _ordered(path: str, operator: str, operand: Any) -> str:
    sign, holds = _COMPARISONS[operator]
    if isinstance(operand, str):
        return _compared(path, 'text', sign, literal(operand))
    number = _number(operator, operand)
    # true and false are not among the values, but have the terms of 1 and 0.
    truths = [number_term(path, truth) for truth in (False, True) if holds(truth, number)]
    return _join([_compared(path, 'number', sign, repr(number)), *([_any(truths)] if truths else [])], 'or')


def _compared(path: str, kind: str, sign: str, value: str) -> str:
    return f'({_any([kind_term(path, kind)])} and values["{field_name(path)}"] {sign} {value})'


def _number(operator: str, value: Any) -> float:
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) > _LARGEST):
        raise InvalidFilter(f'{operator} compares with finite numbers, whole ones up to 2**53 in Milvus, not {value!r}')
    return float(value)


def _any(terms: list[str]) -> str:
    return f'array_contains_any(terms, {json.dumps(terms)})'


def _not(condition: str) -> str:
    return f'not ({condition})'

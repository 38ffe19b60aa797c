"""Order by the value of a tag."""

from typing import Any

import pytest

from clipflow.order import mark_of, ordered, parse, tag_value


@pytest.mark.parametrize(
    ('path', 'expected'),
    [('a', 1), ('b__c', 'x'), ('b__d', None), ('a__c', None), ('missing', None), ('b', {'c': 'x'})],
)
def test_a_nested_value_is_found_by_its_path(path: str, expected: Any) -> None:
    assert tag_value({'a': 1, 'b': {'c': 'x'}}, path) == expected


def test_numbers_come_before_texts_and_both_before_what_has_no_value_in_both_directions() -> None:
    values: list[Any] = ['b', None, 2, True, [1], 'a', -0.5, {'x': 1}]
    up = ordered(values, mark_of, descending=False)
    assert up == [-0.5, True, 2, 'a', 'b', None, [1], {'x': 1}]
    down = ordered(values, mark_of, descending=True)
    assert down == [2, True, -0.5, 'b', 'a', None, [1], {'x': 1}]


def test_what_is_equal_stays_as_it_stands() -> None:
    pairs = [(1, 'first'), (0, 'second'), (1, 'third')]
    for descending, expected in ((False, ['second', 'first', 'third']), (True, ['first', 'third', 'second'])):
        found = ordered(pairs, lambda pair: mark_of(pair[0]), descending=descending)
        assert [name for _, name in found] == expected


def test_a_minus_turns_the_order_round() -> None:
    assert (parse('price'), parse('-shop__price')) == (('price', False), ('shop__price', True))

"""The rules find every mistake that is planted, name it rightly, and put up with whatever comes."""

import random
from copy import deepcopy
from typing import Any

import pytest

from . import rules
from .conftest import OUTSIDE, Objects
from .mutants import MUTANTS, Mutant
from .test_manifests import Build


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.title)
def test_a_planted_mistake_breaks_exactly_its_rule(built: Build, mutant: Mutant) -> None:
    broken = rules.check(mutant.plant(built(mutant.chosen)), OUTSIDE)
    assert {fault.rule for fault in broken} == {mutant.rule}, broken
    assert all(fault.where != '?/?' and fault.sentence for fault in broken)


def test_every_rule_has_a_mistake_that_it_finds() -> None:
    assert set(rules.RULES) - {mutant.rule for mutant in MUTANTS} == set()


ODD: list[Any] = [None, 0, -1, True, '', 'x', [], {}, [None], ['x'], {'x': None}, 1.5, '\u00e4' * 300]


def _places(value: Any) -> list[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in entries for place in [(value, key), *_places(entry)]]


@pytest.mark.parametrize('seed', range(10))
def test_odd_objects_are_no_reason_to_fail(built: Build, seed: int) -> None:
    chance = random.Random(seed)
    for chosen in ('full', 'served'):
        objects: Objects = deepcopy(built(chosen))
        for _ in range(60):
            holder, key = chance.choice(_places(objects))
            holder[key] = deepcopy(chance.choice(ODD))
        assert rules.check(objects, OUTSIDE)


@pytest.mark.parametrize(
    'objects', [[], [None], ['x', 3, []], [{}], [{'kind': 'Deployment'}], [{'kind': ['x'], 'spec': 3}]]
)
def test_what_is_no_object_is_no_reason_to_fail(objects: list[Any]) -> None:
    rules.check(objects)

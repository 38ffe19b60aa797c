"""Intervals: what they must hold, how wide they are, and that pictures are drawn, not captions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipflow.relevance import bootstrap
from clipflow.relevance.metrics import MEDIAN

ALONE = np.arange(400)


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    values = np.repeat([1.0, 0.0], [100, 300])
    found = bootstrap.estimate('R@1', values, ALONE)
    # 1.96 x sqrt(0.25 x 0.75 / 400) = 0.0424.
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - 0.0424, abs=0.006)
    assert found.high == pytest.approx(0.25 + 0.0424, abs=0.006)


def test_captions_of_one_picture_count_as_one_observation() -> None:
    # Five captions a picture that succeed together: as uncertain as 80 observations, not 400.
    values = np.repeat([1.0, 0.0], [100, 300])
    found = bootstrap.estimate('R@1', values, ALONE // 5)
    # 1.96 x sqrt(0.25 x 0.75 / 80) = 0.0949.
    assert found.high - found.low == pytest.approx(2 * 0.0949, rel=0.12)


def test_what_differs_nowhere_has_no_interval() -> None:
    values = np.tile([1.0, 0.0], 200)
    found = bootstrap.difference('R@1', values, values, ALONE)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_two_systems_are_compared_on_the_same_draws() -> None:
    rng = np.random.default_rng(1)
    first = (rng.random(400) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:20]] = 1
    found = bootstrap.difference('R@1', first, second, ALONE)
    # Twenty of 400 differ, all in one direction: 0.05, plus or minus 1.96 x sqrt(0.05 x 0.95 / 400) = 0.0214. Unpaired,
    # it would be 0.07.
    assert found.value == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - 0.0214, 0.05 + 0.0214), abs=0.006)


def test_the_same_numbers_give_the_same_interval() -> None:
    values = np.random.default_rng(0).random(400)
    assert bootstrap.estimate('MRR', values, ALONE) == bootstrap.estimate('MRR', values, ALONE)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 3))
def test_a_drawn_median_is_that_of_the_values_repeated(values: list[int], together: int) -> None:
    ascending = np.sort(np.asarray(values, float))
    weights = np.random.default_rng(together).integers(0, 4, (5, len(values))) + (np.arange(len(values)) == 0)
    expected = [float(np.median(np.repeat(ascending, row))) for row in weights]
    assert bootstrap._medians(ascending, weights).tolist() == expected


def test_the_draws_do_not_depend_on_how_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(1, 50, 400).astype(float)
    whole = [bootstrap.drawn(name, values, ALONE // 5) for name in ('MRR', MEDIAN)]
    monkeypatch.setattr(bootstrap, '_NUMBERS', 3000)
    for name, expected in zip(('MRR', MEDIAN), whole, strict=True):
        assert bootstrap.drawn(name, values, ALONE // 5) == pytest.approx(expected)


def test_the_median_of_draws_lies_around_the_median() -> None:
    found = bootstrap.estimate(MEDIAN, np.arange(1.0, 402.0), np.arange(401))
    # The order statistics at 200.5 +- 1.96 x sqrt(401) / 2: about 181 and 221.
    assert found.value == 201
    assert (found.low, found.high) == pytest.approx((181, 221), abs=4)

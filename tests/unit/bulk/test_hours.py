"""The estimate of hours and cost, by hand."""

import pytest

from hours import Prices, Rates, estimate


def test_hours_cores_runs_and_cost() -> None:
    # 8,000 a second: 10,000 s for 80 million, 32 cores that decode, and two writers.
    hours, cores, runs, cost = estimate(80e6, 8, Rates(gpu=1000, decoding=0.004, writing=5000), Prices(2.0, 0.1))
    assert hours == pytest.approx(10_000 / 3600)
    assert (cores, runs) == (32, 2)
    assert cost == pytest.approx(10_000 / 3600 * (8 * 2.0 + 32 * 0.1))

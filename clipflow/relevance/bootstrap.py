"""Intervals by the bootstrap over pictures: how much a measure would change had other pictures been drawn.

Pictures are drawn, never captions: the captions of one picture succeed and fail together, and an interval that took
them for independent would be too narrow. The items that are searched stay as they are.

Percentile intervals: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13. Two systems are
compared on the same draws (the paired bootstrap of Koehn 2004, "Statistical Significance Tests for Machine Translation
Evaluation"), which takes out what makes a picture hard for both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipflow.relevance.metrics import MEDIAN

DRAWS = 1000
SEED = 0
LEVEL = 95.0
_NUMBERS = 1 << 22
"""In memory at once."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A measure and its 95 % interval."""

    value: float
    low: float
    high: float


def total(name: str, values: Values) -> float:
    """The measure of [Q] contributions: the median for `median rank`, else the mean."""
    return float(np.median(values) if name == MEDIAN else values.mean())


def estimate(name: str, values: Values, pictures: NDArray[np.int64]) -> Estimate:
    """A measure and its interval.

    Args:
        name: of the measure.
        values: what each query contributes, [Q].
        pictures: which picture each query belongs to, [Q].
    """
    return _estimate(total(name, values), drawn(name, values, pictures))


def difference(name: str, first: Values, second: Values, pictures: NDArray[np.int64]) -> Estimate:
    """How much more `second` reaches than `first` in the same queries, see `estimate`."""
    value = total(name, second) - total(name, first)
    # The same seed and the same pictures: the same draws.
    return _estimate(value, drawn(name, second, pictures) - drawn(name, first, pictures))


def estimates(values: Mapping[str, Values], pictures: NDArray[np.int64]) -> dict[str, Estimate]:
    """`estimate` of every measure."""
    return {name: estimate(name, each, pictures) for name, each in values.items()}


def differences(
    first: Mapping[str, Values], second: Mapping[str, Values], pictures: NDArray[np.int64]
) -> dict[str, Estimate]:
    """`difference` of every measure."""
    return {name: difference(name, first[name], second[name], pictures) for name in first}


def drawn(name: str, values: Values, pictures: NDArray[np.int64]) -> Values:
    """The measure in each of the draws, [1000]."""
    _, of_query = np.unique(pictures, return_inverse=True)
    count = int(of_query.max()) + 1
    if name == MEDIAN:
        order = np.argsort(values, kind='stable')
        found = [_medians(values[order], weights[:, of_query[order]]) for weights in _weights(count, len(values))]
    else:
        sums, sizes = np.bincount(of_query, values, count), np.bincount(of_query, minlength=count)
        found = [(weights @ sums) / (weights @ sizes) for weights in _weights(count, count)]
    return np.concatenate(found)


def _weights(count: int, width: int) -> Iterator[NDArray[np.int64]]:
    """How often each of `count` pictures is drawn, [some draws, count], until there are enough draws."""
    rng = np.random.default_rng(SEED)
    step = max(1, _NUMBERS // max(count, width))
    for start in range(0, DRAWS, step):
        rows = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(min(step, DRAWS - start))]
        yield np.stack(rows)


def _medians(ascending: Values, weights: NDArray[np.int64]) -> Values:
    """The median of [Q] values, each counted as often as [draws, Q] says; [draws]."""
    reached = 2 * np.cumsum(weights, axis=1)
    whole = reached[:, -1:] // 2
    low, high = (reached >= whole).argmax(axis=1), (reached > whole).argmax(axis=1)
    medians: Values = (ascending[low] + ascending[high]) / 2
    return medians


def _estimate(value: float, draws: Values) -> Estimate:
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))

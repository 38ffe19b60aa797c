"""From captions to a calibration: the fit, its measure, and what is refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.rank.calibration import Calibration, rarity_of
from clipflow.relevance.calibrate import SHOWN, Shown, expected_error, fitted, reliability, shown

TRUE = (-6.0, 14.0, 0.6)


def results(count: int, seed: int, factors: tuple[float, float, float] = TRUE) -> Shown:
    """Results that are right as often as a known formula says."""
    rng = np.random.default_rng(seed)
    scores, above = rng.uniform(0, 0.5, count), rng.uniform(0, 0.5, count)
    chance = 1 / (1 + np.exp(-(factors[0] + factors[1] * scores + factors[2] * rarity_of(above))))
    return Shown(scores, above, rng.random(count) < chance)


def test_a_known_formula_is_found_again_and_holds_for_other_results() -> None:
    found = fitted(results(40_000, 1))
    assert found == pytest.approx(TRUE, rel=0.1)
    other = results(40_000, 2)
    chance = Calibration('x', 'x', *found, 0.0, 1, 1).probability(other.scores, other.above)
    bins = reliability(chance, other.right)
    assert expected_error(bins) < 0.01
    assert sum(each.count for each in bins) == 40_000
    assert all(each.low <= each.probability <= each.high for each in bins)


def test_the_fit_is_the_most_probable_one() -> None:
    given = results(2000, 3)
    constant, cosine, rarity = fitted(given)
    count = given.right.sum()
    targets = np.where(given.right, (count + 1) / (count + 2), 1 / (len(given.right) - count + 2))
    columns = np.stack([np.ones(2000), given.scores, rarity_of(given.above)])

    def loss(weights: NDArray[np.float64]) -> float:
        logits = weights @ columns
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    best = np.array([constant, cosine, rarity])
    for change in (*np.eye(3), *-np.eye(3)):
        assert loss(best + 0.01 * change) > loss(best)


def test_what_is_separable_stays_finite() -> None:
    scores = np.linspace(0, 1, 200)
    found = fitted(Shown(scores, 1 - scores, scores > 0.5))
    assert np.isfinite(found).all()
    chance = Calibration('x', 'x', *found, 0.0, 1, 1).probability(scores, 1 - scores)
    assert (np.diff(chance) >= 0).all()
    assert chance[0] < 0.05
    assert chance[-1] > 0.95


def test_scores_that_tell_nothing_are_refused() -> None:
    with pytest.raises(InvalidParameter, match='do not tell'):
        fitted(results(20_000, 4, (1.0, -14.0, -0.6)))


def test_the_error_is_the_mean_distance_over_bins() -> None:
    probabilities = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 1.0])
    right = np.array([False, False, False, True, True, False])
    bins = reliability(probabilities, right)
    assert [(each.low, each.count, each.right) for each in bins] == [(0.0, 4, 0.25), (0.9, 2, 0.5)]
    assert expected_error(bins) == pytest.approx((4 * 0.2 + 2 * 0.475) / 6)


def test_what_a_user_would_see_is_what_counts() -> None:
    rng = np.random.default_rng(5)
    pictures = rng.normal(size=(30, 16)).astype(np.float32)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    own = np.array([3, 7])
    seen = shown(pictures[own], pictures, own)
    assert seen.scores.shape == seen.above.shape == seen.right.shape == (2 * SHOWN,)
    for part in range(2):
        rows = slice(part * SHOWN, (part + 1) * SHOWN)
        cosines = np.sort(pictures.astype(float) @ pictures[own[part]].astype(float))[::-1]
        assert seen.scores[rows] == pytest.approx(cosines[:SHOWN])
        assert seen.above[rows] == pytest.approx([n / 30 for n in range(SHOWN)])
        assert seen.right[rows].tolist() == [True] + [False] * (SHOWN - 1)

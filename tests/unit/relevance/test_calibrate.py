"""From captions to a calibration: the fit, its measure, and what is refused."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.rank.calibration import Calibration, rarity_of
from clipflow.relevance.album import Picture
from clipflow.relevance.calibrate import SHOWN, Shown, calibrate, expected_error, fitted, reliability, shown
from clipflow.relevance.captions import CaptionSet
from clipflow.relevance.embedding import Embedded
from clipflow.settings import EncoderSettings
from clipflow.weights import load_spec

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


def test_pictures_that_are_there_twice_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    said = vectors + rng.normal(0, 0.3, vectors.shape).astype(np.float32)
    said /= np.linalg.norm(said, axis=1, keepdims=True)

    class Model:
        """Picture and text number n of the first 60 come again from number 60 on."""

        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> 'Model':
            return self

        def __exit__(self, *_: object) -> None: ...

        def pictures(self, pictures: Sequence[Picture], moved: object) -> Embedded:
            return self._found(vectors, len(pictures))

        def texts(self, texts: Sequence[str], forms: object, moved: object) -> Embedded:
            return self._found(said, len(texts))

        def _found(self, rows: NDArray[np.float32], count: int) -> Embedded:
            places = np.arange(count)
            return Embedded(rows[places % 60], places, tuple(str(place % 60) for place in places), ())

    @contextmanager
    def progress(title: str, count: int) -> Iterator[Callable[[int], None]]:
        yield lambda more: None

    def found(count: int) -> Calibration:
        pictures = tuple(Picture(f'{place}.jpg', tmp_path) for place in range(count))
        chosen = CaptionSet(pictures, tuple((place, f'text {place % 60}') for place in range(count)), ())
        return calibrate(load_spec(EncoderSettings().model), EncoderSettings(), chosen, progress).calibration

    monkeypatch.setattr('clipflow.relevance.calibrate.Embedding', Model)
    assert (found(60).pictures, found(60).captions) == (60, 60)
    assert found(90) == found(60)


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

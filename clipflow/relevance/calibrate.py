"""From captions to a calibration: how often a picture that is shown with some score is the one that was described.

For each caption the best ten pictures are what a user would see; of these, one or none is the picture that the caption
was written for. That is a strict notion of relevance: another picture may fit as well and counts as wrong. So a
probability is rather too small than too large.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipflow import templates
from clipflow.errors import InvalidParameter
from clipflow.index.background import SAMPLE
from clipflow.quantiles import share_above
from clipflow.rank.calibration import Calibration, rarity_of, sigmoid
from clipflow.relevance.album import Fault
from clipflow.relevance.captions import CaptionSet
from clipflow.relevance.embedding import Embedded, Embedding, distinct, owners, rows
from clipflow.relevance.systems import Progress
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec

SHOWN = 10
BINS = 10
_FEWEST = 20
"""Pictures; half of them are held out."""
_STEPS = 100
_SMALL = 1e-10


@dataclass(frozen=True)
class Shown:
    """Results of some captions, all arrays [n].

    Attributes:
        scores: cosines.
        above: share of a sample of the pictures that scores higher.
        right: whether the caption was written for this picture.
    """

    scores: NDArray[np.float64]
    above: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """Results whose probability lies between `low` and `high`: how many, their mean probability, the share right."""

    low: float
    high: float
    count: int
    probability: float
    right: float


@dataclass(frozen=True)
class Calibrated:
    """A calibration, its reliability on held-out captions, and what was left out."""

    calibration: Calibration
    bins: tuple[Bin, ...]
    faults: tuple[Fault, ...]


def calibrate(spec: ModelSpec, encoding: EncoderSettings, chosen: CaptionSet, progress: Progress) -> Calibrated:
    """Fit on the captions of one half of the pictures, measure on those of the other, among all pictures.

    Raises:
        InvalidParameter: too few pictures, or scores that do not tell right from wrong.
        ClipflowError: the model cannot be loaded.
    """
    texts = [text for _, text in chosen.captions]
    forms = templates.usual(encoding.templates, spec.templates)
    with Embedding(spec, encoding) as embedding:
        with progress(f'{spec.name}: pictures', len(chosen.pictures)) as moved:
            pictures = embedding.pictures(chosen.pictures, moved)
        with progress(f'{spec.name}: texts', len(texts)) as moved:
            captions = embedding.texts(texts, forms, moved)
    gallery, vectors, own = _distinct(chosen, pictures, captions)
    if len(np.unique(own)) < _FEWEST:
        raise InvalidParameter(
            f'{len(np.unique(own))} pictures with captions are too few for a calibration; {_FEWEST} are the least, '
            'and some hundreds make it good'
        )
    held = np.zeros(len(gallery), dtype=bool)
    held[np.random.default_rng(0).permutation(len(held))[::2]] = True
    learned = shown(vectors[~held[own]], gallery, own[~held[own]])
    tested = shown(vectors[held[own]], gallery, own[held[own]])
    constant, cosine, rarity = fitted(learned)
    fit = Calibration(spec.fingerprint, spec.name, constant, cosine, rarity, 0.0, len(gallery), len(own))
    bins = reliability(fit.probability(tested.scores, tested.above), tested.right)
    measured = replace(fit, error=round(expected_error(bins), 6))
    return Calibrated(measured, bins, (*chosen.faults, *pictures.faults, *captions.faults))


def _distinct(
    chosen: CaptionSet, pictures: Embedded, captions: Embedded
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Vectors of pictures, each content once (of two that tie one would count as wrong), and of what is said of them,
    with the row of its picture; [P, D], [T, D], [T].
    """
    owner = owners(chosen, pictures)
    lines = distinct(chosen, owner, captions.kept[np.isin(owner[captions.kept], pictures.kept)])
    gallery = pictures.kept[np.sort(np.unique(pictures.contents, return_index=True)[1])]
    return rows(pictures, gallery), rows(captions, lines), np.searchsorted(gallery, owner[lines])


def shown(texts: NDArray[np.float32], pictures: NDArray[np.float32], own: NDArray[np.int64]) -> Shown:
    """The best of all pictures [P, D] for each of some captions [T, D], whose own pictures are the rows `own` [T]."""
    sample = np.random.default_rng(1).permutation(len(pictures))[:SAMPLE]
    rows = pictures.astype(np.float64)
    scores, above, right = [], [], []
    for text, mine in zip(texts.astype(np.float64), own, strict=True):
        cosines = rows @ text
        best = np.argsort(-cosines, kind='stable')[:SHOWN]
        scores.append(cosines[best])
        above.append(share_above(cosines[best], np.sort(cosines[sample])))
        right.append(best == mine)
    return Shown(np.concatenate(scores), np.concatenate(above), np.concatenate(right))


def fitted(results: Shown) -> tuple[float, float, float]:
    """Constant, and factors of the cosine and the rarity, neither of which is negative.

    Raises:
        InvalidParameter: better scores are not more often right.
    """
    columns = np.stack([results.scores, rarity_of(results.above)], axis=1)
    for used in ((0, 1), (1,), (0,)):
        constant, *factors = _logistic(columns[:, used], results.right)
        if all(factor >= 0 for factor in factors) and any(factors):
            found = dict(zip(used, factors, strict=True))
            return constant, found.get(0, 0.0), found.get(1, 0.0)
    raise InvalidParameter(
        'the scores of this model do not tell the pictures that were described from others; are these captions in a '
        'language that it knows?'
    )


def _logistic(columns: NDArray[np.float64], right: NDArray[np.bool_]) -> list[float]:
    """Constant and factors of the most probable logistic function of [n, k] columns, by Newton's method.

    The targets are not quite 0 and 1 (Platt 1999), so that the answer is finite; a step is halved until it gains (Lin,
    Lin and Weng 2007, "A note on Platt's probabilistic outputs for support vector machines").
    """
    middle, width = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-12)
    rows = np.hstack([np.ones((len(columns), 1)), (columns - middle) / width])
    count = int(right.sum())
    targets = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))

    def loss(weights: NDArray[np.float64]) -> float:
        logits = rows @ weights
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    weights = np.zeros(rows.shape[1])
    for _ in range(_STEPS):
        chance = sigmoid(rows @ weights)
        curvature = (rows * (chance * (1 - chance))[:, None]).T @ rows + _SMALL * np.eye(len(weights))
        step = np.linalg.solve(curvature, rows.T @ (chance - targets))
        while loss(weights - step) > loss(weights) and np.abs(step).max() > _SMALL:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() <= _SMALL:
            break
    factors = weights[1:] / width
    return [float(weights[0] - factors @ middle), *(float(factor) for factor in factors)]


def reliability(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Ten bins of equal width; those without results are left out."""
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    found = []
    for place in np.unique(places):
        inside = places == place
        mean, share = float(probabilities[inside].mean()), float(right[inside].mean())
        found.append(Bin(place / BINS, (place + 1) / BINS, int(inside.sum()), mean, share))
    return tuple(found)


def expected_error(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error (Naeini, Cooper, Hauskrecht 2015): mean distance of probability and share right."""
    total = sum(found.count for found in bins)
    return sum(found.count * abs(found.probability - found.right) for found in bins) / total

"""Fits a head to lists of results of which some are right, in seconds on a CPU, and measures its order.

The loss of a list is pairwise and logistic, as in RankNet (Burges et al.: Learning to rank using gradient descent, ICML
2005): each right result should score more than each other one. A right result counts with its gain; for clicks that is
1 / propensity of its place, which makes the sum what it would be had people looked at everything (propensity-weighted
ranking: Joachims, Swaminathan, Schnabel, WSDM 2017). What was shown and not clicked are the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BATCH = 128
STEPS = 2000
"""At most; a small log is read more often."""
PATIENCE = 10
RATE = 1e-3
SHARPNESS = 20.0
"""Scores are multiplied by this in the loss; cosines of good and bad results differ by some hundredths."""
DECAY = 1e-3
CUT = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lists:
    """L lists of up to N results each, over M different documents, with D numbers in a vector.

    Attributes:
        queries: unit vectors, [L, D].
        vectors: unit vectors of all documents, [M, D].
        places: which documents a list has, [L, N], -1 where it has fewer.
        gains: how much a result is worth, [L, N], 0 for one that is not right.
        groups: lists with the same number are of the same query, [L].
    """

    queries: NDArray[np.float32]
    vectors: NDArray[np.float32]
    places: NDArray[np.int64]
    gains: Floats
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> 'Lists':
        """Some of the lists."""
        return Lists(self.queries[chosen], self.vectors, self.places[chosen], self.gains[chosen], self.groups[chosen])


def split(lists: Lists, share: float, seed: int) -> tuple[Lists, Lists]:
    """Lists of two parts without a common query, the second with about `share` of the queries."""
    groups = np.unique(lists.groups)
    rng = np.random.default_rng(seed)
    taken = rng.permutation(groups)[: max(1, round(len(groups) * share))]
    second = np.isin(lists.groups, taken)
    return lists.part(~second), lists.part(second)


def measure(lists: Lists, moved: NDArray[np.floating]) -> dict[str, Floats]:
    """nDCG and Recall@5 of each list, ordered by the cosines with queries [L, D]; each right result counts its gain.

    Of equal scores that of a right result stands last.
    """
    count = lists.places.shape[1]
    found = np.empty((len(lists), count))
    for start in range(0, len(lists), BATCH):
        rows = slice(start, start + BATCH)
        found[rows] = (lists.vectors[lists.places[rows]] @ moved[rows][:, :, None])[:, :, 0]
    found[lists.places < 0] = -np.inf
    order = np.lexsort((lists.gains, -found), axis=1)
    gains = np.take_along_axis(lists.gains, order, axis=1)
    discounts = 1 / np.log2(np.arange(2, count + 2))
    ideal = -np.sort(-lists.gains, axis=1) @ discounts
    right = lists.gains.sum(axis=1)
    return {
        'nDCG': (gains @ discounts) / np.where(ideal > 0, ideal, 1),
        f'Recall@{CUT}': gains[:, :CUT].sum(axis=1) / np.where(right > 0, right, 1),
    }


def fit(
    lists: Lists, validation: Lists, rank: int, seed: int, told: Callable[[int, float, float], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The matrices of a head, [R, D] and [D, R].

    Training begins with the identity, is pulled back to it by the square of the whole matrix, and keeps what had the
    least loss on `validation`, which may be the identity.

    Args:
        lists: what is learned from.
        validation: what training stops by; other queries than those of `lists`.
        rank: R.
        seed: of the start and of the order of the lists.
        told: after each epoch its number, the loss, and that on `validation`.
    """
    rng = np.random.default_rng(seed)
    dimension = lists.queries.shape[1]
    weights = [rng.normal(0, dimension**-0.5, (rank, dimension)), np.zeros((dimension, rank))]
    adam = _Adam(weights)
    best = [matrix.copy() for matrix in weights]
    least, since = _mean_loss(validation, *weights), 0
    for epoch in range(1, STEPS * BATCH // max(len(lists), BATCH) + 1):
        order, losses = rng.permutation(len(lists)), []
        for start in range(0, len(lists), BATCH):
            loss, gradients = _loss(lists.part(order[start : start + BATCH]), *weights)
            losses.append(loss)
            adam.step(gradients)
        reached = _mean_loss(validation, *weights)
        told(epoch, float(np.mean(losses)), reached)
        since += 1
        if reached < least:
            best, least, since = [matrix.copy() for matrix in weights], reached, 0
        elif since == PATIENCE:
            break
    down, up = (matrix.astype(np.float32) for matrix in best)
    return down, up


class _Adam:
    """Changes matrices in place (Kingma, Ba: Adam, ICLR 2015, with its usual constants)."""

    def __init__(self, weights: list[Floats]) -> None:
        self._weights = weights
        self._means, self._squares = ([np.zeros_like(matrix) for matrix in weights] for _ in range(2))
        self._steps = 0

    def step(self, gradients: list[Floats]) -> None:
        self._steps += 1
        for number, gradient in enumerate(gradients):
            self._means[number] += 0.1 * (gradient - self._means[number])
            self._squares[number] += 0.001 * (gradient**2 - self._squares[number])
            mean = self._means[number] / (1 - 0.9**self._steps)
            square = self._squares[number] / (1 - 0.999**self._steps)
            self._weights[number] -= RATE * mean / (np.sqrt(square) + 1e-8)


def _mean_loss(lists: Lists, down: Floats, up: Floats) -> float:
    starts = range(0, len(lists), BATCH)
    parts = [lists.part(np.arange(start, min(start + BATCH, len(lists)))) for start in starts]
    losses = [_loss(part, down, up)[0] for part in parts]
    return float(np.average(losses, weights=[part.gains.sum() for part in parts]))


def _loss(lists: Lists, down: Floats, up: Floats) -> tuple[float, list[Floats]]:
    """The mean loss of the lists, and its gradients by `down` and `up`."""
    queries, rows = lists.queries.astype(np.float64), lists.vectors[lists.places].astype(np.float64)
    inner = queries @ down.T
    raw = queries + inner @ up.T
    length = np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    unit = raw / length
    scores = SHARPNESS * (rows @ unit[:, :, None])[:, :, 0]
    others = (lists.places >= 0) & (lists.gains == 0)
    # One row for each right result: the lists it is in, and its margins to the others of that list.
    number, place = np.nonzero(lists.gains)
    gains = lists.gains[number, place]
    pairs = others[number] * (gains / np.maximum(others[number].sum(axis=1), 1))[:, None] / gains.sum()
    margins = scores[number, place][:, None] - scores[number]
    loss = float((pairs * np.logaddexp(0, -margins)).sum())
    # d log(1 + exp(-m)) / dm = -1 / (1 + exp(m))
    slopes = SHARPNESS * pairs / (1 + np.exp(np.clip(margins, -50, 50)))
    by_score = np.zeros_like(scores)
    np.add.at(by_score, number, slopes)
    np.add.at(by_score, (number, place), -slopes.sum(axis=1))
    by_unit = (by_score[:, None, :] @ rows)[:, 0]
    by_raw = (by_unit - (by_unit * unit).sum(axis=1, keepdims=True) * unit) / length
    by_up = by_raw.T @ inner + 2 * DECAY * up @ (down @ down.T)
    by_down = (by_raw @ up).T @ queries + 2 * DECAY * (up.T @ up) @ down
    loss += DECAY * float(np.sum((up.T @ up) * (down @ down.T)))
    return loss, [by_down, by_up]

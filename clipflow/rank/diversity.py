"""Results that differ from each other: maximal marginal relevance."""

import numpy as np
from numpy.typing import NDArray


def mixed(scores: NDArray[np.float64], rows: NDArray[np.float32], diversity: float, count: int) -> list[int]:
    """The order in which candidates are shown (Carbonell and Goldstein 1998, with lambda = 1 - diversity).

    Each place goes to the candidate with the largest (1 - diversity) x score - diversity x (the largest cosine with
    one that is shown already); of equal ones to the first. So the order of few is the beginning of that of more.

    Args:
        scores: cosines with the query, [N], best first.
        rows: unit vectors, [N, D].
        diversity: 0 leaves the order as it is, 1 does not look at the scores behind the first.
        count: how many places.

    Returns:
        Rows by place, at most `count`.
    """
    wide = rows.astype(np.float64)
    worth = (1 - diversity) * scores
    nearest = np.zeros(len(rows))
    order: list[int] = []
    while len(order) < min(count, len(rows)):
        gain = worth - diversity * nearest
        gain[order] = -np.inf
        best = int(gain.argmax())
        similar = wide @ wide[best]
        nearest = np.maximum(nearest, similar) if order else similar
        order.append(best)
    return order

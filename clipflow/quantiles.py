"""A score among the scores of the same query with a sample of the collection."""

import numpy as np
from numpy.typing import NDArray

DECIMALS = 6
"""Of scores; what is compared with them is rounded alike."""


def percentile(score: float, background: NDArray[np.float64]) -> float:
    """Share of the sample (ascending) that scores less, 0 to 1; 1 without a sample."""
    return float(np.searchsorted(background, score) / len(background)) if len(background) else 1.0


def share_above(scores: NDArray[np.float64], background: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the sample (ascending) that scores higher than each; 0 without a sample.

    Unlike 1 - percentile it is the same for what is in the sample itself and for what is not.
    """
    if not len(background):
        return np.zeros(np.shape(scores))
    found: NDArray[np.float64] = 1 - np.searchsorted(background, scores, side='right') / len(background)
    return found


def floor_of(share: float, background: NDArray[np.float64]) -> float:
    """The score above which a document is better than `share` of the sample; -1 for 0, or without a sample."""
    return float(np.quantile(background, share)) if len(background) and share > 0 else -1.0

"""What scores mean: how a score compares with those of the same query against a fixed sample of the collection.

A cosine of 0.25 is much for one query and little for another, and models and modalities differ more still. The share of
the collection that scores lower does not. It is estimated from a sample; with 1,000 documents a percentile is known to
about 0.3 points at 0.99 (binomial standard deviation).
"""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipflow.quantiles import DECIMALS
from clipflow.store.sqlite import Store

SAMPLE = 1000
_STALE = 0.1
"""The sample is drawn again when the collection has grown or shrunk by this share."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Background:
    """A sample of a collection, drawn when it is needed.

    Args:
        draw: gives the vectors of about `SAMPLE` documents, [n, D], mostly the same ones each time.
    """

    def __init__(self, draw: Callable[[], NDArray[np.float32]]) -> None:
        self._draw = draw
        self._rows: NDArray[np.float32] | None = None
        self._count = 0
        self._drawing = threading.Lock()

    def scores(self, query: NDArray[np.float32], count: int) -> NDArray[np.float64]:
        """Cosines of a query [D] with the sample, ascending, [n]; `count` is the size of the collection."""
        with self._drawing:
            if self._rows is None or abs(count - self._count) > _STALE * self._count:
                self._rows, self._count = self._draw(), count
            rows = self._rows
        if not len(rows) or rows.shape[1] != len(query):
            return np.empty(0)
        return np.sort((rows.astype(np.float64) @ query.astype(np.float64)).round(DECIMALS))


def sample_of(store: Store) -> NDArray[np.float32]:
    """Vectors of the documents whose scrambled keys are the smallest, so that most of them stay, [n, D]."""
    keys = store.keys()
    scrambled = keys.astype(np.uint64) * _MULTIPLIER  # Fibonacci hashing: neighbours fall far apart
    return store.vectors_of(keys[np.argsort(scrambled)[:SAMPLE]])[1]

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

SAMPLE = 1000
_STALE = 0.1
"""The sample is drawn again when this share of the collection has changed."""


class Background:
    """A sample of a collection, drawn when it is needed.

    Args:
        draw: gives the vectors of about `SAMPLE` documents, [n, D], mostly the same ones each time.
    """

    def __init__(self, draw: Callable[[], NDArray[np.float32]]) -> None:
        self._draw = draw
        self._rows: NDArray[np.float32] | None = None
        self._count = 0
        self._changes, self._drawn_at = 0, 0
        self._drawing = threading.Lock()

    def changed(self, count: int) -> None:
        """So many documents have been added, replaced or deleted; for one writer at a time, after each write."""
        self._changes += count

    def scores(self, query: NDArray[np.float32], count: int) -> NDArray[np.float64]:
        """Cosines of a query [D] with the sample, ascending, [n]; `count` is the size of the collection."""
        with self._drawing:
            # Others may write to the collection too, of whom only the count tells.
            changes = max(self._changes - self._drawn_at, abs(count - self._count))
            if self._rows is None or changes > _STALE * self._count:
                self._drawn_at = self._changes  # before the drawing, which may miss what is written meanwhile
                self._rows, self._count = self._draw(), count
            rows = self._rows
        if not len(rows) or rows.shape[1] != len(query):
            return np.empty(0)
        return np.sort((rows.astype(np.float64) @ query.astype(np.float64)).round(DECIMALS))

"""Exact search in plain NumPy: what every other index is compared with."""

import numpy as np
from numpy.typing import NDArray

from clipflow.index.base import TIE, Effort, Ranked


class ReferenceIndex:
    """See `base.VectorIndex`."""

    def __init__(self) -> None:
        self._vectors: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def put(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See `base.VectorIndex`."""
        self._vectors.update(zip(keys.tolist(), vectors.copy(), strict=True))

    def remove(self, keys: NDArray[np.int64]) -> None:
        """See `base.VectorIndex`."""
        for key in keys.tolist():
            self._vectors.pop(key, None)

    def search(
        self,
        queries: NDArray[np.float32],
        limit: int,
        allowed: NDArray[np.int64] | None = None,
        effort: Effort | None = None,
    ) -> list[Ranked]:
        """See `base.VectorIndex`."""
        keys = [key for key in self._vectors if allowed is None or key in set(allowed.tolist())]
        if not keys or limit < 1:
            return [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        matrix = np.stack([self._vectors[key] for key in keys]).astype(np.float64)
        return [_best(np.array(keys), matrix @ query.astype(np.float64), limit) for query in queries]


def _best(keys: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> Ranked:
    order = np.argsort(-scores, kind='stable')
    last = scores[order[min(limit, len(order)) - 1]]
    order = order[scores[order] >= last - TIE]
    return keys[order], scores[order]

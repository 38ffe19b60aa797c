"""Exact search with FAISS: a flat inner-product index over unit vectors.

FAISS's own id map rewrites the whole store at each removal, so keys are kept beside it: a vector is replaced in place,
and a removed one is overwritten by the last.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from clipflow.index.base import TIE, Ranked

# The wheel's default (128,000) means that batches of queries never use BLAS: 12 times slower at 64 queries.
faiss.cvar.distance_compute_blas_threshold = 20
_SPARE = 8


class FlatIndex:
    """See `base.VectorIndex`."""

    def __init__(self, dimension: int) -> None:
        self._faiss = faiss.IndexFlatIP(dimension)
        self._keys = np.empty(0, dtype=np.int64)
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def _matrix(self) -> NDArray[np.float32]:
        """FAISS's own memory as [N, D]; valid until vectors are added or removed."""
        flat = faiss.rev_swig_ptr(self._faiss.get_xb(), len(self) * self._faiss.d)
        matrix: NDArray[np.float32] = flat.reshape(len(self), self._faiss.d)
        return matrix

    def put(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See `base.VectorIndex`."""
        rows = dict(zip(keys.tolist(), range(len(keys)), strict=True))  # the last of equal keys wins
        known = [key for key in rows if key in self._slots]
        if known:
            self._matrix()[[self._slots[key] for key in known]] = vectors[[rows[key] for key in known]]
        new = [key for key in rows if key not in self._slots]
        if new:
            self._faiss.add(np.ascontiguousarray(vectors[[rows[key] for key in new]], dtype=np.float32))
            self._slots.update(zip(new, range(len(self), len(self) + len(new)), strict=True))
            self._keys = np.concatenate([self._keys, np.array(new, dtype=np.int64)])

    def remove(self, keys: NDArray[np.int64]) -> None:
        """See `base.VectorIndex`."""
        gone = {key for key in keys.tolist() if key in self._slots}
        if not gone:
            return
        total, kept = len(self), len(self) - len(gone)
        holes = [slot for key in gone if (slot := self._slots[key]) < kept]
        movers = [slot for slot in range(kept, total) if int(self._keys[slot]) not in gone]
        matrix = self._matrix()
        matrix[holes] = matrix[movers]
        self._keys[holes] = self._keys[movers]
        self._faiss.remove_ids(faiss.IDSelectorRange(kept, total))
        self._keys = self._keys[:kept].copy()
        for key in gone:
            del self._slots[key]
        self._slots.update(zip(self._keys[holes].tolist(), holes, strict=True))

    def search(self, queries: NDArray[np.float32], limit: int, allowed: NDArray[np.int64] | None) -> list[Ranked]:
        """See `base.VectorIndex`."""
        slots = None
        if allowed is not None:
            slots = np.array([self._slots[key] for key in allowed.tolist() if key in self._slots], dtype=np.int64)
        available = len(self) if slots is None else len(slots)
        if not available or limit < 1:
            return [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        options = None
        if slots is not None:
            mask = np.zeros(len(self), dtype=bool)
            mask[slots] = True
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder='little'))
            options = faiss.SearchParameters(sel=selector)
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        wanted = min(limit + _SPARE, available)
        while True:
            found = self._faiss.search(rows, wanted, params=options)[1]
            ranked = [self._rescored(query, slots_) for query, slots_ in zip(rows, found, strict=True)]
            # Enough once something behind the last place is worse by more than a tie, for every query.
            if wanted >= available or all(s[-1] < s[limit - 1] - 2 * TIE for _, s in ranked):
                return [_cut(keys, scores, limit) for keys, scores in ranked]
            wanted = min(wanted * 4, available)

    def _rescored(self, query: NDArray[np.float32], slots: NDArray[np.int64]) -> Ranked:
        """Cosines in float64: equal vectors score equally wherever they lie."""
        scores = self._matrix()[slots].astype(np.float64) @ query.astype(np.float64)
        order = np.argsort(-scores, kind='stable')
        return self._keys[slots[order]], scores[order]


def _cut(keys: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> Ranked:
    keep = scores >= scores[min(limit, len(scores)) - 1] - TIE
    return keys[keep], scores[keep]

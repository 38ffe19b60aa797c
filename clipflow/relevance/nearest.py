"""Pictures in an index of a kind that is not exact, built and tuned as the indexer does it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipflow.index.base import Ranked
from clipflow.index.build import build
from clipflow.index.choice import Wanted, choose, memory_for_vectors
from clipflow.settings import IndexerSettings

LIMIT = 100
"""Results of a search: enough for every measure but the mean reciprocal rank's last half percent."""
_BLOCK = 1 << 14
_QUERIES = 256

Rows = NDArray[np.float32]


class Nearest:
    """An index over [N, D] unit vectors.

    Args:
        vectors: of the pictures.
        kind: auto, flat, hnsw, ivf, ivfpq, or a factory string of FAISS; see `CLIPFLOW_INDEX_KIND`.

    Raises:
        InvalidParameter: no such kind.
    """

    def __init__(self, vectors: Rows, kind: str) -> None:
        settings = IndexerSettings.load()
        memory = memory_for_vectors(settings.index_memory)
        wanted = Wanted(kind, settings.index_vectors, memory, settings.index_recall)
        choice = choose(wanted, len(vectors), vectors.shape[1])
        nothing = np.empty((0, vectors.shape[1]), np.float32)
        self._index = build(_Held(vectors), choice, nothing, wanted.recall, lambda phase, share: None)
        main = self._index.main
        tuned = '' if main is None else f', effort {main.effort}, tuned to a recall of {main.recall:.3f}'
        self.told = f'{choice.factory or choice.kind}{tuned}'

    def search(self, queries: Rows) -> list[Ranked]:
        """Places of the 100 best of each of [Q, D], and their cosines."""
        found = list[Ranked]()
        for start in range(0, len(queries), _QUERIES):
            found += self._index.search(queries[start : start + _QUERIES], LIMIT)
        return [(keys - 1, scores) for keys, scores in found]


class _Held:
    """See `base.Stored`; a vector's key is its place and one."""

    def __init__(self, vectors: Rows) -> None:
        self._vectors = vectors

    def count(self) -> int:
        return len(self._vectors)

    def dimension(self) -> int:
        return int(self._vectors.shape[1])

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        for start in range(0, len(self._vectors), _BLOCK):
            keys = np.arange(start, min(start + _BLOCK, len(self._vectors)), dtype=np.int64) + 1
            yield keys, self._vectors[keys - 1]

    def sample(self, most: int) -> Rows:
        count = len(self._vectors)
        return self._vectors[np.random.default_rng(0).choice(count, min(most, count), replace=False)]

    def vectors_of(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], Rows]:
        return keys, self._vectors[keys - 1]

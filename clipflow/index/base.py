"""The contract of a vector index: keys and unit vectors in, the best keys out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TIE = 1e-6
"""Scores closer than this are equal: float32 sums differ by their order, and results must not."""

Ranked = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Keys [n] and their cosines [n], best first."""

Reader = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Reads stored vectors: of [N] keys those that exist, [n], and their vectors, [n, D]."""


@dataclass(frozen=True)
class Effort:
    """How hard an approximate index looks, for one request; None: as it was tuned."""

    nprobe: int | None = None
    ef_search: int | None = None


class Stored(Protocol):
    """Vectors under their keys, as a store has them."""

    def count(self) -> int:
        """N."""
        ...

    def dimension(self) -> int:
        """D."""
        ...

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All keys and vectors, in blocks of [n] and [n, D]."""
        ...

    def sample(self, most: int) -> NDArray[np.float32]:
        """Vectors from everywhere, in no rhythm, [n, D]; all if there are fewer."""
        ...

    def vectors_of(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of [N] keys those that exist, [n], and their vectors, [n, D]."""
        ...


class VectorIndex(Protocol):
    """Vectors of one model under int64 keys. N vectors, Q queries, D dimensions.

    One thread writes at a time; any number search meanwhile, and each sees the index as it was at one moment.
    """

    def put(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add or replace [N] keys with [N, D] unit vectors."""
        ...

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Remove keys; unknown ones are ignored."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        limit: int,
        allowed: NDArray[np.int64] | None = None,
        effort: Effort | None = None,
    ) -> list[Ranked]:
        """For each of [Q, D] the `limit` best among the allowed keys (None: all), and whatever ties with the last.

        Fewer only when fewer are allowed.
        """
        ...

    def __len__(self) -> int: ...

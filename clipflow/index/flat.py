"""Exact search: the product of a query with every vector, in blocks of rows.

The best so far bound what a further block can add, so that only few scores are looked at twice. NumPy's product is as
fast as FAISS's for many queries and faster for one (benchmarks/README.md), and it can leave out the dead.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipflow.index.base import TIE, Ranked
from clipflow.index.slots import Slots, View

BLOCK = 1 << 14
"""Rows of a block: 32 MB at 512 dimensions. Memory is taken by the system only as rows are written."""
MARGIN = 4 * TIE
"""What may lie between a cosine in float32 and in float64, and a tie, with room to spare."""

Candidates = tuple[Slots, NDArray[np.float32]]
"""Slots [n] and about their cosines [n], in no order."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The vectors of the slots from `first` on, in blocks; None stands for a block before it."""

    dimension: int
    first: int = 0
    blocks: tuple[NDArray[np.float32] | None, ...] = ()

    def block(self, number: int) -> NDArray[np.float32]:
        """[BLOCK, D]."""
        block = self.blocks[number]
        if block is None:
            raise IndexError(f'block {number} is not held')
        return block

    def gathered(self, slots: Slots) -> NDArray[np.float32]:
        """The rows of [N] slots, [N, D]."""
        numbers = slots // BLOCK
        rows = np.empty((len(slots), self.dimension), dtype=np.float32)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            rows[here] = self.block(number)[slots[here] % BLOCK]
        return rows


class Vectors:
    """Append-only rows, of which a reader keeps those that it has seen: `rows` is replaced, never changed."""

    def __init__(self, dimension: int) -> None:
        self.rows = Rows(dimension)

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Put [N, D] into the slots from `start` on, which nobody reads yet."""
        done = 0
        while done < len(rows):
            number, offset = divmod(start + done, BLOCK)
            if number >= len(self.rows.blocks):
                block = np.empty((BLOCK, self.rows.dimension), dtype=np.float32)
                before = (None,) * (number - len(self.rows.blocks))
                self.rows = replace(self.rows, blocks=(*self.rows.blocks, *before, block))
            part = rows[done : done + BLOCK - offset]
            self.rows.block(number)[offset : offset + len(part)] = part
            done += len(part)

    def release(self, before: int) -> None:
        """Give up the slots below `before`."""
        gone = before // BLOCK
        blocks = tuple(None if number < gone else block for number, block in enumerate(self.rows.blocks))
        self.rows = replace(self.rows, first=before, blocks=blocks)


def scan(queries: NDArray[np.float32], held: Rows, view: View, start: int, limit: int) -> list[Candidates]:
    """For each of [Q, D] the `limit` best of the living slots from `start` on, and what may tie with the last."""
    found: list[Candidates] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    floors = np.full(len(queries), -np.inf, dtype=np.float32)
    for number in range(start // BLOCK, -(-view.count // BLOCK) if start < view.count else 0):
        low = max(start - number * BLOCK, 0)
        high = min(view.count - number * BLOCK, BLOCK)
        first = number * BLOCK + low
        rows = held.block(number)[low:high]
        # A matrix times a vector reads the rows as they lie; for many queries the other order is the faster product.
        scores = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
        alive = view.alive_between(first, first + high - low)
        if alive is not None:
            scores[:, ~alive] = -np.inf
        for query in np.flatnonzero(scores.max(axis=1) > floors).tolist():
            row = scores[query]
            # Before there is a bound, all would be better: the best of this block are one.
            bound = floors[query] if np.isfinite(floors[query]) else floor(row, limit)
            better = np.flatnonzero(row > bound)
            found[query], floors[query] = _best(found[query], (better + first, row[better]), limit)
    return found


def _best(some: Candidates, more: Candidates, limit: int) -> tuple[Candidates, float]:
    """The best of both, and the score below which nothing matters any more."""
    slots, scores = np.concatenate([some[0], more[0]]), np.concatenate([some[1], more[1]])
    if len(scores) <= limit:
        return (slots, scores), -np.inf
    bound = floor(scores, limit)
    keep = scores >= bound
    return (slots[keep], scores[keep]), bound


def floor(scores: NDArray[np.float32], limit: int) -> float:
    """Below it nothing is among the `limit` best, nor ties with the last of them."""
    if len(scores) <= limit:
        return -np.inf
    return float(np.partition(scores, len(scores) - limit)[len(scores) - limit]) - MARGIN


def cosines(query: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of [D] with [N, D] unit vectors, [N].

    In float64: equal vectors score equally wherever they lie, which a float32 product does not promise.
    """
    if not len(rows):
        return np.empty(0)
    found: NDArray[np.float64] = rows.astype(np.float64) @ query.astype(np.float64)
    return found


def cut(keys: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> Ranked:
    """Sort [N] keys by their `cosines` and keep the `limit` best, and ties with the last."""
    if not len(keys):
        return keys, scores
    order = np.argsort(-scores, kind='stable')
    keys, scores = keys[order], scores[order]
    keep = scores >= scores[min(limit, len(scores)) - 1] - TIE
    return keys[keep], scores[keep]

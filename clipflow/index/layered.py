"""The index that serves: older vectors in FAISS where that pays, newer ones in plain rows beside it, searched exactly.

Every kind is this one class: flat has no FAISS part at all. Writes go to the plain rows and are seen at once; `merge`
moves rows into the FAISS part later, and whoever owns the index builds a new one when too many slots are dead.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipflow.index.approximate import EVERYTHING, SPARE, Approximate
from clipflow.index.base import Effort, Ranked, Reader
from clipflow.index.flat import BLOCK, Candidates, Rows, Vectors, cosines, cut, floor, scan
from clipflow.index.slots import Slots, SlotTable, View

SUBSET = 0.1
"""Up to this share of documents that pass a filter, flat compares their vectors one by one (docs/indexer.md)."""
SUBSET_STORED = 20_000
"""The same for the other kinds, as a number of documents."""


@dataclass(frozen=True, slots=True)
class _Search:
    """One search, and the moment that it sees."""

    held: Rows
    view: View
    limit: int
    effort: Effort | None = None
    only: Slots | None = None
    """Slots of documents that pass a filter, ascending."""


class LayeredIndex:
    """See `base.VectorIndex`.

    Args:
        dimension: D.
        read: reads vectors from the store, for kinds that do not keep them as they are.
        main: holds the first vectors, slots from 0 on; None for flat.
    """

    def __init__(self, dimension: int, read: Reader | None = None, main: Approximate | None = None) -> None:
        self.dimension = dimension
        self.main = main
        self._read = read
        self.table = SlotTable()
        self._vectors = Vectors(dimension)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def unmerged(self) -> int:
        """Slots that are not in the FAISS part."""
        return self.table.view.count - (len(self.main) if self.main is not None else 0)

    def fill(self, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Add [N] new keys with [N, D] while nobody searches: straight into the FAISS part, if there is one."""
        if self.main is None:
            self.put(keys, rows)
        else:
            self.main.fill(rows)
            self.table.append(keys)
            self._vectors.release(len(self.main))

    def put(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See `base.VectorIndex`."""
        last = {key: row for row, key in enumerate(keys.tolist())}  # the last of equal keys wins
        if last:
            rows = list(last.values())
            self._vectors.write(self.table.view.count, np.asarray(vectors, dtype=np.float32)[rows])
            self.table.append(keys[rows])

    def remove(self, keys: NDArray[np.int64]) -> None:
        """See `base.VectorIndex`."""
        self.table.remove(keys)

    def merge(self, most: int) -> int:
        """Move up to `most` plain rows into the FAISS part, while searches go on; returns how many."""
        if self.main is None:
            return 0
        start = len(self.main)
        stop = min(self.table.view.count, start + most)
        if stop > start:
            self.main.add(self._vectors.rows.gathered(np.arange(start, stop)))
            self._vectors.release(stop)
        return stop - start

    def rows(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """Plain rows of a range of slots, in blocks."""
        rows = self._vectors.rows
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK)
            yield rows.gathered(np.arange(start, end))
            start = end

    def restore(self, keys: NDArray[np.int64], plain: Iterable[NDArray[np.float32]]) -> None:
        """Take over [N] keys by slot (0: dead) and the rows of those that are not in the FAISS part, in blocks.

        Raises:
            ValueError: the numbers of keys and of vectors differ.
        """
        place = len(self.main) if self.main is not None else 0
        first = place
        for rows in plain:
            self._vectors.write(place, rows)
            place += len(rows)
        self._vectors.release(first)
        if place != len(keys):
            raise ValueError(f'{len(keys)} keys for {place} vectors')
        self.table.restore(keys)

    def search(
        self,
        queries: NDArray[np.float32],
        limit: int,
        allowed: NDArray[np.int64] | None = None,
        effort: Effort | None = None,
    ) -> list[Ranked]:
        """See `base.VectorIndex`."""
        # In this order: rows that are merged after this are still held, and all that the view shows are there.
        view = self.table.view
        held = self._vectors.rows
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        if limit < 1 or not view.count:
            return [(np.empty(0, np.int64), np.empty(0))] * len(rows)
        if allowed is None:
            return self._searched(rows, _Search(held, view, limit, effort))
        slots = self.table.slots_in(view, allowed)
        search = _Search(held, view, limit, effort, slots)
        if len(slots) <= (SUBSET * view.count if self.main is None else SUBSET_STORED):
            return self._compared(rows, search)
        return self._searched(rows, search)

    def _compared(self, queries: NDArray[np.float32], search: _Search) -> list[Ranked]:
        """Exact: the vector of every allowed document is compared."""
        assert search.only is not None
        keys, rows = self._stored(search.only, search)
        if not len(keys):
            return [(keys, np.empty(0))] * len(queries)
        found = []
        for query in queries:
            # In float32 first: only what may be among the best is worth the exact product.
            about = rows @ query
            close = about >= floor(about, search.limit)
            found.append(cut(keys[close], cosines(query, rows[close]), search.limit))
        return found

    def _stored(self, slots: Slots, search: _Search) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Keys and vectors of slots, which ascend; without those that are gone from the store by now."""
        keys, first = search.view.keys[slots], search.held.first
        if not len(slots) or first <= slots[0]:
            return keys, search.held.gathered(slots)
        if self.main is not None and self.main.exact:
            older = int(np.searchsorted(slots, first))
            return keys, np.concatenate([self.main.rows(slots[:older]), search.held.gathered(slots[older:])])
        assert self._read is not None
        return self._read(keys)

    def _searched(self, queries: NDArray[np.float32], search: _Search) -> list[Ranked]:
        if self.main is None:
            older: list[Candidates | None] = [None] * len(queries)
            start = 0
        else:
            found, start = self._approximate(queries, self.main, search)
            older = [*found]
        view = search.view if search.only is None else _without_others(search.view, search.only)
        newer = scan(queries, search.held, view, start, search.limit)
        return [self._joined(query, old, new, search) for query, old, new in zip(queries, older, newer, strict=True)]

    def _approximate(
        self, queries: NDArray[np.float32], main: Approximate, search: _Search
    ) -> tuple[list[Candidates], int]:
        """Candidates from the FAISS part, enough of them alive if there are enough; and where the part ended."""
        effort, only = main.chosen(search.effort), search.only
        page = main.page(search.limit)
        # Some of the candidates are dead: about so many as of all.
        wanted = int(page * main.rerank * (1 + 2 * search.view.dead / search.view.count)) + SPARE
        scores, slots, total = main.search(queries, wanted, effort, only)
        found = [_alive(*pair, search.view, total) for pair in zip(slots, scores, strict=True)]
        # Where a row is not full, all that the effort reaches has been seen; else a page is looked for, not the limit.
        few = [n for n, row in enumerate(slots) if len(found[n][0]) < (page if row[-1] >= 0 else search.limit)]
        living = _living(search, total) if few else 0
        few = [n for n in few if len(found[n][0]) < living]
        while few:
            if (slots[:, -1] >= 0).all() and main.is_cheap(wanted * 4):
                wanted *= 4  # too many of them are dead
            else:  # the effort is too small to find enough: compare all that live
                few = [n for n in few if len(found[n][0]) < min(search.limit, living)]
                effort, only = EVERYTHING, search.view.all_alive() if search.only is None else search.only
            if not few:
                break
            scores, slots, _ = main.search(queries[few], wanted, effort, only)
            for n, row, about in zip(few, slots, scores, strict=True):
                found[n] = _alive(row, about, search.view, total)
            few = [n for n in few if len(found[n][0]) < min(page, living)] if effort != EVERYTHING else []
        return found, total

    def _joined(
        self, query: NDArray[np.float32], older: Candidates | None, newer: Candidates, search: _Search
    ) -> Ranked:
        """The best of both parts, scored alike: equal vectors tie, and a merge between two searches changes nothing."""
        keys, scores = search.view.keys[newer[0]], np.empty(0)
        if len(keys):
            scores = cosines(query, search.held.gathered(newer[0]))
        if older is not None and self.main is not None and len(older[0]):
            slots, about = older
            if self.main.exact:
                slots = slots[about >= floor(about, search.limit)]
            more, rows = self.vectors_at(search.view.keys[slots], slots)
            keys, scores = np.concatenate([more, keys]), np.concatenate([cosines(query, rows), scores])
        return cut(keys, scores, search.limit)

    def vectors_at(self, keys: NDArray[np.int64], slots: Slots) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of [N] keys in the FAISS part those that exist, [n], and their vectors as they were stored, [n, D]."""
        assert self.main is not None
        if self.main.exact:
            return keys, self.main.rows(slots)
        assert self._read is not None
        return self._read(keys)

    def holds(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of [N] keys can be found in the FAISS part."""
        assert self.main is not None
        slots = self.table.slots(keys)
        there = (slots >= 0) & (slots < len(self.main))
        if not self.main.exact:
            there[there] = np.isin(keys[there], self.vectors_at(keys[there], slots[there])[0])
        return there

    def keys_at(self, slots: Slots) -> NDArray[np.int64]:
        """The key in each of [N] slots; -1 for a dead one."""
        view = self.table.view
        return np.where(view.alive(slots), view.keys[slots], -1)


def _alive(slots: Slots, about: NDArray[np.float32], view: View, total: int) -> Candidates:
    """Of what was found in the first `total` slots all that lives."""
    if not view.dead and total <= view.count and slots[-1] >= 0 and slots.max() < total:
        return slots, about
    good = (slots >= 0) & (slots < total)
    good[good] = view.alive(slots[good])
    return slots[good], about[good]


def _living(search: _Search, total: int) -> int:
    """How many of the first `total` slots may be found."""
    if search.only is not None:
        return int(np.searchsorted(search.only, total))
    seen = min(total, search.view.count)
    return int(np.count_nonzero(search.view.died[:seen] > search.view.version)) if search.view.dead else seen


def _without_others(view: View, only: Slots) -> View:
    """A view in which only some slots are alive."""
    died = np.full(view.count, view.version, dtype=np.int64)
    died[only] = view.version + 1
    return View(view.count, view.count - len(only), view.version, view.keys, died)

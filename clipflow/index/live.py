"""The index that serves: every write goes to the store first, then to the vectors in memory; a search sees both."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import InvalidFilter
from clipflow.filters import Filter, compile_filter
from clipflow.index.background import SAMPLE, Background
from clipflow.index.choice import Wanted
from clipflow.index.flat import cosines
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.index.sifting import Hit, Query, sifted
from clipflow.quantiles import DECIMALS
from clipflow.store.facets import Facet, count_values
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

__all__ = ['Hit', 'LiveIndex', 'Query']

_TRIES = 4
"""Searches for one request, while others delete what it finds."""


class LiveIndex:
    """Store and vectors as one. Thread-safe: writes are in turn, searches do not wait for them.

    Args:
        store: the truth.
        wanted: the kind of index.
        snapshots: when the index is written to disk by itself.
    """

    def __init__(self, store: Store, wanted: Wanted | None = None, snapshots: Snapshots | None = None) -> None:
        self.store = store
        self._precision = store.precision() or 'float'  # a store of before this was kept holds floats
        self._background = Background(lambda: store.sample(SAMPLE))
        self.keeper = Keeper(store, wanted or Wanted(), snapshots or Snapshots())
        self._writing = self.keeper.writing

    def __len__(self) -> int:
        return len(self.keeper.index) if self.keeper.index is not None else 0

    @property
    def precision(self) -> str:
        """What the vectors were made with: float or int8; empty without documents."""
        return self._precision if len(self) else ''

    def upsert(self, records: Sequence[Record], precision: str = 'float', *, mixed: bool = False) -> None:
        """Store records; on return they are on disk and searchable. See `Store.upsert`."""
        if not records:
            return
        with self._writing:
            keys = self.store.upsert(records, precision, mixed=mixed)
            if not len(self):
                self._precision = precision
            matrix = np.stack([record.vector for record in records if record.vector is not None])
            self.keeper.put(keys, matrix)
            self._background.changed(len(keys))

    def delete(self, ids: Sequence[str] = (), matching: Filter | None = None) -> int:
        """Delete by ids or filter; on return they are gone from disk and from results. Returns the count."""
        with self._writing:
            keys = self.store.delete(ids, matching)
            self.keeper.remove(keys)
            self._background.changed(len(keys))
            return len(keys)

    def clear(self) -> int:
        """Delete everything; returns the count."""
        with self._writing:
            count = self.store.clear()
            self.keeper.clear()
            self._background.changed(count)
            return count

    def search(self, queries: NDArray[np.float32], query: Query) -> list[list[Hit]]:
        """For each of [Q, D] unit vectors its hits, best first, ties by id; or in the order of a tag."""
        allowed = self.store.matching_keys(query.matching) if query.matching is not None else None
        if query.texts:
            self.keeper.asked(queries)
        if not query.is_plain:
            return [self._sifted(row, allowed, query) for row in queries]
        return self._nearest(queries, query.limit, allowed, query)

    def background(self, queries: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        """For each of [Q, D] unit vectors its cosines with the sample that percentiles are taken from, ascending."""
        return [self._background.scores(row, len(self)) for row in queries]

    def _nearest(
        self, queries: NDArray[np.float32], count: int, allowed: NDArray[np.int64] | None, query: Query
    ) -> list[list[Hit]]:
        """The `count` best of each query that reach `min_score`."""
        more = 0
        for left in reversed(range(_TRIES)):
            with nullcontext() if left else self._writing:  # at last, after whoever deletes so much
                index = self.keeper.index
                if index is None:
                    return [[] for _ in queries]
                ranked = [keys.tolist() for keys, _ in index.search(queries, count + more, allowed, query.effort)]
                wanted = sorted({key for keys in ranked for key in keys})
                # A document may have been written or deleted since: what is told of it is all of the one version that
                # the store has now, the score too.
                records = self.store.by_keys(wanted, thumbnails=query.thumbnails, vectors=True, matching=query.matching)
            found = [
                [records[key] for key in keys if key in records and _fits(records[key], row)]
                for keys, row in zip(ranked, queries, strict=True)
            ]
            gone = [len(keys) - len(some) for keys, some in zip(ranked, found, strict=True)]
            if all(not some or len(kept) >= count for some, kept in zip(gone, found, strict=True)):
                break
            more += max(gone)
        return [_best(some, row, count, query) for some, row in zip(found, queries, strict=True)]

    def _sifted(self, row: NDArray[np.float32], allowed: NDArray[np.int64] | None, query: Query) -> list[Hit]:
        background = self._background.scores(row, len(self)) if query.compared else np.empty(0)

        def nearest(count: int, asked: Query) -> list[Hit]:
            return self._nearest(row[None, :], count, self._others(allowed, asked), asked)[0]

        return sifted(query, nearest, background)

    def _others(self, allowed: NDArray[np.int64] | None, query: Query) -> NDArray[np.int64] | None:
        """Of the allowed keys (None: all) those of groups that are not known."""
        if not query.known:
            return allowed
        try:
            others = self.store.matching_keys(compile_filter({query.group_by: {'$nin': list(query.known)}}))
        except InvalidFilter:  # none can name the tag, or one of the values
            return allowed
        return others if allowed is None else np.intersect1d(allowed, others)

    def facets(self, matching: Filter | None) -> tuple[list[Facet], bool]:
        """See `count_values`."""
        return count_values(self.store, matching)

    def snapshot(self) -> dict[str, Any]:
        """See `Keeper.snapshot`."""
        return self.keeper.snapshot()

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {'documents': len(self), 'vectors': self.precision, **self.keeper.status()}

    def close(self) -> None:
        """Stop the work in the background and close the store; once more does nothing."""
        self.keeper.close()
        self.store.close()


def _fits(record: Record, query: NDArray[np.float32]) -> bool:
    return record.vector is not None and len(record.vector) == len(query)


def _best(records: Sequence[Record], query: NDArray[np.float32], count: int, asked: Query) -> list[Hit]:
    """The `count` best of some records, scored anew with a query [D], ties by id."""
    if not records:
        return []
    rows = np.stack([record.vector for record in records if record.vector is not None])
    scores = cosines(query, rows).round(DECIMALS).tolist()
    hits = [Hit(record, score) for record, score in zip(records, scores, strict=True)]
    hits.sort(key=lambda hit: (-hit.score, hit.record.id))
    floor = -2.0 if asked.min_score is None else asked.min_score
    return [hit for hit in hits[:count] if hit.score >= floor]

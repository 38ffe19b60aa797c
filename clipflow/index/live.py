"""The index that serves: every write goes to the store first, then to the vectors in memory; a search sees both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.filters import Filter
from clipflow.index.background import Background, sample_of
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.index.sifting import Hit, Query, sifted
from clipflow.quantiles import DECIMALS
from clipflow.store.facets import Facet, count_values
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

__all__ = ['Hit', 'LiveIndex', 'Query']


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
        self._background = Background(lambda: sample_of(store))
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

    def delete(self, ids: Sequence[str] = (), matching: Filter | None = None) -> int:
        """Delete by ids or filter; on return they are gone from disk and from results. Returns the count."""
        with self._writing:
            keys = self.store.delete(ids, matching)
            self.keeper.remove(keys)
            return len(keys)

    def clear(self) -> int:
        """Delete everything; returns the count."""
        with self._writing:
            count = self.store.clear()
            self.keeper.clear()
            return count

    def search(self, queries: NDArray[np.float32], query: Query) -> list[list[Hit]]:
        """For each of [Q, D] unit vectors its hits, best first, ties by id; or in the order of a tag."""
        allowed = self.store.matching_keys(query.matching) if query.matching is not None else None
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
        index = self.keeper.index
        if index is None:
            return [[] for _ in queries]
        ranked = index.search(queries, count, allowed, query.effort)
        wanted = {int(key) for keys, _ in ranked for key in keys}
        vectors = query.vectors or query.dedup is not None
        records = self.store.by_keys(sorted(wanted), thumbnails=query.thumbnails, vectors=vectors)
        result = []
        for keys, scores in ranked:
            pairs = zip(keys.tolist(), scores.tolist(), strict=True)
            # A key can be gone from the store by now: a delete came in between, and it must not show.
            hits = [Hit(records[key], round(score, DECIMALS)) for key, score in pairs if key in records]
            hits.sort(key=lambda hit: (-hit.score, hit.record.id))
            floor = -2.0 if query.min_score is None else query.min_score
            result.append([hit for hit in hits[:count] if hit.score >= floor])
        return result

    def _sifted(self, row: NDArray[np.float32], allowed: NDArray[np.int64] | None, query: Query) -> list[Hit]:
        background = self._background.scores(row, len(self)) if query.compared else np.empty(0)
        return sifted(query, lambda count, asked: self._nearest(row[None, :], count, allowed, asked)[0], background)

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

"""The index that serves: every write goes to the store first, then to the vectors in memory; a search sees both."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.filters import Filter
from clipflow.index.base import Effort, VectorIndex
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.store.sqlite import Record, Store

_DECIMALS = 6


@dataclass(frozen=True)
class Query:
    """What is asked of the index, the same for all vectors of one request."""

    limit: int
    matching: Filter | None = None
    min_score: float | None = None
    group_by: str | None = None
    thumbnails: bool = False
    vectors: bool = False
    effort: Effort | None = None


@dataclass(frozen=True)
class Hit:
    """One result: the stored record, its cosine rounded to 6 decimals, and its group."""

    record: Record
    score: float
    group: str = ''


class LiveIndex:
    """Store and vectors as one. Thread-safe: writes are in turn, searches do not wait for them.

    Args:
        store: the truth.
        wanted: the kind of index.
        snapshots: when the index is written to disk by itself.
    """

    def __init__(self, store: Store, wanted: Wanted | None = None, snapshots: Snapshots | None = None) -> None:
        self.store = store
        self._writing = threading.Lock()
        self._precision = store.precision() or 'float'  # a store of before this was kept holds floats
        self.keeper = Keeper(store, wanted or Wanted(), snapshots or Snapshots())

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
        """For each of [Q, D] unit vectors its hits, best first, ties by id."""
        allowed = self.store.matching_keys(query.matching) if query.matching is not None else None
        if query.group_by is None:
            return self._hits(queries, query.limit, allowed, query)
        return [self._grouped(row[None, :], allowed, query) for row in queries]

    def _hits(
        self, queries: NDArray[np.float32], count: int, allowed: NDArray[np.int64] | None, query: Query
    ) -> list[list[Hit]]:
        index: VectorIndex | None = self.keeper.index
        if index is None:
            return [[] for _ in queries]
        ranked = index.search(queries, count, allowed, query.effort)
        wanted = {int(key) for keys, _ in ranked for key in keys}
        records = self.store.by_keys(sorted(wanted), thumbnails=query.thumbnails, vectors=query.vectors)
        result = []
        for keys, scores in ranked:
            pairs = zip(keys.tolist(), scores.tolist(), strict=True)
            # A key can be gone from the store by now: a delete came in between, and it must not show.
            hits = [Hit(records[key], round(score, _DECIMALS)) for key, score in pairs if key in records]
            hits.sort(key=lambda hit: (-hit.score, hit.record.id))
            floor = -2.0 if query.min_score is None else query.min_score
            result.append([hit for hit in hits[:count] if hit.score >= floor])
        return result

    def _grouped(self, row: NDArray[np.float32], allowed: NDArray[np.int64] | None, query: Query) -> list[Hit]:
        """The best hit of each value of a tag; looks further until there are enough groups."""
        count = query.limit * 4
        while True:
            hits = self._hits(row, count, allowed, query)[0]
            best: dict[str, Hit] = {}
            for hit in hits:
                group = _group(hit.record, str(query.group_by))
                best.setdefault(group, Hit(hit.record, hit.score, group))
            if len(best) >= query.limit or len(hits) < count:
                return list(best.values())[: query.limit]
            count *= 4

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {'documents': len(self), 'vectors': self.precision, **self.keeper.status()}

    def close(self) -> None:
        """Stop the work in the background and close the store; once more does nothing."""
        self.keeper.close()
        self.store.close()


def _group(record: Record, path: str) -> str:
    """The value of a tag as JSON text; documents without the tag form one group."""
    value: Any = json.loads(record.tags)
    for name in path.split('__'):
        value = value.get(name) if isinstance(value, dict) else None
    return json.dumps(value, sort_keys=True)

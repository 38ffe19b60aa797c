"""The index that serves: every write goes to the store first, then to the vectors in memory; a search sees both."""

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow import order
from clipflow.filters import Filter
from clipflow.index.background import Background
from clipflow.index.base import Effort
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.quantiles import DECIMALS, floor_of, percentile
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.vectors import distinct

RELEVANT = 1000
"""At most so many of the relevant documents are put into the order of a tag."""


@dataclass(frozen=True)
class Query:
    """What is asked of the index, the same for all vectors of one request.

    Attributes:
        limit: how many results.
        matching: only documents that pass.
        min_score: only cosines from here on.
        relevance: only what scores higher than this share of the collection.
        group_by: of each value of this tag the best only.
        dedup: of results whose vectors have this cosine or more with a better one, none.
        sort_by: order what is relevant by this tag; `-` before it turns the order round.
        thumbnails, vectors, percentiles: come with the results.
        effort: of an approximate kind.
    """

    limit: int
    matching: Filter | None = None
    _: KW_ONLY
    min_score: float | None = None
    relevance: float | None = None
    group_by: str | None = None
    dedup: float | None = None
    sort_by: str | None = None
    thumbnails: bool = False
    vectors: bool = False
    percentiles: bool = False
    effort: Effort | None = None

    @property
    def drops(self) -> bool:
        """Whether some of the nearest are left out, so that more have to be looked at."""
        return self.group_by is not None or self.dedup is not None


@dataclass(frozen=True)
class Hit:
    """One result: the stored record, its cosine rounded to 6 decimals, its group, percentile and place in the order."""

    record: Record
    score: float
    group: str = ''
    percentile: float | None = None
    mark: order.Mark | None = None


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
        self._background = Background(store)
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
        if query.drops or query.sort_by or query.relevance is not None or query.percentiles:
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
        """Looks at more and more of the nearest until enough of them are kept, then puts them in order."""
        enough = RELEVANT if query.sort_by else query.limit
        compared = query.relevance is not None or query.percentiles
        background = self._background.scores(row, len(self)) if compared else np.empty(0)
        if query.relevance is not None:
            floor = floor_of(query.relevance, background)
            query = replace(query, min_score=max(floor, query.min_score if query.min_score is not None else -1.0))
        count = enough * 4 if query.drops else enough
        while True:
            hits = self._nearest(row[None, :], count, allowed, query)[0]
            kept = _kept(hits, query)
            if len(kept) >= enough or len(hits) < count:
                break
            count *= 4
        kept = kept[:enough] if query.sort_by is None else _in_order(kept[:enough], query.sort_by)[: query.limit]
        if query.percentiles:
            kept = [replace(hit, percentile=percentile(hit.score, background)) for hit in kept]
        return kept

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {'documents': len(self), 'vectors': self.precision, **self.keeper.status()}

    def close(self) -> None:
        """Stop the work in the background and close the store; once more does nothing."""
        self.keeper.close()
        self.store.close()


def _in_order(hits: list[Hit], sort_by: str) -> list[Hit]:
    path, descending = order.parse(sort_by)
    marked = [replace(hit, mark=order.mark_of(order.tag_value(json.loads(hit.record.tags), path))) for hit in hits]
    return order.ordered(marked, lambda hit: hit.mark or order.mark_of(None), descending=descending)


def _kept(hits: list[Hit], query: Query) -> list[Hit]:
    """The first of each group, and nothing that is nearly the same as a better one."""
    if query.group_by is not None:
        best: dict[str, Hit] = {}
        for hit in hits:
            # Documents without the tag form one group.
            group = json.dumps(order.tag_value(json.loads(hit.record.tags), query.group_by), sort_keys=True)
            best.setdefault(group, replace(hit, group=group))
        hits = list(best.values())
    if query.dedup is not None and hits:
        rows = np.stack([hit.record.vector for hit in hits if hit.record.vector is not None])
        hits = [hits[number] for number in distinct(rows, query.dedup)]
    return hits

"""From the nearest documents to the results that were asked for: the same for every kind of index and store."""

import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow import order
from clipflow.index.base import Effort
from clipflow.quantiles import floor_of, percentile
from clipflow.store.reading import Record
from clipflow.vectors import distinct

RELEVANT = 1000
"""At most so many of the relevant documents are put into the order of a tag."""


@dataclass(frozen=True)
class Query:
    """What is asked of the index, the same for all vectors of one request.

    Attributes:
        limit: how many results.
        matching: only documents that pass; compiled for the store that is asked.
        min_score: only cosines from here on.
        relevance: only what scores higher than this share of the collection.
        group_by: of each value of this tag the best only.
        dedup: of results whose vectors have this cosine or more with a better one, none.
        sort_by: order what is relevant by this tag; `-` before it turns the order round.
        thumbnails, vectors, percentiles: come with the results.
        effort: of an approximate kind.
    """

    limit: int
    matching: Any = None
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

    @property
    def compared(self) -> bool:
        """Whether scores are compared with those of the collection."""
        return self.relevance is not None or self.percentiles

    @property
    def is_plain(self) -> bool:
        """Whether the nearest are the results."""
        return not (self.drops or self.sort_by or self.compared)


@dataclass(frozen=True)
class Hit:
    """One result: the stored record, its cosine rounded to 6 decimals, its group, percentile and place in the order."""

    record: Record
    score: float
    group: str = ''
    percentile: float | None = None
    mark: order.Mark | None = None


def sifted(query: Query, nearest: Callable[[int, Query], list[Hit]], background: NDArray[np.float64]) -> list[Hit]:
    """Looks at more and more of the nearest until enough of them are kept, then puts them in order.

    Args:
        query: what is asked.
        nearest: so many of the best that reach the `min_score` of a query; fewer only when there are no more.
        background: cosines of the query with a sample of the collection, ascending; empty where nothing is compared.
    """
    enough = RELEVANT if query.sort_by else query.limit
    if query.relevance is not None:
        floor = floor_of(query.relevance, background)
        query = replace(query, min_score=max(floor, query.min_score if query.min_score is not None else -1.0))
    count = enough * 4 if query.drops else enough
    while True:
        hits = nearest(count, query)
        kept = _kept(hits, query)
        if len(kept) >= enough or len(hits) < count:
            break
        count *= 4
    kept = kept[:enough] if query.sort_by is None else _in_order(kept[:enough], query.sort_by)[: query.limit]
    if query.percentiles:
        kept = [replace(hit, percentile=percentile(hit.score, background)) for hit in kept]
    return kept


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

"""From the nearest documents to the results that were asked for: the same for every kind of index and store."""

import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow import order
from clipflow.filters import MAX_MEMBERS
from clipflow.index.base import Effort
from clipflow.quantiles import floor_of, percentile
from clipflow.store.reading import Record
from clipflow.vectors import distinct

_DISPLACED = 2
"""A shard finds so many times as many without near-duplicates, because those of other shards displace some."""
_SENT = 1000
"""Of near-duplicates only those among so many of the nearest are sent to be compared with those of other shards."""
_DEEP = 2500
"""Where so many of the nearest hold too few groups, it is less work to look among the documents of other groups."""


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
        shared: other shards answer too, and which of groups and near-duplicates are shown is decided among all.
        texts: the vectors are of texts; the effort is tuned with such.
        known: values of `group_by` whose best are found; documents with these may be left out.
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
    shared: bool = False
    texts: bool = False
    known: tuple[Any, ...] = ()

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
    undecided = query.shared and query.dedup is not None
    enough = order.RELEVANT if query.sort_by else query.limit * (_DISPLACED if undecided else 1)
    if query.relevance is not None:
        floor = floor_of(query.relevance, background)
        query = replace(query, min_score=max(floor, query.min_score if query.min_score is not None else -1.0))
    count = enough * 4 if query.drops else enough
    hits: list[Hit] = []
    while True:
        near = nearest(count, query)
        hits = near if query.group_by is None else _first_of_groups([*hits, *near], query.group_by)
        places = list(range(min(enough, len(hits)))) if query.dedup is None else _distinct(hits, query.dedup, enough)
        if len(places) == enough or len(near) < count:
            break
        if query.group_by is not None and count > _DEEP:
            query = replace(query, known=_values(hits))
        count *= 4
    if undecided:
        # What is left out here for a better one is shown if that one is left out for a still better one elsewhere.
        end = places[-1] if len(places) == enough else len(hits)
        places = sorted({*places, *range(min(end, _SENT))})
    kept = [hits[place] for place in places]
    if query.sort_by is not None:
        kept = _in_order(kept, query.sort_by)
        if not (query.shared and query.drops):
            kept = kept[: query.limit]
    if query.percentiles:
        kept = [replace(hit, percentile=percentile(hit.score, background)) for hit in kept]
    return kept


def _in_order(hits: list[Hit], sort_by: str) -> list[Hit]:
    path, descending = order.parse(sort_by)
    marked = [replace(hit, mark=order.mark_of(order.tag_value(json.loads(hit.record.tags), path))) for hit in hits]
    return order.ordered(marked, lambda hit: hit.mark or order.mark_of(None), descending=descending)


def _first_of_groups(hits: list[Hit], group_by: str) -> list[Hit]:
    best: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.record.id)):
        # Documents without the tag form one group.
        group = json.dumps(_alike(order.tag_value(json.loads(hit.record.tags), group_by)), sort_keys=True)
        best.setdefault(group, replace(hit, group=group))
    return list(best.values())


def _values(hits: list[Hit]) -> tuple[Any, ...]:
    """Of groups, as far as a filter can name them."""
    values = [json.loads(hit.group) for hit in hits[:MAX_MEMBERS]]
    return tuple(value for value in values if not isinstance(value, list | dict))


def _alike(value: Any) -> Any:
    """Of numbers that are equal the same one, as a filter compares: of 1, 1.0 and true, and of 0, -0.0 and false."""
    if isinstance(value, dict):
        return {name: _alike(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_alike(item) for item in value]
    return int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value


def _distinct(hits: list[Hit], dedup: float, most: int) -> list[int]:
    """Places of the first `most` that are not nearly the same as one before them that is kept."""
    rows = [hit.record.vector for hit in hits if hit.record.vector is not None]
    return distinct(np.stack(rows), dedup, most) if rows else []

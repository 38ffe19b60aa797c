"""How often each value of each tag stands on the documents: what people filter by."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipflow.filters import Filter, can_name
from clipflow.store.reading import Documents, thinned

Value = str | int | float | bool

COUNTED = 20_000
"""Of more documents a sample of this size is counted; the counts are then multiplied."""
_FEW = 20
MOST_VALUES = 2000
"""Of a tag that a shard tells; a tag with more is hardly one to filter by."""


@dataclass
class Facet:
    """A tag and how often each of its values comes."""

    tag: str
    counts: dict[Value, int] = field(default_factory=dict)

    @property
    def is_useful(self) -> bool:
        """Whether its values divide the documents into groups; a file's name or date hardly does."""
        return len(self.counts) <= max(_FEW, sum(self.counts.values()) // 2)

    def json(self, limit: int) -> dict[str, Any]:
        """As it is sent: the `limit` most frequent values, the most frequent first."""
        ordered = sorted(self.counts.items(), key=lambda pair: (-pair[1], str(pair[0])))[:limit]
        return {'tag': self.tag, 'values': [{'value': value, 'count': count} for value, count in ordered]}


def from_json(found: dict[str, Any]) -> Facet:
    """The other way round; numbers come as floats."""
    return Facet(found['tag'], {item['value']: int(item['count']) for item in found['values']})


def merged(facets: Iterable[Facet]) -> list[Facet]:
    """One facet a tag, with the sums; see `summed`."""
    return summed((facet.tag, value, count) for facet in facets for value, count in facet.counts.items())


def summed(counted: Iterable[tuple[str, Value, int]]) -> list[Facet]:
    """Facets of tags, values and counts, in the order of the alphabet; of tags that a filter can name.

    Values that a filter takes for equal are one, and where a tag has 1 and true, that is 1.
    """
    found: dict[str, Facet] = {}
    for tag, value, count in sorted(counted, key=lambda item: isinstance(item[1], bool)):
        counts = found.setdefault(tag, Facet(tag)).counts
        counts[value] = counts.get(value, 0) + count
    return [found[tag] for tag in sorted(found) if can_name(tag)]


def count_values(documents: Documents, matching: Filter | None) -> tuple[list[Facet], bool]:
    """Facets of the documents that pass a filter, or of all: of their own tags, not of nested ones or of lists.

    Returns:
        Facets in the order of the alphabet, and whether they are estimated from a sample.
    """
    keys = documents.keys() if matching is None else np.sort(documents.matching_keys(matching))
    counted = thinned(keys, COUNTED)
    rows = documents.tag_values(json.dumps(counted.tolist()))
    # SQLite has no booleans: the type tells 1 from true.
    found = summed(
        (tag, kind == 'true' if kind in ('true', 'false') else value, count) for tag, kind, value, count in rows
    )
    for facet in found:
        facet.counts = {value: round(count * len(keys) / len(counted)) for value, count in facet.counts.items()}
    return found, len(counted) < len(keys)

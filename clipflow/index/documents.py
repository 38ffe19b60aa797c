"""The contract of what an indexer works with: documents kept somewhere, and found by their vectors."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipflow.index.sifting import Hit, Query
from clipflow.store.facets import Facet
from clipflow.store.reading import Record


class Records(Protocol):
    """Stored records; a filter is what the store of the index compiles it to."""

    def merge_tags(self, patches: Sequence[tuple[str, str]]) -> list[bool]:
        """Merge JSON objects into the tags of ids (RFC 7396: null removes a key); tells which ids exist."""
        ...

    def by_ids(self, ids: Sequence[str], *, thumbnails: bool = ..., vectors: bool = ...) -> dict[str, Record]:
        """Records of the ids that exist."""
        ...

    def by_keys(self, keys: Sequence[int], *, thumbnails: bool = ..., vectors: bool = ...) -> dict[int, Record]:
        """Records of the keys that exist."""
        ...

    def page(
        self, matching: Any, limit: int, offset: int, *, thumbnails: bool = ..., vectors: bool = ...
    ) -> list[Record]:
        """Records that pass the filter, in an order that stays."""
        ...


class DocumentIndex(Protocol):
    """What keeps documents and finds them. Thread-safe."""

    @property
    def store(self) -> Records:
        """The records."""
        ...

    @property
    def precision(self) -> str:
        """What the vectors were made with: float or int8; empty without documents."""
        ...

    def upsert(self, records: Sequence[Record], precision: str = ..., *, mixed: bool = ...) -> None:
        """Store records; on return they are durable and searchable."""
        ...

    def delete(self, ids: Sequence[str] = ..., matching: Any = ...) -> int:
        """Delete by ids or filter; returns the count."""
        ...

    def clear(self) -> int:
        """Delete everything; returns the count."""
        ...

    def search(self, queries: NDArray[np.float32], query: Query) -> list[list[Hit]]:
        """For each of [Q, D] unit vectors its hits, best first, ties by id; or in the order of a tag."""
        ...

    def background(self, queries: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        """For each of [Q, D] unit vectors its cosines with a sample of the collection, ascending."""
        ...

    def facets(self, matching: Any) -> tuple[list[Facet], bool]:
        """Counts of the values of tags, and whether they are estimated."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Write the index to disk for a quick start."""
        ...

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        ...

    def close(self) -> None:
        """Let everything go; once more does nothing."""
        ...

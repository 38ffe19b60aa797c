"""The index over a collection in Milvus: what `clipflow.index.live` is over SQLite and FAISS."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, InvalidParameter, NotFound
from clipflow.index.background import SAMPLE, Background
from clipflow.index.base import Effort
from clipflow.index.sifting import Hit, Query, sifted
from clipflow.milvus.collection import Collection
from clipflow.milvus.filters import ALL
from clipflow.quantiles import DECIMALS
from clipflow.store.facets import COUNTED, Facet, summed
from clipflow.store.reading import Record
from clipflow.store.sqlite import other_precision

MOST_RESULTS = 16_384
"""Of one search; a limit of Milvus."""
_MORE = 16
"""So many more than asked for, to see which documents tie with the last."""
_NEAR = 1e-5
"""Cosines of Milvus, which are sums of float32, are this near to the true ones."""


class MilvusIndex:
    """The documents of a collection, stored and found. Thread-safe; writes of this process are in turn.

    Args:
        store: the collection.
    """

    def __init__(self, store: Collection) -> None:
        self.store = store
        self._precision = store.precision()
        self._background = Background(self._drawn)

    def __len__(self) -> int:
        return self.store.count()

    @property
    def precision(self) -> str:
        """What the vectors were made with: float or int8; empty without documents, as far as is known here."""
        return self._precision

    def upsert(self, records: Sequence[Record], precision: str = 'float', *, mixed: bool = False) -> None:
        """Store records; when an id comes twice, the last. On return Milvus has them, and every search finds them.

        Raises:
            DimensionMismatch, ModelMismatch: the collection holds vectors of another length or precision.
        """
        if not records:
            return
        kept = list({record.id: record for record in records}.values())
        with self.store.writing:
            found = self.store.precision()
            if found and found != precision and not mixed:
                raise other_precision(found, precision)
            dimension = 0 if kept[0].vector is None else len(kept[0].vector)
            if not found and self.store.dimension() != dimension:
                if self.store.exists():
                    self.store.drop()
                self.store.create(dimension)
            self.store.write(kept, precision)
            self._background.changed(len(kept))
            self._precision = found or precision

    def delete(self, ids: Sequence[str] = (), matching: str | None = None) -> int:
        """Delete by ids or filter; on return they are gone. Returns the count."""
        with self.store.writing:
            gone = self.store.existing(list(dict.fromkeys(ids)))
            if matching is not None:
                gone |= set(self.store.ids(matching))
            self.store.delete(sorted(gone))
            self._background.changed(len(gone))
            self._precision = self.store.precision() if gone else self._precision
            return len(gone)

    def clear(self) -> int:
        """Remove the collection; returns how many documents it had."""
        with self.store.writing:
            count = self.store.count()
            if self.store.exists():
                self.store.drop()
            self._background.changed(count)
            self._precision = ''
            return count

    def search(self, queries: NDArray[np.float32], query: Query) -> list[list[Hit]]:
        """For each of [Q, D] unit vectors its hits, best first, ties by id; or in the order of a tag.

        Raises:
            InvalidParameter: Milvus does not give so many.
            DimensionMismatch: the collection holds vectors of another length.
        """
        if query.limit > MOST_RESULTS:
            raise InvalidParameter(
                f"Milvus gives the best {MOST_RESULTS:,} of a search at most; ask for less by 'limit' and 'offset'"
            )
        dimension = self.store.dimension()
        if not dimension:
            return [[] for _ in queries]
        if queries.shape[1] != dimension:
            raise DimensionMismatch(
                f'the collection holds vectors of {dimension} dimensions, not of {queries.shape[1]}'
            )
        self._precision = self._precision or self.store.precision()
        if query.is_plain:
            return self._nearest(queries, query.limit, query)
        count = len(self) if query.compared else 0
        return [self._sifted(row, count, query) for row in queries]

    def background(self, queries: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        """For each of [Q, D] unit vectors its cosines with the sample that percentiles are taken from, ascending."""
        count = len(self)
        return [self._background.scores(row, count) for row in queries]

    def _drawn(self) -> NDArray[np.float32]:
        share = SAMPLE / max(1, self.store.count())
        rows = [row['vector'] for block in self.store.scan(self.store.sample(share), ['vector']) for row in block]
        return np.asarray(rows, dtype=np.float32).reshape(len(rows), -1)

    def _sifted(self, row: NDArray[np.float32], size: int, query: Query) -> list[Hit]:
        background = self._background.scores(row, size) if query.compared else np.empty(0)
        return sifted(query, lambda count, asked: self._nearest(row[None, :], count, asked)[0], background)

    def _nearest(self, queries: NDArray[np.float32], count: int, query: Query) -> list[list[Hit]]:
        """The `count` best of each query that reach `min_score`, of the best `MOST_RESULTS`."""
        count = min(count, MOST_RESULTS)
        candidates = self._candidates(queries, count, query)
        ids = list(dict.fromkeys(identifier for found in candidates for identifier in found))
        records = self.store.by_ids(ids, thumbnails=query.thumbnails, vectors=True)
        floor = -2.0 if query.min_score is None else query.min_score
        result = []
        for vector, found in zip(queries.astype(np.float64), candidates, strict=True):
            # One can be gone by now: a deletion came in between, and it must not show.
            own = [records[identifier] for identifier in found if identifier in records]
            rows = np.array([record.vector for record in own], dtype=np.float64).reshape(len(own), len(vector))
            hits = [
                Hit(record, round(float(score), DECIMALS)) for record, score in zip(own, rows @ vector, strict=True)
            ]
            hits.sort(key=lambda hit: (-hit.score, hit.record.id))
            result.append([hit for hit in hits[:count] if hit.score >= floor])
        return result

    def _candidates(self, queries: NDArray[np.float32], count: int, query: Query) -> list[list[str]]:
        """Ids of the nearest of each query, and of all that may tie with the last of them."""
        wanted = count + _MORE
        while True:
            wanted = min(wanted, MOST_RESULTS)
            parameters = _effort(self.store.kind, wanted, query.effort)
            found = self.store.nearest(queries, wanted, query.matching or '', parameters)
            floors = [hits[min(count, len(hits)) - 1][1] - _NEAR if hits else 0.0 for hits in found]
            ended = [len(hits) < wanted or hits[-1][1] < floor for hits, floor in zip(found, floors, strict=True)]
            if all(ended) or wanted == MOST_RESULTS:
                return [
                    [identifier for identifier, score in hits if score >= floor]
                    for hits, floor in zip(found, floors, strict=True)
                ]
            wanted *= 4

    def facets(self, matching: str | None) -> tuple[list[Facet], bool]:
        """Counts of the values of tags, not of nested ones or of lists; of many documents, of a sample.

        Returns:
            Facets in the order of the alphabet, and whether they are estimated.
        """
        step = -(-len(self) // COUNTED) or 1
        blocks = self.store.scan(self.store.sample(1 / step, matching or ALL), ['tags'])
        pairs = (pair for block in blocks for row in block for pair in json.loads(row['tags']).items())
        return summed((tag, value, step) for tag, value in pairs if isinstance(value, str | int | float)), step > 1

    def snapshot(self) -> dict[str, Any]:
        """Raises NotFound: Milvus keeps its index itself."""
        raise NotFound('there is no snapshot to write: Milvus keeps its index itself')

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        count = len(self)
        kind = f'milvus {self.store.kind}'
        return {'documents': count, 'vectors': self.precision, 'kind': kind, 'why': 'the documents are in Milvus'}

    def close(self) -> None:
        """Close the client; once more does nothing."""
        self.store.close()


def _effort(kind: str, count: int, effort: Effort | None) -> dict[str, int]:
    """What the kind of index calls it; a graph has to look at as many as are asked for."""
    if kind == 'HNSW' and effort is not None and effort.ef_search is not None:
        return {'ef': max(effort.ef_search, count)}
    if kind == 'IVF_FLAT' and effort is not None and effort.nprobe is not None:
        return {'nprobe': effort.nprobe}
    return {}

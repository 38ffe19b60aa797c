"""The documents of one collection in Milvus: its fields, and all reading and writing."""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow import wire
from clipflow.errors import DimensionMismatch, ModelMismatch
from clipflow.milvus.client import connect, is_local, translated
from clipflow.milvus.filters import ALL, literal
from clipflow.milvus.rows import KEYS, MOST_BYTES, MOST_TERMS, among, check, fields, record_of, row_of, size_of, tagged
from clipflow.milvus.terms import TERM_LENGTH
from clipflow.store.reading import Record

_ROWS = 250
_BLOCK = 1000
_UPSERT_BYTES = 16 * 2**20


class Collection:
    """Reads and writes rows; thread-safe, as the client is. What is read is as of the latest write (`Strong`).

    Args:
        uri: address, or path of a Milvus Lite.
        fingerprint: of the model that makes the vectors.
        token: or `user:password`.
        name: of the collection.
        kind: index of a new collection.
        timeout: seconds for one call.

    Raises (on opening and later):
        Unavailable: Milvus cannot be reached.
        Conflict: another process has the path.
        ModelMismatch: it holds vectors of another model.
    """

    def __init__(
        self,
        uri: str,
        fingerprint: str,
        *,
        token: str = '',
        name: str = 'clipflow',
        kind: str = 'FLAT',
        timeout: float = 30.0,
    ) -> None:
        self._client = connect(uri, token, timeout)
        self._name, self.kind = name, kind
        self._local = is_local(uri)
        self._fingerprint = fingerprint
        self._options = {'timeout': timeout, 'consistency_level': 'Strong'}
        self._timeout = timeout
        self.writing = threading.RLock()
        """Held by whoever changes something that it has read."""
        if self.exists():
            self._prepare()
            self.precision()

    def exists(self) -> bool:
        """Whether it has been made."""
        with translated():
            return bool(self._client.has_collection(self._name, timeout=self._timeout))

    def dimension(self) -> int:
        """Of the vectors; 0 if there is no collection."""
        if not self.exists():
            return 0
        with translated():
            fields = self._client.describe_collection(self._name, timeout=self._timeout)['fields']
        return next(int(field['params']['dim']) for field in fields if field['name'] == 'vector')

    def create(self, dimension: int) -> None:
        """Make it, and load it."""
        from pymilvus import DataType

        client = self._client
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field('id', DataType.VARCHAR, is_primary=True, max_length=512)
        schema.add_field('key', DataType.INT64)
        schema.add_field('mark', DataType.VARCHAR, max_length=128)
        for name in ('text', 'uri', 'tags', 'thumbnail'):
            schema.add_field(name, DataType.VARCHAR, max_length=MOST_BYTES)
        schema.add_field(
            'terms',
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MOST_TERMS,
            max_length=TERM_LENGTH,
        )
        schema.add_field('values', DataType.JSON)
        schema.add_field('vector', DataType.FLOAT_VECTOR, dim=dimension)
        with translated():
            client.create_collection(self._name, schema=schema, consistency_level='Strong', timeout=self._timeout)
        self._prepare()

    def _prepare(self) -> None:
        """Give it the indexes that it lacks, and load it; also if that was begun and not ended."""
        client = self._client
        with translated():
            there = client.list_indexes(self._name)
            indexes = client.prepare_index_params()
            if 'vector' not in there:
                indexes.add_index('vector', self.kind, 'vector', metric_type='IP')  # of unit vectors: the cosine
            for name in ('terms', 'key'):
                if name not in there and not self._local:  # Milvus Lite has no index of arrays
                    indexes.add_index(name, 'INVERTED', name)
            if len(indexes):
                client.create_index(self._name, indexes, timeout=self._timeout)
            client.load_collection(self._name, timeout=self._timeout)

    def drop(self) -> None:
        """Remove it with all that is in it."""
        with translated():
            self._client.drop_collection(self._name, timeout=self._timeout)

    def count(self) -> int:
        """Number of documents."""
        if not self.exists():
            return 0
        with translated():
            rows = self._client.query(self._name, filter='', output_fields=['count(*)'], **self._options)
        return int(rows[0]['count(*)'])

    def precision(self) -> str:
        """What the first of the vectors were made with: float or int8; empty without documents."""
        first = next((row for rows in self.scan(ALL, ['mark'], 1) for row in rows), None)
        return self._known(first['mark']) if first is not None else ''

    def write(self, records: Sequence[Record], precision: str) -> None:
        """Add or replace records, each id once.

        Raises:
            DimensionMismatch: the collection has vectors of another length.
        """
        dimension = self.dimension()
        for record in records:
            found = 0 if record.vector is None else len(record.vector)
            if found != dimension:
                raise DimensionMismatch(f'the collection holds vectors of {dimension} dimensions, not of {found}')
        mark = wire.model_mark(self._fingerprint, precision)
        rows: list[dict[str, Any]] = []
        size = 0
        for record in records:
            rows.append(row_of(record, mark))
            size += size_of(rows[-1])
            if size > _UPSERT_BYTES:
                self._upsert(rows)
                rows, size = [], 0
        self._upsert(rows)

    def merge_tags(self, patches: Sequence[tuple[str, str]]) -> list[bool]:
        """Merge JSON objects into the tags of ids (RFC 7396: null removes a key); tells which ids exist.

        Raises:
            TooLarge: the tags are too large then; nothing has changed.
        """
        with self.writing:
            ids = list(dict.fromkeys(identifier for identifier, _ in patches))
            rows = {row['id']: row for row in self._rows('id', ids, fields(thumbnails=True, vectors=True))}
            for identifier, patch in patches:
                if identifier in rows:
                    merged = _merged(json.loads(rows[identifier]['tags']), json.loads(patch))
                    rows[identifier] |= tagged(json.dumps(merged, ensure_ascii=False))
            for row in rows.values():
                check(record_of(row))
            for some in _chunks(list(rows.values())):
                self._upsert(list(some))
        return [identifier in rows for identifier, _ in patches]

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        with translated():
            self._client.upsert(self._name, rows, timeout=self._timeout)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete documents; unknown ids are no error."""
        for some in _chunks(ids):
            with translated():
                self._client.delete(self._name, filter=among('id', some), timeout=self._timeout)

    def scan(self, condition: str, wanted: Sequence[str], most: int | None = None) -> Iterator[list[dict[str, Any]]]:
        """Rows that pass a condition, in the order of their ids, in blocks; all of them or the first `most`."""
        # The client has an iterator, which writes ids into its expressions as they are: one with a quote in it breaks
        # them. What Milvus is told for it, it is told here: to sort by id, and to cut only then.
        told = {'output_fields': [*wanted, 'id'], 'iterator': 'True', 'reduce_stop_for_best': 'True', **self._options}
        after = condition
        while (most is None or most > 0) and self.exists():
            with translated():
                count = _BLOCK if most is None else min(_BLOCK, most)
                block = list(self._client.query(self._name, filter=after, limit=count, **told))
            if block:
                yield block
            if len(block) < count:
                return
            most = None if most is None else most - len(block)
            after = f'({condition}) and id > {literal(block[-1]["id"])}'

    def ids(self, condition: str, most: int | None = None) -> list[str]:
        """Ids that pass a condition, in their order."""
        return [row['id'] for block in self.scan(condition, ['id'], most) for row in block]

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that exist."""
        return {row['id'] for row in self._rows('id', ids, ['id'])}

    def by_ids(self, ids: Sequence[str], *, thumbnails: bool = False, vectors: bool = False) -> dict[str, Record]:
        """Records of the ids that exist."""
        rows = self._rows('id', ids, fields(thumbnails, vectors))
        return {row['id']: self._record(row) for row in rows}

    def by_keys(self, keys: Sequence[int], *, thumbnails: bool = False, vectors: bool = False) -> dict[int, Record]:
        """Records of the keys that exist."""
        rows = self._rows('key', keys, fields(thumbnails, vectors))
        return {int(row['key']): self._record(row) for row in rows}

    def page(
        self, matching: str, limit: int, offset: int, *, thumbnails: bool = False, vectors: bool = False
    ) -> list[Record]:
        """Records that pass the filter, in the order of their ids."""
        ids = self.ids(matching, offset + limit)[offset:]
        records = self.by_ids(ids, thumbnails=thumbnails, vectors=vectors)
        return [records[identifier] for identifier in ids if identifier in records]

    def sample(self, share: float, matching: str = ALL) -> str:
        """A condition that about this share of the documents that pass another one passes too, always the same."""
        return matching if share >= 1 else f'({matching} and key < {int(share * KEYS)})'

    def nearest(
        self, queries: NDArray[np.float32], count: int, matching: str, parameters: dict[str, Any]
    ) -> list[list[tuple[str, float]]]:
        """For each of [Q, D] unit vectors the ids of the `count` nearest and Milvus' own cosines, best first."""
        with translated():
            found = self._client.search(
                self._name,
                data=queries.tolist(),
                filter=matching,
                limit=count,
                output_fields=['id'],
                search_params={'metric_type': 'IP', 'params': parameters},
                anns_field='vector',
                **self._options,
            )
        return [[(hit['id'], float(hit['distance'])) for hit in hits] for hits in found]

    def _record(self, row: dict[str, Any]) -> Record:
        self._known(row['mark'])
        return record_of(row)

    def _known(self, mark: str) -> str:
        fingerprint, precision = wire.read_mark(mark)
        if fingerprint != self._fingerprint:
            raise ModelMismatch(
                f'the vectors in the collection {self._name!r} were made with another model ({fingerprint}, not '
                f'{self._fingerprint}); set CLIPFLOW_MODEL back, or choose another CLIPFLOW_MILVUS_COLLECTION'
            )
        return precision

    def _rows(self, field: str, values: Sequence[Any], wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not values or not self.exists():
            return
        for some in _chunks(values):
            with translated():
                yield from self._client.query(
                    self._name, filter=among(field, some), output_fields=list(wanted), **self._options
                )

    def close(self) -> None:
        """Close the client; once more does nothing."""
        self._client.close()


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(found.get(name), value)
    return found

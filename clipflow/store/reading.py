"""Documents as they are read: by any number of threads, from the process that writes or from another one."""

import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from clipflow.filters import Filter
from clipflow.store import layout
from clipflow.store.connection import WAL, Connection, connect, translated
from clipflow.store.migrations import check

_VARIABLES = 2_000
_ROWS_PER_READ = 10_000
_RECORDS_PER_READ = 1000
_SCRAMBLE = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4)."""


@dataclass(frozen=True)
class Record:
    """One stored document. `tags` is JSON text; `vector` is float32 of unit length, [D]."""

    id: str
    text: str
    uri: str
    tags: str
    vector: NDArray[np.float32] | None = None
    thumbnail: bytes | None = None
    key: int = 0


KeysAndVectors = tuple[NDArray[np.int64], NDArray[np.float32]]


class Documents:
    """The documents of one shard, in `directory`. Every thread reads through a connection of its own.

    Raises (on reading): Conflict if a newer or older clipflow wrote them; else as `connection.translated`.
    """

    def __init__(self, directory: Path, journal: str = WAL) -> None:
        self.directory = directory
        self._journal = journal
        self._local = threading.local()
        self._all: WeakSet[Connection] = WeakSet()  # that of a thread that has ended is closed with it

    def _connect(self) -> Connection:
        db = connect(self.directory / layout.DOCUMENTS, self._journal)
        self._all.add(db)
        return db

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with translated():
            if not hasattr(self._local, 'db'):
                db = self._connect()
                check(db)
                self._local.db = db
            found: list[Any] = self._local.db.execute(sql, parameters).fetchall()
            return found

    def _meta(self) -> dict[str, str]:
        return dict(self._read('SELECT name, value FROM meta'))

    def identity(self) -> str:
        """Tells this store from others that were in its place before."""
        file = self.directory / layout.DOCUMENTS
        return f'{self.directory.parent.name}/{self.directory.name}:{file.stat().st_ino}'

    def model(self) -> tuple[str, str]:
        """Fingerprint and name of the model that made the vectors."""
        meta = self._meta()
        return meta['fingerprint'], meta['model']

    def last_sequence(self) -> int:
        """Number of the latest change that gave a document a number."""
        return int(self._meta()['sequence'])

    def newest_key(self) -> int:
        """The highest key that a document has or had."""
        return int(self._read("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'documents'")[0][0])

    def precision(self) -> str:
        """What the first of the vectors were made with: float or int8; empty if there never was one."""
        return self._meta().get('precision', '')

    def by_keys(
        self,
        keys: Sequence[int],
        *,
        thumbnails: bool = False,
        vectors: bool = False,
        matching: Filter | None = None,
    ) -> dict[int, Record]:
        """Records of the keys that exist, and pass the filter if there is one."""
        found = [r for some in chunks(keys) for r in self._select('d.key IN', some, thumbnails, vectors, matching)]
        return {record.key: record for record in found}

    def by_ids(self, ids: Sequence[str], *, thumbnails: bool = False, vectors: bool = False) -> dict[str, Record]:
        """Records of the ids that exist."""
        found = [r for some in chunks(ids) for r in self._select('d.id IN', some, thumbnails, vectors)]
        return {record.id: record for record in found}

    def page(
        self, matching: Filter, limit: int, offset: int, *, thumbnails: bool = False, vectors: bool = False
    ) -> list[Record]:
        """Records that pass the filter, in the order in which they were first stored."""
        sql = f'SELECT key FROM documents WHERE {matching.sql} ORDER BY key LIMIT ? OFFSET ?'
        keys = [row[0] for row in self._read(sql, (*matching.parameters, limit, offset))]
        records = self.by_keys(keys, thumbnails=thumbnails, vectors=vectors)
        return [records[key] for key in keys if key in records]

    def _select(
        self, condition: str, values: Sequence[Any], thumbnails: bool, vectors: bool, matching: Filter | None = None
    ) -> list[Record]:
        picture = '(SELECT webp FROM thumbnails t WHERE t.key = d.key)' if thumbnails else 'NULL'
        vector = 'd.vector' if vectors else 'NULL'
        marks = ', '.join('?' * len(values))
        columns = f'd.id, d.text, d.uri, d.tags, {vector}, {picture}, d.key'
        sql = f'SELECT {columns} FROM documents d WHERE {condition} ({marks})'
        if matching is not None:
            sql, values = f'{sql} AND ({matching.sql})', (*values, *matching.parameters)
        return [
            Record(i, text, uri, tags, None if blob is None else np.frombuffer(blob, dtype=np.float32), webp, key)
            for i, text, uri, tags, blob, webp, key in self._read(sql, values)
        ]

    def matching_keys(self, matching: Filter) -> NDArray[np.int64]:
        """Keys of all documents that pass the filter."""
        rows = self._read(f'SELECT key FROM documents WHERE {matching.sql}', matching.parameters)
        return np.fromiter((row[0] for row in rows), dtype=np.int64, count=len(rows))

    def vectors(self) -> Iterator[KeysAndVectors]:
        """All keys and vectors, in blocks of [n] and [n, D]."""
        last = 0
        sql = 'SELECT key, vector FROM documents WHERE key > ? ORDER BY key LIMIT ?'
        while rows := self._read(sql, (last, _ROWS_PER_READ)):
            last = rows[-1][0]
            yield _matrix(rows)

    def sample(self, most: int) -> NDArray[np.float32]:
        """Vectors of the documents of `sample_keys`, [n, D]."""
        keys = self.sample_keys(most)
        blocks = [
            self.vectors_of(keys[start : start + _ROWS_PER_READ])[1] for start in range(0, len(keys), _ROWS_PER_READ)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)

    def vectors_since(self, sequence: int) -> Iterator[KeysAndVectors]:
        """Keys and vectors of documents that were stored after `sequence`, in blocks, oldest change first."""
        sql = 'SELECT key, vector, sequence FROM documents WHERE sequence > ? ORDER BY sequence LIMIT ?'
        while rows := self._read(sql, (sequence, _ROWS_PER_READ)):
            sequence = rows[-1][2]
            yield _matrix(rows)

    def vectors_of(self, keys: NDArray[np.int64]) -> KeysAndVectors:
        """Of [N] keys those that exist, [n], and their vectors, [n, D]."""
        # One text for any number of keys, so that SQLite prepares it once.
        sql = 'SELECT key, vector FROM documents WHERE key IN (SELECT value FROM json_each(?))'
        return _matrix(self._read(sql, (json.dumps(keys.tolist()),)))

    def keys(self) -> NDArray[np.int64]:
        """All keys, ascending, [N]."""
        # As one text: a million rows as Python objects take four times as long.
        text = self._read('SELECT group_concat(key) FROM documents INDEXED BY documents_by_sequence')[0][0]
        return np.sort(np.fromstring(text or '', dtype=np.int64, sep=','))

    def sample_keys(self, most: int) -> NDArray[np.int64]:
        """Keys of `most` documents from everywhere, ascending, [n]; all if there are fewer.

        Most of them are the same after some documents came or went.
        """
        return thinned(self.keys(), most)

    def tag_values(self, keys: str) -> list[tuple[str, str, Any, int]]:
        """Of documents whose keys are in a JSON list: tag, JSON type, value, and how many have it."""
        sql = (
            'SELECT j.key, j.type, j.value, count(*) FROM'
            ' (SELECT tags FROM documents WHERE key IN (SELECT value FROM json_each(?))) d, json_each(d.tags) j'
            " WHERE j.type IN ('text', 'integer', 'real', 'true', 'false') GROUP BY j.key, j.type, j.value"
        )
        return self._read(sql, (keys,))

    def dimension(self) -> int:
        """Of the vectors; 0 without documents."""
        row = self._read('SELECT length(vector) / 4 FROM documents LIMIT 1')
        return int(row[0][0]) if row else 0

    def count(self) -> int:
        """Number of documents."""
        return int(self._read('SELECT count(*) FROM documents')[0][0])

    def count_of_either(self) -> int:
        """Number of documents with a text and a URI but no thumbnail: their vector may be of the one or the other."""
        thumbnail = 'SELECT 1 FROM thumbnails t WHERE t.key = d.key'
        sql = f"SELECT count(*) FROM documents d WHERE text != '' AND uri != '' AND NOT EXISTS ({thumbnail})"
        return int(self._read(sql)[0][0])

    def ids(self) -> set[str]:
        """All ids."""
        return {row[0] for row in self._read('SELECT id FROM documents')}

    def changed_since(self, sequence: int) -> tuple[list[Record], int]:
        """Some of the records that were changed after `sequence`, the oldest change first, with their thumbnails.

        Returns:
            The records, and the number of the latest change among them; without records, `sequence`.
        """
        sql = (
            'SELECT key, sequence FROM documents WHERE sequence > ?1 AND sequence > tagged'
            ' UNION ALL SELECT key, tagged FROM documents WHERE tagged > 0 AND tagged > ?1 AND tagged > sequence'
            ' ORDER BY 2 LIMIT ?2'
        )
        rows = self._read(sql, (sequence, _RECORDS_PER_READ))
        found = self.by_keys([row[0] for row in rows], thumbnails=True)
        return [found[key] for key, _ in rows if key in found], max((row[1] for row in rows), default=sequence)

    def close(self) -> None:
        """Close all connections; once more does nothing."""
        for db in list(self._all):
            db.close()


def _matrix(rows: Sequence[Any]) -> KeysAndVectors:
    if not rows:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    matrix = np.frombuffer(b''.join(row[1] for row in rows), dtype=np.float32).reshape(len(rows), -1)
    return np.array([row[0] for row in rows], dtype=np.int64), matrix


def thinned(keys: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Of [N] keys, ascending, the `most` whose scrambled values are the smallest, ascending, [n].

    Unlike every tenth of them these follow no rhythm in which documents were stored.
    """
    if len(keys) <= most:
        return keys
    scrambled = keys.astype(np.uint64) * _SCRAMBLE
    scrambled ^= scrambled >> np.uint64(32)  # multiplied once, every 987th key or so would still lie together
    scrambled *= _SCRAMBLE
    return np.sort(keys[np.argsort(scrambled)[:most]])


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(values)
    while some := list(itertools.islice(iterator, _VARIABLES)):
        yield some

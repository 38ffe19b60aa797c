"""Documents, vectors and thumbnails in SQLite (WAL, full sync): what is committed here is acknowledged, and only that.

One process writes (a lock file), through one connection; `reading` has what does not write.
"""

import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, ModelMismatch
from clipflow.filters import Filter, index_expression
from clipflow.store import shard_count
from clipflow.store.connection import WAL, lock, translated
from clipflow.store.migrations import migrate
from clipflow.store.reading import Documents, Record, chunks

_UPSERT = (
    'INSERT INTO documents (key, id, sequence, text, uri, tags, vector) VALUES (?, ?, ?, ?, ?, ?, ?)'
    ' ON CONFLICT (id) DO UPDATE SET sequence = excluded.sequence, text = excluded.text,'
    ' uri = excluded.uri, tags = excluded.tags, vector = excluded.vector'
)


class Store(Documents):
    """The documents of one shard, in `directory`, for the one process that writes.

    Raises (on opening):
        Conflict: another process has the workspace, a newer clipflow wrote it, or its documents are in another number
            of shards. Then nothing has been made.
        ModelMismatch: its vectors were made with another model.
        ReadOnly: it cannot be written.
        InvalidFilter: one of `indexed_tags`, which filters are to find quickly, cannot be the name of a tag.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        model: str,
        indexed_tags: Collection[str] = (),
        shards: int = 1,
        *,
        journal: str = WAL,
    ) -> None:
        super().__init__(directory, journal)
        shard_count.check(directory.parent, shards)
        self._lock_file: int | None = lock(directory)
        self._writing = threading.Lock()
        try:
            with translated():
                self._db = self._connect()
                migrate(self._db)
            self._claim(fingerprint, model, shards)
            self._index_tags(indexed_tags)
        except BaseException:
            self.close()
            raise

    def _claim(self, fingerprint: str, model: str, shards: int) -> None:
        meta = self._meta()
        found = meta.get('fingerprint')
        if found is None or self.count() == 0:
            with self._transaction() as db:
                db.execute("DELETE FROM meta WHERE name = 'precision'")
                rows = [('fingerprint', fingerprint), ('model', model), ('shards', str(shards))]
                db.executemany('INSERT OR REPLACE INTO meta VALUES (?, ?)', rows)
        elif found != fingerprint:
            raise ModelMismatch(
                f'the vectors in {self.directory} were made with the model {meta.get("model")!r} ({found}), not with '
                f'{model!r} ({fingerprint}); set CLIPFLOW_MODEL back, make them anew with `clipflow reindex`, or '
                'choose another CLIPFLOW_WORKSPACE'
            )
        elif (other := int(meta.get('shards', '1'))) != shards:
            raise shard_count.mismatch(self.directory.parent, other, shards)

    def _index_tags(self, names: Collection[str]) -> None:
        """An index of each declared tag, and none of others."""
        # SQLite takes `price` and `Price` for one name.
        wanted = {f'tag_{name.encode().hex()}': index_expression(name) for name in names}
        sql = "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'tag\\_%' ESCAPE '\\'"
        there = {row[0] for row in self._read(sql)}
        if there == set(wanted):
            return
        with self._transaction() as db:
            for name in there - set(wanted):
                db.execute(f'DROP INDEX {_quoted(name)}')
            for name in set(wanted) - there:
                db.execute(f'CREATE INDEX {_quoted(name)} ON documents ({wanted[name]})')

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, translated():
            self._db.execute('BEGIN IMMEDIATE')
            try:
                yield self._db
                self._db.execute('COMMIT')
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._db.in_transaction:
                    self._db.execute('ROLLBACK')
                raise

    def snapshots(self) -> list[str]:
        """Tokens of the snapshot of the index that is complete, and of the one that was begun last."""
        return self._meta().get('snapshots', '').split()

    def note_snapshot(self, token: str, complete: str) -> None:
        """A snapshot of this very state is going to be written; until it is, `complete`, if known here, is good."""
        latest = ' '.join([*(known for known in self.snapshots() if known == complete), token])
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('snapshots', ?)", (latest,))

    def taken(self) -> int:
        """Of a store that is filled from another one: the number of the change up to which it was."""
        return int(self._meta().get('taken', '0'))

    def made(self) -> str:
        """What it was filled from, and with what; empty if it was not filled from another store."""
        return self._meta().get('made', '')

    def note_made(self, made: str) -> None:
        """It is filled anew, from the first change on."""
        with self._transaction() as db:
            db.executemany('INSERT OR REPLACE INTO meta VALUES (?, ?)', [('made', made), ('taken', '0')])

    def note_taken(self, sequence: int) -> None:
        """Everything up to this change of the other store is here."""
        with self._transaction() as db:
            _note_taken(db, sequence)

    def note_newest_key(self, key: int) -> None:
        """Keys up to this one are never given to another document."""
        newest = max(key, self.newest_key())
        with self._transaction() as db:
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'documents'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('documents', ?)", (newest,))

    def upsert(
        self, records: Sequence[Record], precision: str = 'float', *, mixed: bool = False, keep_keys: bool = False
    ) -> NDArray[np.int64]:
        """Store all records in one transaction; returns their keys, [N]. Durable on return.

        Args:
            records: with their vectors.
            precision: the vectors were made with: float or int8.
            mixed: whether vectors of both may be in the store.
            keep_keys: whether a document gets the key of its record, that of the store it comes from.

        Raises:
            DimensionMismatch: the store holds vectors of another length.
            ModelMismatch: it holds vectors of another precision.
        """
        if not records:
            return np.empty(0, dtype=np.int64)
        keys = []
        blobs = [np.asarray(record.vector, dtype=np.float32).tobytes() for record in records]
        with self._transaction() as db:
            self._check_precision(db, precision, mixed)
            self._check_dimension(db, [len(blob) for blob in blobs])
            newest = int(db.execute('SELECT coalesce(max(key), 0) FROM documents').fetchone()[0])
            sequence = self._sequence(db, len(records))
            for record, blob in zip(records, blobs, strict=True):
                if keep_keys:  # deleted and stored again over there, it has another one
                    db.execute('DELETE FROM documents WHERE id = ? AND key != ?', (record.id, record.key))
                row = db.execute(
                    f'{_UPSERT} RETURNING key',
                    (record.key if keep_keys else None, *_row(record, next(sequence)), blob),
                ).fetchone()
                keys.append(int(row[0]))
                # A new document has no thumbnail yet; its key is the highest.
                if row[0] <= newest:
                    db.execute('DELETE FROM thumbnails WHERE key = ?', row)
                if record.thumbnail:
                    db.execute('INSERT INTO thumbnails VALUES (?, ?)', (row[0], record.thumbnail))
                newest = max(newest, row[0])
        return np.array(keys, dtype=np.int64)

    def load(self, records: Sequence[Record], precision: str, taken: int) -> None:
        """`upsert` of many that have no thumbnails, and `note_taken`, in one transaction. Durable on return.

        Raises:
            DimensionMismatch, ModelMismatch: as `upsert`.
        """
        with self._transaction() as db:
            if records:
                self._check_precision(db, precision, mixed=False)
                self._check_dimension(db, [4 * len(record.vector) for record in records if record.vector is not None])
                sequence = self._sequence(db, len(records))
                rows = (
                    (None, *_row(record, next(sequence)), np.asarray(record.vector, dtype=np.float32).tobytes())
                    for record in records
                )
                db.executemany(_UPSERT, rows)
            _note_taken(db, taken)

    def _check_precision(self, db: sqlite3.Connection, precision: str, mixed: bool) -> None:
        row = db.execute("SELECT value FROM meta WHERE name = 'precision'").fetchone()
        found = row[0] if row else 'float'  # before this was kept, there were only floats
        if db.execute('SELECT 1 FROM documents LIMIT 1').fetchone():
            if found != precision and not mixed:
                raise other_precision(found, precision)
        else:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('precision', ?)", (precision,))

    def _check_dimension(self, db: sqlite3.Connection, sizes: Sequence[int]) -> None:
        row = db.execute('SELECT length(vector) FROM documents LIMIT 1').fetchone()
        expected = int(row[0]) if row else sizes[0]
        for size in sizes:
            if size != expected:
                raise DimensionMismatch(f'the store holds vectors of {expected // 4} dimensions, not of {size // 4}')

    def _sequence(self, db: sqlite3.Connection, count: int) -> Iterator[int]:
        """The next numbers of changes."""
        sql = "UPDATE meta SET value = CAST(value AS INTEGER) + ? WHERE name = 'sequence' RETURNING value"
        last = int(db.execute(sql, (count,)).fetchone()[0])
        return iter(range(last - count + 1, last + 1))

    def merge_tags(self, patches: Sequence[tuple[str, str]]) -> list[bool]:
        """Merge JSON objects into the tags of ids (RFC 7396: null removes a key); tells which ids exist."""
        with self._transaction() as db:
            sequence = self._sequence(db, len(patches))
            return [
                db.execute(
                    'UPDATE documents SET tags = json_patch(tags, ?), tagged = ? WHERE id = ?',
                    (patch, next(sequence), identifier),
                ).rowcount
                == 1
                for identifier, patch in patches
            ]

    def delete(self, ids: Iterable[str] = (), matching: Filter | None = None) -> NDArray[np.int64]:
        """Delete by ids or by a filter; returns the keys that are gone. Unknown ids are no error."""
        gone: list[int] = []
        with self._transaction() as db:
            for some in chunks(ids):
                marks = ', '.join('?' * len(some))
                gone += [r[0] for r in db.execute(f'DELETE FROM documents WHERE id IN ({marks}) RETURNING key', some)]
            if matching is not None:
                sql = f'DELETE FROM documents WHERE {matching.sql} RETURNING key'
                gone += [row[0] for row in db.execute(sql, matching.parameters)]
        return np.array(gone, dtype=np.int64)

    def clear(self) -> int:
        """Delete everything; returns how many documents there were."""
        with self._transaction() as db:
            return db.execute('DELETE FROM documents').rowcount

    def close(self) -> None:
        """Close all connections and let another process in; once more does nothing."""
        with self._writing:
            super().close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None


def _note_taken(db: sqlite3.Connection, sequence: int) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES ('taken', ?)", (str(sequence),))


def _row(record: Record, sequence: int) -> tuple[str, int, str, str, str]:
    return record.id, sequence, record.text, record.uri, record.tags


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def other_precision(stored: str, given: str) -> ModelMismatch:
    """The error about vectors of two precisions."""
    return ModelMismatch(
        f'the stored vectors were made in {stored}, these in {given}; give the encoder the CLIPFLOW_PRECISION of '
        'before, index again, or allow both with CLIPFLOW_MIX_PRECISIONS'
    )

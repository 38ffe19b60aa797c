"""The schema, as numbered steps. `PRAGMA user_version` counts those taken; a released step never changes."""

import sqlite3
from collections.abc import Callable, Sequence

from clipflow.errors import Conflict


def _m001_documents(db: sqlite3.Connection) -> None:
    db.execute('CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID')
    # AUTOINCREMENT: the key of a deleted document is never given to another one.
    db.execute(
        'CREATE TABLE documents ('
        ' key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL,'
        ' text TEXT NOT NULL, uri TEXT NOT NULL, tags TEXT NOT NULL, vector BLOB NOT NULL)'
    )
    # Apart from the documents, so that a scan of vectors or tags does not read past pictures.
    db.execute(
        'CREATE TABLE thumbnails ('
        ' key INTEGER PRIMARY KEY REFERENCES documents (key) ON DELETE CASCADE, webp BLOB NOT NULL)'
    )


def _m002_changes(db: sqlite3.Connection) -> None:
    # What changed since a snapshot is found by sequence; the index alone answers which keys there are.
    db.execute('CREATE INDEX documents_by_sequence ON documents (sequence)')
    # Kept apart from the documents: after the newest is deleted, its number must not come again.
    db.execute("INSERT INTO meta SELECT 'sequence', coalesce(max(sequence), 0) FROM documents")


def _m003_tagged(db: sqlite3.Connection) -> None:
    # The number of the latest change of tags alone: an index of vectors has nothing to learn from it.
    db.execute('ALTER TABLE documents ADD COLUMN tagged INTEGER NOT NULL DEFAULT 0')
    db.execute('CREATE INDEX documents_by_tagged ON documents (tagged) WHERE tagged > 0')


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_m001_documents, _m002_changes, _m003_tagged)


def check(db: sqlite3.Connection) -> None:
    """For who only reads: raises Conflict if the database has not got the newest schema."""
    if _taken(db, STEPS) < len(STEPS):
        raise Conflict('this workspace was written by an older clipflow; start the service once, which changes that')


def _taken(db: sqlite3.Connection, steps: Sequence[Callable[[sqlite3.Connection], None]]) -> int:
    version = int(db.execute('PRAGMA user_version').fetchone()[0])
    if version > len(steps):
        raise Conflict(
            f'this workspace has schema {version}, written by a newer clipflow; this one knows up to {len(steps)}'
        )
    return version


def migrate(db: sqlite3.Connection, steps: Sequence[Callable[[sqlite3.Connection], None]] | None = None) -> None:
    """Bring the database to the newest schema, in one transaction.

    Args:
        db: the database.
        steps: of its schema; those of documents by default.

    Raises:
        Conflict: a newer clipflow has written it.
    """
    steps = STEPS if steps is None else steps
    if _taken(db, steps) == len(steps):
        return
    db.execute('BEGIN IMMEDIATE')
    try:
        # Another connection may have taken some while this one waited.
        for step in steps[_taken(db, steps) :]:
            step(db)
        db.execute(f'PRAGMA user_version = {len(steps)}')
        db.execute('COMMIT')
    except BaseException:
        if db.in_transaction:  # a full disk may have ended it already
            db.execute('ROLLBACK')
        raise

"""Connections to the database of a shard: how they are set up, who may have them, and what their errors mean."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipflow.errors import ClipflowError, Conflict, Internal, ReadOnly, StorageFull, Unavailable
from clipflow.filters import REGEX_FUNCTION
from clipflow.store import layout

WAL = 'WAL'
"""Readers and the writer do not wait for each other."""
ROLLBACK = 'TRUNCATE'
"""New pages are written once, not to a log first: for a store that is filled while nobody reads it."""
_REGEX_SECONDS = 0.05
_ERRORS: dict[int, tuple[type[ClipflowError], str]] = {
    sqlite3.SQLITE_FULL: (
        StorageFull,
        'no space is left on the disk of the workspace; nothing of this request is stored',
    ),
    sqlite3.SQLITE_READONLY: (ReadOnly, 'the workspace cannot be written to; check its permissions'),
    sqlite3.SQLITE_CANTOPEN: (ReadOnly, 'the database of the workspace cannot be opened; check its permissions'),
    sqlite3.SQLITE_IOERR: (Unavailable, 'the disk of the workspace reports an error; see the log of the system'),
    sqlite3.SQLITE_CORRUPT: (Internal, 'the database of the workspace is damaged; restore it from a backup'),
    sqlite3.SQLITE_NOTADB: (Internal, 'the file documents.db in the workspace is not a database'),
}


def connect(path: Path, journal: str = WAL) -> sqlite3.Connection:
    """A connection for one thread at a time, durable at each commit; `journal` is WAL or ROLLBACK."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    for pragma in (f'journal_mode = {journal}', 'synchronous = FULL', 'foreign_keys = ON', 'cache_size = -32000'):
        db.execute(f'PRAGMA {pragma}')
    db.create_function(REGEX_FUNCTION, 2, _regex, deterministic=True)
    return db


@contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, 'sqlite_errorcode', 0) & 0xFF
        kind, sentence = _ERRORS.get(code, (Internal, f'the store failed: {error}'))
        raise kind(sentence) from error


def lock(directory: Path) -> int:
    """Take a workspace for this process; the descriptor that holds it.

    Raises:
        ReadOnly: it cannot be written.
        Conflict: another process has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / layout.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReadOnly(f'the workspace {directory} cannot be written: {error.strerror}') from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Conflict(
            f'another process serves the workspace {directory}; stop it, or choose another CLIPFLOW_WORKSPACE'
        ) from None
    return descriptor


def _regex(pattern: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    import regex

    try:
        return regex.search(pattern, value, timeout=_REGEX_SECONDS) is not None
    except TimeoutError:
        return False

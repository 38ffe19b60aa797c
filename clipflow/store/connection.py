"""Connections to the database of a shard: how they are set up, who may have them, and what their errors mean."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from clipflow.errors import ClipflowError, Conflict, Internal, InvalidFilter, ReadOnly, StorageFull, Unavailable
from clipflow.filters import REGEX_FUNCTION, shown
from clipflow.store import layout

WAL = 'WAL'
"""Readers and the writer do not wait for each other."""
ROLLBACK = 'TRUNCATE'
"""New pages are written once, not to a log first: for a store that is filled while nobody reads it."""
REGEX_SECONDS = 2.0
"""For a pattern on all documents of a request, what is usual aside."""
_USUAL_SECONDS = 0.0001
"""For one document; far more than an ordinary pattern takes."""
_ERRORS: dict[int, tuple[type[ClipflowError], str]] = {
    sqlite3.SQLITE_FULL: (
        StorageFull,
        'no space is left on the disk of the workspace, so this is not stored',
    ),
    sqlite3.SQLITE_IOERR_SHMSIZE: (StorageFull, 'no space is left on the disk of the workspace to open its database'),
    sqlite3.SQLITE_READONLY: (ReadOnly, 'the workspace cannot be written to; check its permissions'),
    sqlite3.SQLITE_CANTOPEN: (ReadOnly, 'the database of the workspace cannot be opened; check its permissions'),
    sqlite3.SQLITE_IOERR: (Unavailable, 'the disk of the workspace reports an error; see the log of the system'),
    sqlite3.SQLITE_CORRUPT: (Internal, 'the database {file} of the workspace is damaged; restore it from a backup'),
    sqlite3.SQLITE_NOTADB: (Internal, 'the file {file} in the workspace is not a database; restore it from a backup'),
}


class Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


def connect(path: Path, journal: str = WAL) -> Connection:
    """A connection for one thread at a time, durable at each commit; `journal` is WAL or ROLLBACK."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30, factory=Connection)
    for pragma in (f'journal_mode = {journal}', 'synchronous = FULL', 'foreign_keys = ON', 'cache_size = -32000'):
        db.execute(f'PRAGMA {pragma}')
    db.create_function(REGEX_FUNCTION, 2, _regex, deterministic=True)
    return db


@contextmanager
def translated(file: str = layout.DOCUMENTS) -> Iterator[None]:
    """SQLite's errors as ours; `file` is what they happen to. Patterns have their time, see `one_request`."""
    _patterns.late = ''
    if not _patterns.shared:
        _patterns.left = REGEX_SECONDS
    try:
        yield
    except sqlite3.Error as error:
        if _patterns.late:
            raise InvalidFilter(
                f'the pattern {shown(_patterns.late)} of $regex takes too long on these documents; a repetition within '
                'a repetition, such as (a+)+, may be the reason'
            ) from None
        code = getattr(error, 'sqlite_errorcode', 0)
        kind, sentence = _ERRORS.get(code) or _ERRORS.get(code & 0xFF) or (Internal, f'the store failed: {error}')
        raise kind(sentence.replace('{file}', file)) from error


@contextmanager
def one_request() -> Iterator[None]:
    """All statements of this thread inside share the time of patterns; outside, each has its own."""
    _patterns.left, _patterns.shared = REGEX_SECONDS, True
    try:
        yield
    finally:
        _patterns.shared = False


def lock(directory: Path) -> int:
    """Take a workspace for this process; the descriptor that holds it.

    Raises:
        ReadOnly: it cannot be written, or its file system has no locks.
        Conflict: another process has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / layout.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReadOnly(f'the workspace {directory} cannot be written: {error.strerror}') from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise ReadOnly(f'the workspace {directory} cannot be locked: {error.strerror}') from None
        raise Conflict(
            f'another process serves the workspace {directory}; stop it, or choose another CLIPFLOW_WORKSPACE'
        ) from None
    return descriptor


class _Patterns(threading.local):
    """What patterns may still take here, the one that took too long, and whether statements share the time."""

    left = REGEX_SECONDS
    late = ''
    shared = False


_patterns = _Patterns()


@lru_cache(64)
def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)


def _regex(pattern: str, value: Any) -> bool:
    """Raises TimeoutError, so that the statement fails: not to know is neither a match nor none."""
    if not isinstance(value, str):
        return False
    started = time.thread_time()
    try:
        return _compiled(pattern).search(value, timeout=max(_patterns.left, _USUAL_SECONDS)) is not None
    except TimeoutError:
        _patterns.late = pattern
        raise
    finally:
        _patterns.left -= max(0.0, time.thread_time() - started - _USUAL_SECONDS)

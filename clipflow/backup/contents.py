"""What of a workspace goes into a backup, held still at one moment while a service goes on writing.

Of each database a read transaction is open, whose view does not change (WAL); writers do not wait for it, but what they
write stays in the log beside the database until it ends. Other files never change once they have their names, and are
open, so that they stay readable when they are deleted.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from clipflow.backup.manifest import Model, Shard
from clipflow.backup.target import settling
from clipflow.errors import Conflict, Internal, ReadOnly, StorageFull
from clipflow.store import layout
from clipflow.store.connection import connect, translated
from clipflow.store.feedback import STEPS as FEEDBACK_STEPS
from clipflow.store.generations import current
from clipflow.store.migrations import STEPS as DOCUMENT_STEPS

SCHEMAS = {layout.INDEXER: len(DOCUMENT_STEPS), layout.FEEDBACK: len(FEEDBACK_STEPS)}
"""Newest schema of the databases below each name."""
_PAGES = 1024
_TRIES = 3

Moved = Callable[[float], None]
"""Is told of more bytes that are done."""


@dataclass
class Contents:
    """Databases in their transactions and open files, by their names in a backup."""

    databases: dict[str, sqlite3.Connection] = field(default_factory=dict)
    files: dict[str, BinaryIO] = field(default_factory=dict)
    shards: dict[int, Shard] = field(default_factory=dict)
    model: Model = field(default_factory=lambda: Model(name='', fingerprint='', precision='', dimension=0))
    of: int = 1

    def sizes(self) -> dict[str, int]:
        """Bytes of each, databases first."""
        found = {name: _pages(db) * _page_size(db) for name, db in self.databases.items()}
        return found | {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()}


@contextmanager
def held(workspace: Path) -> Iterator[Contents]:
    """Everything at one moment; the shards are a few milliseconds apart.

    Raises:
        Conflict: a newer clipflow has written it, or its documents were exchanged just now.
        ReadOnly: it cannot be read.
    """
    found = Contents()
    with ExitStack() as closing_:
        shards = layout.shards(current(workspace))
        for number, directory in shards.items():
            # Before the database, which must know the snapshot.
            place = f'{layout.INDEXER}/{number}/{layout.SNAPSHOTS}'
            _hold_files(found, closing_, place, partial(layout.newest, directory / layout.SNAPSHOTS))
        _hold_files(found, closing_, layout.RANKER, lambda: workspace / layout.RANKER)
        for number, directory in shards.items():
            name = f'{layout.INDEXER}/{number}/{layout.DOCUMENTS}'
            found.shards[number] = _described(found, _hold(found, closing_, name, directory / layout.DOCUMENTS))
        for path in sorted((workspace / layout.FEEDBACK).glob('*.db')):
            _hold(found, closing_, f'{layout.FEEDBACK}/{path.name}', path)
        yield found


def _hold(found: Contents, closing_: ExitStack, name: str, path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise Conflict(f'{path} was exchanged for another one just now; try again')
    with translated(name):
        db = closing_.enter_context(closing(connect(path)))
        db.execute('BEGIN')
        version = schema(db)
        known = SCHEMAS[Path(name).parts[0]]
        if version > known:
            raise Conflict(f'{path} has schema {version}, written by a newer clipflow; this one knows up to {known}')
    found.databases[name] = db
    return db


def _hold_files(found: Contents, closing_: ExitStack, name: str, where: Callable[[], Path | None]) -> None:
    """All files of a folder; it may be replaced by a newer one meanwhile."""
    for _ in range(_TRIES):
        with ExitStack() as opening, contextlib.suppress(FileNotFoundError):
            folder = where()
            if folder is None or not folder.is_dir():
                return
            beneath = folder.name if folder.name.isdigit() else ''
            opened: dict[str, BinaryIO] = {}
            for path in sorted(path for path in folder.rglob('*') if path.is_file()):
                inner = '/'.join([part for part in (name, beneath) if part] + [path.relative_to(folder).as_posix()])
                opened[inner] = opening.enter_context(_readable(path))
            found.files |= opened
            closing_.push(opening.pop_all())
            return
    raise Conflict(f'{name} of the workspace changes all the time; try again')


def _readable(path: Path) -> BinaryIO:
    try:
        return path.open('rb')
    except PermissionError as error:
        raise ReadOnly(f'{path} cannot be read ({error.strerror}); change its owner') from None


def _described(found: Contents, db: sqlite3.Connection) -> Shard:
    with translated():
        meta = dict(db.execute('SELECT name, value FROM meta').fetchall())
        count = int(db.execute('SELECT count(*) FROM documents').fetchone()[0])
        length = db.execute('SELECT length(vector) FROM documents LIMIT 1').fetchone()
    found.of = int(meta.get('shards', '1'))
    if length and not found.model.dimension:
        precision = meta.get('precision', 'float')
        found.model = Model(
            name=meta['model'], fingerprint=meta['fingerprint'], precision=precision, dimension=int(length[0]) // 4
        )
    return Shard(documents=count, sequence=int(meta['sequence']))


def copied(db: sqlite3.Connection, path: Path, moved: Moved) -> None:
    """Copy a database as its transaction sees it, end that, and look whether the copy is sound.

    Raises:
        StorageFull: there is no space for it.
        Internal: the original is damaged.
    """
    size, done = _page_size(db), 0

    def told(_status: int, remaining: int, total: int) -> None:
        nonlocal done
        count = (total - remaining) * size - done
        written(count)
        moved(count)
        done += count

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as target, ExitStack() as open_:
            # Nobody else sees it, and it is synced as a whole.
            target.execute('PRAGMA journal_mode = OFF')
            target.execute('PRAGMA synchronous = OFF')
            target.execute('PRAGMA user_version')  # so that the file is there
            written = open_.enter_context(settling(path))
            db.backup(target, pages=_PAGES, progress=told)
        db.execute('COMMIT')
        # What was written meanwhile goes from the log to the database now, and not within the next write of a service.
        db.execute('PRAGMA wal_checkpoint(PASSIVE)')
        with closing(sqlite3.connect(f'file:{quote(str(path))}?immutable=1', uri=True)) as copy:
            verdict = copy.execute('PRAGMA quick_check(1)').fetchone()[0]
    except sqlite3.Error as error:
        code = getattr(error, 'sqlite_errorcode', 0)
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
            raise StorageFull(f'no space is left for a copy of a database in {path.parent}') from None
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            raise ReadOnly(f'{path.parent} cannot be written') from None
        with translated():
            raise
    if verdict != 'ok':
        raise Internal(
            f'a database of the workspace is damaged ({verdict.splitlines()[0]}); put back a backup of before'
        )


def schema(db: sqlite3.Connection) -> int:
    """Number of the schema."""
    return int(db.execute('PRAGMA user_version').fetchone()[0])


def _pages(db: sqlite3.Connection) -> int:
    return int(db.execute('PRAGMA page_count').fetchone()[0])


def _page_size(db: sqlite3.Connection) -> int:
    return int(db.execute('PRAGMA page_size').fetchone()[0])

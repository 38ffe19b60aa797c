"""A backup is taken: `<target>/<time>-<mark>/`, with the names of the workspace, and its manifest last.

The mark is that of the workspace, so that several of them may share a target: each removes only what is its own.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from clipflow import __version__
from clipflow.backup import contents, manifest
from clipflow.backup.contents import Moved
from clipflow.backup.manifest import File, Manifest
from clipflow.backup.target import Target
from clipflow.errors import ClipflowError, Conflict, InvalidParameter, NotFound, ReadOnly, StorageFull
from clipflow.store import generations, layout

NAME = re.compile(r'(?P<time>\d{8}T\d{6}Z)-(?P<mark>[0-9a-f]{6})')
CHUNK = 1 << 20


@dataclass(frozen=True)
class Taken:
    """One backup in a target."""

    name: str
    manifest: Manifest


def complete(target: Target) -> dict[str, bytes]:
    """All backups that are complete, the oldest first: the manifest of each, by its name."""
    found = {}
    for name in target.names():
        data = target.at(name).read(manifest.NAME) if NAME.fullmatch(name) else None
        if data is not None:
            found[name] = data
    return found


def mark_of(name: str) -> str:
    """The mark of the workspace that a backup was taken of."""
    return name.rpartition('-')[2]


def take(workspace: Path, target: Target, begun: Callable[[int], Moved]) -> Taken:
    """Back a workspace up; a service may write to it meanwhile, and does not wait.

    What was acknowledged before the call is in it. What an earlier call has left unfinished is removed.

    Args:
        workspace: as in CLIPFLOW_WORKSPACE.
        target: where it goes.
        begun: is told how many bytes there are, and returns who is told how many more are done.

    Raises:
        NotFound: there are no documents.
        InvalidParameter: the target lies in a part of the workspace that is replaced when a backup is put back.
        Conflict: another backup of this workspace is being taken, or a newer clipflow has written it.
        StorageFull, ReadOnly, Forbidden, Unauthorized, Unavailable: the target cannot take it; nothing of it counts.
        Internal: a database is damaged.
    """
    if not layout.shards(generations.current(workspace)):
        raise NotFound(f'there are no documents in {workspace}; check CLIPFLOW_WORKSPACE')
    target.check_apart(workspace)
    with _marked(workspace) as mark:
        _clean(target, mark)
        with contents.held(workspace) as held, _staging(target, mark) as staging:
            while True:
                now = datetime.now(UTC).replace(microsecond=0)
                name = f'{now:%Y%m%dT%H%M%SZ}-{mark}'
                place = target.at(name)
                if not place.names():
                    break
                time.sleep(0.1)  # one was taken within this very second
            sizes = held.sizes()
            _check_space(target, staging, sizes, list(held.databases))
            moved = begun(sum(sizes.values()))
            try:
                files = {}
                for file, db in held.databases.items():
                    files[file] = _put_database(db, place, file, staging, moved)
                for file, source in held.files.items():
                    files[file] = _put(source, place, file, moved)
                written = Manifest(
                    format=manifest.FORMAT,
                    clipflow=__version__,
                    sqlite=sqlite3.sqlite_version,
                    time=now,
                    model=held.model,
                    of=held.of,
                    shards=held.shards,
                    files=files,
                )
                place.write(manifest.NAME, written.dump())
            except BaseException:
                with contextlib.suppress(ClipflowError):
                    target.remove(name)
                raise
    return Taken(name, written)


def keep(target: Target, taken: Taken, count: int) -> list[str]:
    """Remove all but `count` backups of the same workspace, `taken` and the latest before; returns their names."""
    if count < 1:
        raise InvalidParameter('at least one backup is kept')
    # By their names: one whose manifest is damaged keeps none of the others here. A clock that was set back makes
    # others later than the one that was taken just now.
    others = [name for name in complete(target) if mark_of(name) == mark_of(taken.name) and name != taken.name]
    gone = others[: max(0, len(others) - count + 1)]
    for name in gone:
        _remove(target, name)
    return gone


def _remove(target: Target, name: str) -> None:
    # From here on it is none; the next call of `take` removes what an interruption leaves.
    target.at(name).remove(manifest.NAME)
    target.remove(name)


def _clean(target: Target, mark: str) -> None:
    for name in target.names():
        match = NAME.fullmatch(name)
        if match and match['mark'] == mark and target.at(name).read(manifest.NAME) is None:
            target.remove(name)


@contextmanager
def _marked(workspace: Path) -> Iterator[str]:
    """The mark of a workspace, of which one backup at a time is taken."""
    try:
        descriptor = os.open(workspace / layout.BACKUP, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReadOnly(f'the workspace {workspace} cannot be written: {error.strerror}') from None
    with os.fdopen(descriptor, 'r+') as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f'another backup of {workspace} is being taken; wait for its end') from None
        mark = file.read().strip()
        if not re.fullmatch('[0-9a-f]{6}', mark):
            mark = secrets.token_hex(3)
            file.seek(0)
            file.truncate()
            file.write(mark + '\n')
            file.flush()
        yield mark


@contextmanager
def _staging(target: Target, mark: str) -> Iterator[Path | None]:
    """Where databases are copied before they are sent; None where they are copied to their place."""
    if target.folder is not None:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f'clipflow-backup-{mark}'
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ReadOnly(f'{folder} cannot be written ({error.strerror}); set TMPDIR') from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_space(target: Target, staging: Path | None, sizes: dict[str, int], databases: list[str]) -> None:
    if staging is None:
        need, free, place = sum(sizes.values()), target.free(), target.address
    else:
        need, free = max(sizes[name] for name in databases), shutil.disk_usage(staging).free
        place = f'{staging.parent}, where databases are copied before they are sent (TMPDIR)'
    if free is not None and need > free:
        raise StorageFull(f'the backup needs {need:,} bytes, and {free:,} are left in {place}')


def _put_database(db: sqlite3.Connection, place: Target, name: str, staging: Path | None, moved: Moved) -> File:
    def half(count: float) -> None:
        # It is read twice: from the workspace, then from its copy.
        moved(count / 2)

    schema = contents.schema(db)
    copy = (staging or place.folder or Path()) / name
    try:
        contents.copied(db, copy, half)
    except OSError as error:
        raise ReadOnly(f'{copy.parent} cannot be written ({error.strerror})') from None
    with copy.open('rb') as source:
        if staging is not None:
            written = _put(source, place, name, half)
            copy.unlink()
        else:
            written = streamed(source, None, half)
            place.settle(name)
    return written.model_copy(update={'schema_': schema})


def _put(source: BinaryIO, place: Target, name: str, moved: Moved) -> File:
    with place.created(name) as write:
        written = streamed(source, write, moved)
    if (there := place.size(name)) != written.bytes:
        raise StorageFull(f'{place.address}/{name}: {there:,} of {written.bytes:,} bytes were kept')
    return written


def streamed(source: BinaryIO, write: Callable[[bytes], object] | None, moved: Moved) -> File:
    """Read to the end, and write it if it is to be written; what was read."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        if write is not None:
            write(chunk)
        size += len(chunk)
        moved(len(chunk))
    return File(bytes=size, sha256=digest.hexdigest(), schema=None)

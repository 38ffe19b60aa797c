"""Which of the directories in a workspace holds its documents.

A whole collection that is made anew (`clipflow build`, `reindex`, `reshard`) is written beside the old one, and takes
its place by the change of one small file. One command at a time may do such a thing (`alone`); it changes that file
while it, or the service that it asks, holds the locks of all shards that count; and who has locked shards looks once
more whether they count (`check`). So nothing is written to documents that count no more, and nothing is deleted that
counts. The file also names what is to be deleted: what a kill leaves of it goes with the next command or start.

A backup that is put back replaces what lies beside the documents too: it is complete under one name when that name
appears, and whoever asks next which directory counts does what is left to do.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipflow.errors import Conflict, Internal, NotFound, ReadOnly, StorageFull
from clipflow.files import replaced, sync
from clipflow.store import layout

_NAME = re.compile(rf'{layout.INDEXER}(-[a-z0-9]+)?')
_BESIDE = (layout.FEEDBACK, layout.RANKER)


def current(workspace: Path) -> Path:
    """The directory that counts; it need not exist yet.

    Raises:
        Internal: the file that names it is damaged.
        StorageFull, ReadOnly: a backup was put back, and could not take its place.
        ReadOnly: it cannot be read.
    """
    _check_readable(workspace)
    if (workspace / layout.RESTORED).is_dir():
        with _translated(workspace):
            _take_over(workspace)
    folder = workspace / _read(workspace)[0]
    _check_readable(folder)
    return folder


@contextmanager
def alone(workspace: Path, *, make: bool = False) -> Iterator[Path]:
    """No other command makes documents anew, or puts a backup back, meanwhile; the directory that counts.

    What an earlier one has left to delete is deleted first.

    Raises:
        NotFound: there is no workspace, and `make` does not say that it is to be made.
        Conflict: another command does such a thing.
        Internal, StorageFull, ReadOnly: see `current`.
    """
    _check_readable(workspace)
    if not workspace.exists() and not make:
        raise NotFound(f'there are no documents in {workspace}; check CLIPFLOW_WORKSPACE')
    with _translated(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workspace, os.O_RDONLY)
    try:
        with _translated(workspace):
            try:
                # The directory itself: a file for it could not be removed again without a gap.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f'another command makes the documents in {workspace} anew; let it end, or stop it'
                ) from None
        folder = current(workspace)
        clear(workspace)
        yield folder
    finally:
        os.close(descriptor)


def check(folder: Path) -> None:
    """For who has locked the shards in `folder`, before anything is written there.

    Raises:
        Conflict: it counts no more.
    """
    if (counts := current(folder.parent)) != folder:
        raise Conflict(f'the documents were moved from {folder} to {counts} just now; try again')


def named(workspace: Path, mark: str) -> Path:
    """The directory of another generation; `mark` is of small letters and digits."""
    return workspace / f'{layout.INDEXER}-{mark}'


def free(workspace: Path, mark: str) -> Path:
    """As `named`, the same at each call, but never the directory that counts."""
    return next(path for path in (named(workspace, mark), named(workspace, f'{mark}2')) if path != current(workspace))


def switch(workspace: Path, folder: Path, gone: Path | None = None) -> None:
    """From now on `folder` counts; at no moment neither or both do, and it stays so after a power cut.

    Args:
        workspace: where.
        folder: complete.
        gone: a directory that `clear` is to delete, now or after a kill.

    Raises:
        StorageFull, ReadOnly: the file could not be written; the one before counts.
    """
    with _translated(workspace):
        for path in (*layout.shards(folder).values(), folder):
            sync(path)
    _write(workspace, folder.name, *([] if gone is None else [gone.name]))


def cleared(workspace: Path) -> Path:
    """As `current`, for a service that starts: what a killed command has left to delete is deleted, if it can be."""
    with suppress(Conflict, NotFound, ReadOnly, StorageFull), alone(workspace) as folder:
        return folder
    return current(workspace)


def clear(workspace: Path) -> None:
    """Delete what counts no more; for who is `alone`. What cannot be deleted is left for the next one."""
    counts, *gone = _read(workspace)
    for name in gone:
        shutil.rmtree(workspace / name, ignore_errors=True)
    if gone and not any((workspace / name).exists() for name in gone):
        _write(workspace, counts)


def is_replaced(name: str) -> bool:
    """Whether what has this name in a workspace is deleted when a backup is put back."""
    return bool(_NAME.fullmatch(name)) or name in (*_BESIDE, layout.RESTORED, f'{layout.RESTORED}.part')


def staging(workspace: Path) -> Path:
    """Where a backup that is put back is written, with the names of the workspace; it counts for nothing."""
    return workspace / f'{layout.RESTORED}.part'


def replace(workspace: Path) -> None:
    """What is in `staging`, complete and synced, takes the place of documents, feedback and heads.

    Killed at any point, either nothing has changed, or the next call of `current` does the rest. Nobody may have the
    documents open.

    Raises:
        StorageFull, ReadOnly: the workspace cannot be written.
    """
    folder = staging(workspace)
    with _translated(workspace):
        for name in _BESIDE:
            (folder / name).mkdir(exist_ok=True)
        pointer = folder / layout.GENERATION
        pointer.write_text(named(workspace, secrets.token_hex(4)).name + '\n')
        sync(pointer)
        sync(folder)
        folder.rename(workspace / layout.RESTORED)
        sync(workspace)
        _take_over(workspace)


def _take_over(workspace: Path) -> None:
    """Every step may have been taken before; the old documents go last."""
    folder = workspace / layout.RESTORED
    with _one_after_the_other(folder) as there:
        if not there:
            return
        pointer = folder / layout.GENERATION
        if pointer.exists():
            _move(folder / layout.INDEXER, workspace / pointer.read_text().strip())
            for name in _BESIDE:
                _move(folder / name, workspace / name)
            sync(workspace)
            os.replace(pointer, workspace / layout.GENERATION)
            sync(workspace)
        counts = _read(workspace)[0]
        for path in workspace.iterdir():
            if _NAME.fullmatch(path.name) and path.name != counts:
                shutil.rmtree(path)
        shutil.rmtree(folder, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    if source.exists():
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)


@contextmanager
def _one_after_the_other(folder: Path) -> Iterator[bool]:
    """One process at a time: the shards of a service ask at the same moment. Whether it is still there to be done."""
    try:
        descriptor = os.open(folder / layout.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder.is_dir()
    finally:
        os.close(descriptor)


def _check_readable(folder: Path) -> None:
    """Raises ReadOnly for a folder that would seem to be empty because nobody here may look into it."""
    try:
        closed = folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    except PermissionError:
        closed = True
    if closed:
        raise ReadOnly(f'{folder} cannot be read; change its owner, or call this as the user of the service')


def _read(workspace: Path) -> list[str]:
    """The name of the directory that counts, and of one that is to be deleted, if there is one."""
    path = workspace / layout.GENERATION
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()] or ['']
    except FileNotFoundError:
        names = [layout.INDEXER]
    except (OSError, UnicodeDecodeError) as error:
        raise Internal(f'{path} cannot be read: {error}') from None
    if not all(_NAME.fullmatch(name) for name in names) or names[0] in names[1:]:
        raise Internal(f'{path} is damaged; it should hold the name of the directory that counts')
    return names


def _write(workspace: Path, *names: str) -> None:
    replaced(workspace / layout.GENERATION, ''.join(f'{name}\n' for name in names).encode())


@contextmanager
def _translated(workspace: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno == 28 else ReadOnly
        raise kind(f'the workspace {workspace} cannot be written: {error.strerror}') from None

"""Which of the directories in a workspace holds its documents.

A whole collection that is made anew (`clipflow reindex`, `clipflow reshard`) is written beside the old one, and takes
its place by the change of one small file. A backup that is put back replaces what lies beside the documents too: it is
complete under one name when that name appears, and whoever asks next which directory counts does what is left to do.
"""

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipflow.errors import Internal, ReadOnly, StorageFull
from clipflow.files import sync
from clipflow.store import layout

_NAME = re.compile(rf'{layout.INDEXER}(-[a-z0-9]+)?')
_GONE = '.gone'
_BESIDE = (layout.FEEDBACK, layout.RANKER)


def current(workspace: Path) -> Path:
    """The directory that counts; it need not exist yet.

    Raises:
        Internal: the file that names it is damaged.
        StorageFull, ReadOnly: a backup was put back, and could not take its place.
    """
    if (workspace / layout.RESTORED).is_dir():
        with _translated(workspace):
            _take_over(workspace)
    for left in workspace.glob(f'*{_GONE}'):
        shutil.rmtree(left, ignore_errors=True)
    return workspace / _read(workspace)


def named(workspace: Path, mark: str) -> Path:
    """The directory of another generation; `mark` is of small letters and digits."""
    return workspace / f'{layout.INDEXER}-{mark}'


def switch(workspace: Path, folder: Path) -> None:
    """From now on `folder` counts; at no moment neither or both do, and it stays so after a power cut.

    Raises:
        StorageFull, ReadOnly: the file could not be written; the one before counts.
    """
    with _translated(workspace):
        with tempfile.NamedTemporaryFile('w', dir=workspace, prefix=layout.GENERATION, delete=False) as file:
            file.write(folder.name + '\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, workspace / layout.GENERATION)
        sync(workspace)


def remove(folder: Path) -> None:
    """Delete a generation that nobody has open; what a kill leaves of it goes when somebody asks which one counts."""
    gone = folder.with_name(folder.name + _GONE)
    with _translated(folder.parent):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


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
    with _alone(folder) as there:
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
        counts = _read(workspace)
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
def _alone(folder: Path) -> Iterator[bool]:
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


def _read(workspace: Path) -> str:
    path = workspace / layout.GENERATION
    try:
        name = path.read_text(encoding='utf-8').strip()
    except FileNotFoundError:
        name = layout.INDEXER
    except (OSError, UnicodeDecodeError) as error:
        raise Internal(f'{path} cannot be read: {error}') from None
    if not _NAME.fullmatch(name):
        raise Internal(f'{path} is damaged; it should hold the name of the directory that counts')
    return name


@contextmanager
def _translated(workspace: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno == 28 else ReadOnly
        raise kind(f'the workspace {workspace} cannot be written: {error.strerror}') from None

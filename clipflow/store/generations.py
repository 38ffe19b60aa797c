"""Which of the directories in a workspace holds its documents.

A whole collection that is made anew (`clipflow reindex`, `clipflow reshard`) is written beside the old one, and takes
its place by the change of one small file.
"""

import os
import re
import tempfile
from pathlib import Path

from clipflow.errors import Internal, ReadOnly, StorageFull

_FIRST = 'indexer'
_NAME = re.compile(r'indexer(-[a-z0-9]+)?')
_POINTER = 'generation'


def current(workspace: Path) -> Path:
    """The directory that counts; it need not exist yet.

    Raises:
        Internal: the file that names it is damaged.
    """
    try:
        name = (workspace / _POINTER).read_text(encoding='utf-8').strip()
    except FileNotFoundError:
        name = _FIRST
    except (OSError, UnicodeDecodeError) as error:
        raise Internal(f'{workspace / _POINTER} cannot be read: {error}') from None
    if not _NAME.fullmatch(name):
        raise Internal(f'{workspace / _POINTER} is damaged; it should hold the name of the directory that counts')
    return workspace / name


def named(workspace: Path, mark: str) -> Path:
    """The directory of another generation; `mark` is of small letters and digits."""
    return workspace / f'{_FIRST}-{mark}'


def switch(workspace: Path, folder: Path) -> None:
    """From now on `folder` counts; at no moment neither or both do, and it stays so after a power cut.

    Raises:
        StorageFull, ReadOnly: the file could not be written; the one before counts.
    """
    try:
        with tempfile.NamedTemporaryFile('w', dir=workspace, prefix=_POINTER, delete=False) as file:
            file.write(folder.name + '\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, workspace / _POINTER)
        descriptor = os.open(workspace, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        kind = StorageFull if error.errno == 28 else ReadOnly
        raise kind(f'the workspace {workspace} cannot be written: {error.strerror}') from None

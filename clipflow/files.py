"""Which files are pictures, by their names; and files that are there as a whole, also after a power cut."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipflow.errors import ReadOnly, StorageFull

PICTURES = frozenset(
    (
        'jpg',
        'jpeg',
        'jpe',
        'jfif',
        'png',
        'webp',
        'gif',
        'tif',
        'tiff',
        'bmp',
        'avif',
        'jp2',
        'ppm',
        'pgm',
        'pbm',
        'ico',
    )
)
"""Suffixes of files, or of members of archives, that are taken for pictures."""


def located(path: Path) -> Path:
    """Where it is, the same from whichever folder it is named; links are followed only to know what `..` means."""
    return path.resolve() if '..' in path.parts else path.absolute()


def sync(path: Path) -> None:
    """A file, or the names in a directory, stay after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replaced(path: Path, content: bytes) -> None:
    """Write a file, with its folders; a reader finds the old content or the new one, also after a power cut.

    Raises:
        StorageFull, ReadOnly: it cannot be written; the old one is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}-', delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        sync(path.parent)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else ReadOnly
        raise kind(f'{path} cannot be written: {error.strerror}') from None


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """For work that goes on where it stopped: what its files cannot take is one sentence (StorageFull, ReadOnly)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f'no space is left for {folder}; make some, and run the same command again: what is done stays'
            ) from None
        raise ReadOnly(f'{folder} cannot be written: {error.strerror or error}') from None

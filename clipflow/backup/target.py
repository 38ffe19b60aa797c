"""Where backups are: a folder, or a bucket of an S3-compatible store, both through fsspec.

Credentials and the address of a store come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_ENDPOINT_URL`, a profile, or the role of the machine), and are never part of a name.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

import fsspec

from clipflow.errors import (
    ClipflowError,
    Forbidden,
    InvalidParameter,
    NotFound,
    ReadOnly,
    StorageFull,
    Unauthorized,
    Unavailable,
)
from clipflow.files import replaced, sync
from clipflow.store import generations

_S3 = 's3'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEP = 8 << 20
_SECONDS = {'connect_timeout': 10, 'read_timeout': 60}
_FOREIGN = ('botocore', 'aiobotocore', 'aiohttp')
"""Packages whose errors are no OSError."""


class Target:
    """A place for files under names with `/`.

    Args:
        address: a path, or `s3://bucket/prefix`.

    Raises:
        InvalidParameter: it is of another kind, holds credentials, or the extra `s3` is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip('/') or '/'
        parts = urlsplit(address)
        self.folder: Path | None = None
        if '://' not in address:
            self.folder = Path(os.path.expanduser(address)).absolute()
            self._root = str(self.folder)
            self._files: Any = fsspec.filesystem('file', use_listings_cache=False)
            return
        if '@' in parts.netloc:
            self.address = f'{parts.scheme}://...'
            raise InvalidParameter('an address must not hold credentials; set AWS_ACCESS_KEY_ID and the like')
        if parts.scheme != _S3 or not parts.netloc:
            raise InvalidParameter(f'{address!r} is no place for backups: it is a folder, or s3://bucket/prefix')
        self._root = self.address.partition('://')[2]
        try:
            self._files = fsspec.filesystem(_S3, use_listings_cache=False, config_kwargs=_SECONDS)
        except ImportError:
            raise InvalidParameter("s3:// needs the extra s3: pip install 'clipflow[s3]'") from None

    def at(self, name: str) -> Self:
        """The place below this one."""
        return type(self)(f'{self.address}/{name}')

    def check_apart(self, workspace: Path) -> None:
        """Raises InvalidParameter if it is deleted when a backup is put back into a workspace."""
        if self.folder is not None and self.folder.resolve().is_relative_to(workspace.resolve()):
            inside = self.folder.resolve().relative_to(workspace.resolve()).parts
            if inside and generations.is_replaced(inside[0]):
                raise InvalidParameter(
                    f'{self.address} is in a part of the workspace that is deleted when a backup is put back; take '
                    'another place'
                )

    def names(self) -> list[str]:
        """Of what lies directly in it, in order; nothing if it is not there."""
        with self._translated():
            try:
                return sorted(PurePosixPath(path).name for path in self._files.ls(self._root, detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read(self, name: str) -> bytes | None:
        """The whole of a file; None if it is not there."""
        with self._translated():
            try:
                found: bytes = self._files.cat_file(self._path(name))
                return found
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, data: bytes) -> None:
        """A whole file at once: nobody sees half of it."""
        with self._translated():
            if self.folder is None:
                self._files.pipe_file(self._path(name), data)
                return
            replaced(self.folder / name, data)

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file to read."""
        with self._translated(), self._files.open(self._path(name), 'rb') as file:
            yield file

    @contextmanager
    def created(self, name: str) -> Iterator[Callable[[bytes], object]]:
        """A file, by a function that writes to it; on disk at the end."""
        with self._translated():
            if self.folder is None:
                with self._files.open(self._path(name), 'wb') as file:
                    yield file.write
                return
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open('wb') as file, settling(path) as written:

                def write(data: bytes) -> None:
                    file.write(data)
                    written(len(data))

                yield write
            self.settle(name)

    def settle(self, name: str) -> None:
        """A file that was written in a folder stays after a power cut."""
        if self.folder is not None:
            with self._translated():
                sync(self.folder / name)
                sync((self.folder / name).parent)

    def size(self, name: str) -> int:
        """Bytes of a file, as the store has them."""
        with self._translated():
            return int(self._files.info(self._path(name))['size'])

    def remove(self, name: str) -> None:
        """A file, or everything below a name; nothing if it is not there."""
        with self._translated(), suppress(FileNotFoundError):
            self._files.rm(self._path(name), recursive=True)

    def free(self) -> int | None:
        """Bytes that are left; None where nobody knows."""
        if self.folder is None:
            return None
        with self._translated():
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free

    def _path(self, name: str) -> str:
        return f'{self._root}/{name}'

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What went wrong, as one of ours; the words of others stay out, for they may hold more than they should."""
        try:
            yield
        except OSError as error:
            raise _ours(error, self.address, self.folder is not None) from None
        except Exception as error:
            if type(error).__module__.partition('.')[0] not in _FOREIGN:
                raise
            name = type(error).__name__
            if 'Credentials' in name or 'Token' in name:
                raise Unauthorized(
                    f'{self.address}: no credentials that can be used ({name}); set AWS_ACCESS_KEY_ID and '
                    'AWS_SECRET_ACCESS_KEY, or AWS_PROFILE'
                ) from None
            raise Unavailable(f'{self.address} cannot be reached ({name}); check AWS_ENDPOINT_URL') from None


@contextmanager
def settling(path: Path) -> Iterator[Callable[[int], None]]:
    """Brings a file to the disk while it is written, as the function is told of more bytes.

    All at once at the end would take seconds, for which the syncs of a service on the same disk would wait.
    """
    descriptor, waiting = os.open(path, os.O_WRONLY), 0

    def written(count: int) -> None:
        nonlocal waiting
        waiting += count
        if waiting >= _STEP:
            os.fdatasync(descriptor)
            waiting = 0

    try:
        yield written
    finally:
        os.close(descriptor)


def _ours(error: OSError, place: str, is_folder: bool) -> ClipflowError:
    if error.errno in _FULL:
        return StorageFull(f'no space is left in {place}')
    if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.ENOTDIR):
        if is_folder:
            return ReadOnly(f'{place} cannot be read or written ({error.strerror}); change its owner, or take another')
        return Forbidden(f'{place}: the credentials are wrong, or do not allow this')
    if isinstance(error, FileNotFoundError):
        missing = 'a file of it is missing' if is_folder else 'there is no such bucket or file'
        return NotFound(f'{place}: {missing}')
    return Unavailable(f'{place} cannot be used: {error.strerror or type(error).__name__}')

"""Files where they lie: on this machine, or behind any URL that fsspec knows."""

import hashlib
import itertools
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, Unavailable

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What is raised by reading a file that is gone, may not be read, or is damaged."""
_PACKED = {'gz': 'gzip', 'tgz': 'gzip', 'bz2': 'bz2', 'xz': 'xz'}
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong inside becomes one sentence.

    Raises:
        InvalidDocument: `name` cannot be read.
    """
    try:
        yield
    except _DAMAGED as error:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InvalidDocument(f'{name} cannot be read: {reason}') from None


def located(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and what it calls that place.

    Raises:
        InvalidParameter: a scheme that fsspec does not know.
        Unavailable: it needs a package that is not installed.
    """
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise Unavailable(f'{url} needs a package that is not installed: {error}') from None
    except ValueError as error:
        raise InvalidParameter(f'{url} is no place that can be read: {error}') from None
    return system, str(path)


def named(system: Any, path: str) -> str:
    """A name that leads there from anywhere: the path itself on this machine, else a URL."""
    return path if 'file' in _protocols(system) else str(system.unstrip_protocol(path))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def opened(url: str) -> IO[bytes]:
    """A file to read from, at any place; what is packed (by its suffix) is unpacked on the way."""
    located(url)
    file: IO[bytes] = fsspec.open(url, 'rb', compression=_PACKED.get(url.rpartition('.')[2].lower())).open()
    return file


def content(url: str) -> bytes:
    """A whole file.

    Raises:
        InvalidDocument: it is gone, or cannot be read.
        InvalidParameter, Unavailable: as `located`.
    """
    return content_at(*located(url))


def content_at(system: Any, path: str) -> bytes:
    """As `content`, of a file system that is known."""
    try:
        found: bytes = system.cat_file(path)
        return found
    except Exception as error:  # every file system and its client have errors of their own
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InvalidDocument(f'{named(system, path)} cannot be read: {reason}') from None


def listed(url: str) -> dict[str, int]:
    """All files below a folder, hidden ones and those in hidden folders left out, with their sizes.

    Pipes and sockets are no files: nobody may ever write to them.
    """
    system, root = located(url)
    with reading(url):
        found = system.find(root, detail=True)
    return {
        name: int(info.get('size') or 0)
        for name, info in sorted(found.items())
        if not any(part.startswith('.') or part == '__MACOSX' for part in name[len(root) :].split('/'))
        and (info.get('type') != 'other' or info.get('islink'))
    }


def sizes(urls: Iterable[str]) -> dict[str, int]:
    """Sizes of files; -1 for one that is not there."""
    found = {}
    for url in urls:
        system, path = located(url)
        try:
            found[url] = int(system.info(path)['size'] or 0)
        except OSError:
            found[url] = -1
    return found


def digest(files: dict[str, int]) -> str:
    """Names files by their names and sizes: SHA-256, in hexadecimal."""
    summed = hashlib.sha256()
    for name, size in files.items():
        summed.update(f'{name}\0{size}\n'.encode('utf-8', 'surrogateescape'))
    return summed.hexdigest()


def expanded(pattern: str) -> list[str]:
    """Paths or URLs that a pattern stands for: `{000..127}` and `{train,val}` in the order given, `*` sorted by name.

    Raises:
        NotFound: there is nothing of that name.
    """
    found = [match for one in _braced(pattern) for match in _globbed(one)]
    if not found:
        raise NotFound(f'{pattern}: there is no such file or folder')
    return found


def _braced(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = _RANGE.fullmatch(match[1])
    if numbers is None:
        values: Iterable[str] = match[1].split(',')
    else:
        first, last = numbers.groups()
        values = (f'{n:0{len(first)}d}' for n in range(int(first), int(last) + 1))
    heads = (pattern[: match.start()] + value for value in values)
    return list(itertools.chain.from_iterable(_braced(head + pattern[match.end() :]) for head in heads))


def _globbed(pattern: str) -> list[str]:
    system, path = located(pattern)
    if '*' in pattern:
        return [named(system, str(name)) for name in sorted(system.glob(path))]
    return [named(system, path)]


class Archives:
    """What readers of files that hold many items share; see `items.Reader`.

    Args:
        urls: of the files.
    """

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self.captions = False

    def digest(self) -> str:
        """See `items.Reader`."""
        return digest(sizes(self._urls))

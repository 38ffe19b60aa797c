"""Files where they lie: on this machine, or behind any URL that fsspec knows."""

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter, NotFound, Unavailable

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
    except ClipflowError:
        raise
    except Exception as error:  # every file system, its client and every format have errors of their own
        raise InvalidDocument(f'{name} cannot be read: {_reason(error)}') from None


def _reason(error: Exception) -> str:
    return str(getattr(error, 'strerror', None) or error or type(error).__name__)


def located(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and what it calls that place.

    Raises:
        InvalidParameter: a scheme that fsspec does not know.
        Unavailable: it needs a package that is not installed, or is reached by a connection that cannot be made.
    """
    if '://' not in url and not url.startswith('data:'):
        return LocalFileSystem(), url  # fsspec would take `::` in a name for its own
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise Unavailable(f'{url} needs a package that is not installed: {error}') from None
    except ValueError as error:
        raise InvalidParameter(f'{url} is no place that can be read: {error}') from None
    except Exception as error:  # of clients that connect at once
        raise Unavailable(f'{url} cannot be reached: {_reason(error)}') from None
    return system, str(path)


def named(system: Any, path: str) -> str:
    """A name that leads there from anywhere: the path itself on this machine, else a URL."""
    return path if 'file' in _protocols(system) else str(system.unstrip_protocol(path))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def opened(url: str) -> IO[bytes]:
    """A file to read from, at any place; what is packed (by its suffix) is unpacked on the way."""
    system, path = located(url)
    file: IO[bytes] = system.open(path, 'rb', compression=_PACKED.get(url.rpartition('.')[2].lower()))
    return file


def content(url: str, most: int) -> bytes:
    """A whole file.

    Raises:
        InvalidDocument: it is gone, cannot be read, or has more than `most` bytes.
        InvalidParameter, Unavailable: as `located`.
    """
    return content_at(*located(url), most)


def content_at(system: Any, path: str, most: int) -> bytes:
    """As `content`, of a file system that is known."""
    name = named(system, path)
    with reading(name):
        try:
            found: bytes = system.cat_file(path, end=most + 1)
        except Exception as error:
            # Of an empty file some servers have no first bytes to give.
            if 'range' not in str(error).lower() or system.size(path) != 0:
                raise
            found = b''
        check_size(len(found), name, most)
        return found


def check_size(size: int, name: str, most: int) -> None:
    """Raises InvalidDocument for a file that is too large to be read."""
    if size > most:
        raise InvalidDocument(f'{name} has more than {most:,} bytes')


def is_shown(path: str) -> bool:
    """Whether neither a file nor a folder above it is hidden, or one in which macOS keeps what is no content."""
    return not any((part.startswith('.') and part not in ('.', '..')) or part == '__MACOSX' for part in path.split('/'))


def listed(url: str, lost: Callable[[str, str], None] | None = None) -> dict[str, int]:
    """All files below a folder, hidden ones and those in hidden folders left out, with their sizes.

    Links to folders are not followed. Pipes and the like are no files: nobody may ever write to them.

    Args:
        url: of the folder.
        lost: is told the name of a folder that cannot be read, and why.
    """
    system, root = located(url)
    if isinstance(system, LocalFileSystem):
        return dict(sorted(_walked(root, lost or (lambda name, reason: None))))
    with reading(url):
        found = system.find(root, detail=True)
    return {name: int(info.get('size') or 0) for name, info in sorted(found.items()) if is_shown(name[len(root) :])}


def _walked(root: str, lost: Callable[[str, str], None]) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(root, onerror=lambda error: lost(str(error.filename), _reason(error))):
        folders[:] = filter(is_shown, folders)
        for name in filter(is_shown, names):
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError:  # a link to nowhere; reading it tells
                yield path, 0
            else:
                if stat.S_ISREG(found.st_mode):
                    yield path, found.st_size


def sizes(urls: Iterable[str]) -> dict[str, int]:
    """Sizes of files; -1 for one that is not there."""
    found = {}
    for url in urls:
        system, path = located(url)
        try:
            found[url] = int(system.info(path)['size'] or 0)
        except Exception:  # reading it tells
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

    What has the very name of the pattern is meant itself.

    Raises:
        NotFound: there is nothing of that name.
    """
    system, path = located(pattern)
    if system.exists(path):
        return [named(system, path)]
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
        parts = zip(*(url.split('/')[:-1] for url in urls), strict=False)
        shared = itertools.takewhile(lambda names: len(set(names)) == 1, parts)
        self._root = ''.join(f'{names[0]}/' for names in shared)
        self.captions = False

    def key(self, url: str, name: str) -> str:
        """Of an item: its name in the file; of files in several folders, which may all count from 0, the folder too."""
        folder, slash, _ = url.removeprefix(self._root).rpartition('/')
        return folder + slash + name

    def digest(self) -> str:
        """See `items.Reader`."""
        return digest(sizes(self._urls))

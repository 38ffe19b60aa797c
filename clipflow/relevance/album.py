"""Pictures where they lie, in a folder or inside a zip file, found by the names that tables use for them."""

import hashlib
import os
import unicodedata
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clipflow.errors import InvalidDocument, InvalidParameter, NotFound
from clipflow.files import PICTURES


@dataclass(frozen=True)
class Picture:
    """One picture file.

    Attributes:
        name: its path below the folder, or inside the zip file, with / between its parts.
        source: the file itself, or the zip file that holds it.
        member: what the zip file calls it; None for a file of its own.
    """

    name: str
    source: Path
    member: str | None = None

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            InvalidDocument: the file is gone, may not be read, is no plain file, or is damaged inside its zip file.
        """
        try:
            if self.member is None:
                if self.source.is_fifo():  # which might wait for ever
                    raise OSError('it is a pipe')
                return self.source.read_bytes()
            return _opened(self.source, os.getpid()).read(self.member)
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
            raise InvalidDocument(f'{self.name} cannot be read: {reason}') from None


@dataclass(frozen=True)
class Fault:
    """What was left out, and why."""

    name: str
    reason: str


@lru_cache(maxsize=16)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """A zip file is read by threads under its own lock, but two processes would move each other's place in it."""
    return zipfile.ZipFile(path)


class Album:
    """The pictures of a folder (and of the folders in it) or of a zip file; hidden ones are left out.

    Args:
        path: the folder or zip file.

    Raises:
        NotFound: there is none, or no picture is in it.
        InvalidParameter: it is a file, but no zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise NotFound(f'{path}: there is no such folder or zip file')
        found = _in_folder(path) if path.is_dir() else _in_zip(path)
        self.pictures = tuple(sorted(found, key=lambda picture: picture.name))
        if not self.pictures:
            raise NotFound(f'{path} holds no pictures')
        self._by_name = {_composed(picture.name): picture for picture in self.pictures}
        self._by_name |= {picture.name: picture for picture in self.pictures}
        self._by_file = {str(picture.source.absolute()): picture for picture in self.pictures if picture.member is None}
        self._by_end: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            file = _composed(picture.name).rpartition('/')[2]
            for end in {file, file.rpartition('.')[0]}:
                self._by_end.setdefault(end, []).append(picture)

    def find(self, name: str) -> Picture | Fault:
        """By the path in the folder or zip file, by that of the file itself, by an end of a path that is one here, or
        else by the file's name with or without its suffix.
        """
        for whole in (self._by_name, self._by_file):
            if name in whole:
                return whole[name]
        parts = _composed(name).split('/')
        for start in (0, *range(1, len(parts) - 1)):
            if (end := '/'.join(parts[start:])) in self._by_name:
                return self._by_name[end]
        found = self._by_end.get(parts[-1], [])
        if len(found) > 1:
            return Fault(name, f'{len(found)} pictures in {self.path.name} have this name')
        return found[0] if found else Fault(name, f'is not in {self.path.name}')


def _composed(name: str) -> str:
    """With one code point for é: some systems and archives keep names with two."""
    return unicodedata.normalize('NFC', name)


def digest(content: bytes) -> str:
    """Names bytes by what they are: SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _is_picture(name: str) -> bool:
    parts = name.split('/')
    hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
    return not hidden and os.path.splitext(parts[-1])[1][1:].lower() in PICTURES


def _in_folder(path: Path) -> list[Picture]:
    found = []
    for folder, _, files in os.walk(path):
        for file in files:
            whole = Path(folder, file)
            name = whole.relative_to(path).as_posix()
            if _is_picture(name):
                found.append(Picture(name, whole))
    return found


def _in_zip(path: Path) -> list[Picture]:
    try:
        names = _opened(path, os.getpid()).namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidParameter(f'{path} is neither a folder nor a zip file that can be read: {error}') from None
    return [Picture(name, path, name) for name in dict.fromkeys(names) if _is_picture(name)]

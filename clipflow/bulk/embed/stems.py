"""Readers of folders and zip files: a picture, its caption in .txt and its metadata in .json of the same stem."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from clipflow.bulk.embed import storage
from clipflow.bulk.embed.items import Content, Entry, Fault, Item, Place, Range
from clipflow.errors import InvalidDocument
from clipflow.files import PICTURES


def entries(names: Iterable[str]) -> list[Entry]:
    """The pictures among some names, sorted, each with what has the same stem."""
    known = set(names)
    found = []
    for name in sorted(known):
        stem, _, suffix = name.rpartition('.')
        if stem and suffix.lower() in PICTURES:
            caption, metadata = f'{stem}.txt', f'{stem}.json'
            found.append((name, caption if caption in known else '', metadata if metadata in known else ''))
    return found


def loaded(entry: Entry, read: Callable[[str], bytes]) -> Content:
    """Read an entry.

    Raises:
        InvalidDocument: a file of it cannot be read, or is not what it should be.
    """
    picture, caption, metadata = entry
    return Content(
        read(picture),
        text(read(caption), caption) if caption else None,
        tags(read(metadata), metadata) if metadata else {},
    )


def text(blob: bytes, name: str) -> str:
    """A caption; raises InvalidDocument unless it is UTF-8."""
    try:
        return blob.decode('utf-8-sig').strip()
    except UnicodeDecodeError:
        raise InvalidDocument(f'{name} is not text in UTF-8') from None


def tags(blob: bytes, name: str) -> dict[str, Any]:
    """Metadata; raises InvalidDocument unless it is a JSON object."""
    try:
        found = json.loads(blob)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidDocument(f'{name} is not a JSON object')
    return found


class Folder:
    """See `items.Reader`. The key of an item is the path of its picture.

    Args:
        url: of the folder.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._files = dict[str, int]()
        self._lost = list[Fault]()
        self.captions = False

    def digest(self) -> str:
        """See `items.Reader`."""
        self._list()
        return storage.digest(self._files)

    def _list(self) -> None:
        self._lost = []
        self._files = storage.listed(
            self._url, lambda name, reason: self._lost.append(Fault(name, f'{name} cannot be read: {reason}'))
        )

    def scan(self) -> Iterator[Place | Fault]:
        """See `items.Reader`; a folder that cannot be read is one fault."""
        if not self._files:
            self._list()
        yield from self._lost
        for row, entry in enumerate(entries(self._files)):
            self.captions |= bool(entry[1])
            yield Place(self._url, row, 0, entry)

    def __reduce__(self) -> tuple[type['Folder'], tuple[str]]:
        # To other processes it goes without the list of all files, which only planning needs.
        return Folder, (self._url,)

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        """See `items.Reader`."""
        system, _ = storage.located(piece.source)
        read = partial(storage.content_at, system, most=most)
        for entry in piece.entries:
            yield Item(storage.named(system, entry[0]), partial(loaded, entry, read))


class Zip(storage.Archives):
    """See `items.Reader`. The key of an item is what the zip file calls its picture."""

    def scan(self) -> Iterator[Place | Fault]:
        """See `items.Reader`; of a name that comes twice, the last is in effect, and the others are faults."""
        for url in self._urls:
            try:
                with storage.reading(url), storage.opened(url) as file, zipfile.ZipFile(file) as archive:
                    names = [name for name in archive.namelist() if storage.is_shown(name)]
            except InvalidDocument as error:
                yield Fault(url, error.message)
                continue
            seen = set[str]()
            for name in names:
                if name in seen and name.rpartition('.')[2].lower() in PICTURES:
                    yield Fault(self.key(url, name), f'the name comes twice in {url}; the last one counts')
                seen.add(name)
            for row, entry in enumerate(entries(names)):
                self.captions |= bool(entry[1])
                yield Place(url, row, 0, entry)

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        """See `items.Reader`."""
        with storage.reading(piece.source):
            # Items are read after this is through: the last of them closes it.
            archive = zipfile.ZipFile(storage.opened(piece.source))

        def read(name: str) -> bytes:
            with storage.reading(name):
                storage.check_size(archive.getinfo(name).file_size, name, most)
                return archive.read(name)

        for entry in piece.entries:
            yield Item(self.key(piece.source, entry[0]), partial(loaded, entry, read))

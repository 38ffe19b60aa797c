"""Reader of WebDataset shards: tar files in which members that follow each other under one name are an item.

The name, `__key__` there, is the path up to the first dot of its last part; what follows says what the member is.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from clipflow.bulk.embed import storage
from clipflow.bulk.embed.items import Content, Fault, Item, Place, Range
from clipflow.bulk.embed.stems import tags, text
from clipflow.errors import InvalidDocument
from clipflow.files import PICTURES

_BLOCK = 512


@dataclass
class _Group:
    """Members that belong together, by what they are."""

    key: str
    offset: int
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    twice: bool = False

    @property
    def picture(self) -> tarfile.TarInfo | None:
        return next((member for kind, member in self.members.items() if kind in PICTURES), None)


def _groups(archive: tarfile.TarFile) -> Iterator[_Group]:
    """The items in their order; what is damaged ends it with TarError, after the items before the damage."""
    group = None
    broken: tarfile.TarError | None = None
    while True:
        try:
            member = archive.next()
        except tarfile.TarError as error:
            member, broken = None, error
        if member is None:
            break
        # The list of all members would grow with the shard.
        vars(archive)['members'] = []
        folder, slash, name = member.name.rpartition('/')
        stem, _, kind = name.partition('.')
        if member.isdir() or not stem or not storage.is_shown(folder):
            continue
        key = folder + slash + stem
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(key, member.offset)
        group.twice |= kind.lower() in group.members
        group.members.setdefault(kind.lower(), member)
    if group is not None:
        yield group
    if broken is not None:
        raise broken


def _check_end(archive: tarfile.TarFile, file: IO[bytes]) -> None:
    """The standard library takes a damaged header for the end of the archive; the end itself is a block of zeros."""
    file.seek(archive.offset)
    block = file.read(_BLOCK)
    if not block:
        raise tarfile.ReadError('it ends without the mark of its end, and may have been cut off')
    if any(block):
        raise tarfile.ReadError(f'damaged at byte {archive.offset:,}')


class Shards(storage.Archives):
    """See `items.Reader`. Shards that are packed (.tar.gz) are read from their begin for every partition."""

    def scan(self) -> Iterator[Place | Fault]:
        """See `items.Reader`: reads the headers of all members."""
        for url in self._urls:
            seen = set[str]()
            last = 'the begin'
            try:
                with (
                    storage.reading(url),
                    storage.opened(url) as file,
                    tarfile.open(fileobj=file, mode='r:') as archive,
                ):
                    for row, group in enumerate(_groups(archive)):
                        last = group.key
                        fault = self._fault(url, group, seen)
                        if fault is not None:
                            yield fault
                        if fault is None or fault.embedded:
                            yield Place(url, row, group.offset)
                        seen.add(group.key)
                    _check_end(archive, file)
            except InvalidDocument as error:
                yield Fault(url, f'{error.message}; what comes behind {last} is lost')

    def _fault(self, url: str, group: _Group, seen: set[str]) -> Fault | None:
        key = self.key(url, group.key)
        if group.key in seen:
            return Fault(key, 'duplicate key: its shard has an item of this name already')
        if group.picture is None:
            return Fault(key, f'has no picture, only {", ".join(group.members)}')
        self.captions |= 'txt' in group.members
        if group.twice:
            return Fault(key, 'duplicate key: it has two members of one kind; the first counts', embedded=True)
        return None

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        """See `items.Reader`: one item after the other, so that a shard elsewhere is read in one go."""
        with storage.reading(piece.source), storage.opened(piece.source) as file:
            file.seek(piece.offset)
            with tarfile.open(fileobj=file, mode='r:') as archive:
                count = piece.stop - piece.start
                for group in _groups(archive):
                    yield _item(archive, group, self.key(piece.source, group.key), most)
                    count -= 1
                    if not count:
                        break
                else:
                    raise tarfile.ReadError(f'it has lost {count:,} items')


def _item(archive: tarfile.TarFile, group: _Group, key: str, most: int) -> Item | Fault:
    def blob(member: tarfile.TarInfo) -> bytes:
        if not member.isfile():
            raise InvalidDocument(f'{member.name} is a link or no file; a shard has to hold the files themselves')
        with storage.reading(member.name):
            storage.check_size(member.size, member.name, most)
            found = archive.extractfile(member)
            content = found.read() if found else b''
            if len(content) < member.size:
                raise EOFError('the shard ends in the middle of it')
            return content

    try:
        picture = blob(group.picture) if group.picture else b''
        given: dict[str, bytes] = {kind: blob(group.members[kind]) for kind in ('txt', 'json') if kind in group.members}
    except InvalidDocument as error:
        return Fault(key, error.message)
    return Item(key, partial(_content, key, picture, given))


def _content(key: str, picture: bytes, given: dict[str, bytes]) -> Content:
    caption = text(given['txt'], f'{key}.txt') if 'txt' in given else None
    return Content(picture, caption, tags(given['json'], f'{key}.json') if 'json' in given else {})

"""Lists of URLs in files of any kind, brought into the one form that img2dataset is given.

urls/urls_N.parquet   url, caption, and the other columns of the list as metadata
urls/list.json        what the list was, and how many rows it has
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clipflow.bulk.arrow import parquet
from clipflow.bulk.embed import storage, writer
from clipflow.bulk.embed.readers import open_input
from clipflow.bulk.embed.tables import Columns, Row, Tables
from clipflow.errors import Conflict, InvalidDocument, NotFound
from clipflow.files import replaced, translated

PER_SHARD = 10_000
_PER_FILE = 10 * PER_SHARD
_FETCHED = ('http://', 'https://')
_THEIRS = frozenset(('url', 'caption', 'key', 'status', 'error_message', 'width', 'height'))
_THEIRS |= {'original_width', 'original_height'}
"""Columns that img2dataset writes itself."""
_RESERVED = "%:/?#[]@!$&'()*+,;=~"


@dataclass(frozen=True)
class Listed:
    """A list as it was when it was read.

    Attributes:
        input: as the caller named it.
        digest: of what was there.
        count: of its rows.
        captions: whether it has any.
        columns: names of the metadata.
        options: that it was read and is fetched with; by name.
    """

    input: str
    digest: str
    count: int = 0
    captions: bool = False
    columns: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many img2dataset makes of it."""
        whole, rest = divmod(self.count, _PER_FILE)
        return whole * (_PER_FILE // PER_SHARD) - (-rest // PER_SHARD)


class Lines:
    """A list with a URL a line, as `Tables` reads others.

    Args:
        urls: of the files.
    """

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls

    def digest(self) -> str:
        """Names the list by the size of its files."""
        return storage.digest(storage.sizes(self._urls))

    def metadata(self) -> list[str]:
        """No columns."""
        return []

    def fields(self) -> Iterator[tuple[Any, str | None, Row]]:
        """The URL of each line that is not empty; no captions, no metadata.

        Raises:
            InvalidDocument: a file cannot be read, or is not UTF-8.
        """
        for url in self._urls:
            with storage.reading(url), storage.opened(url) as file:
                for line in file:
                    if text := line.decode('utf-8-sig').strip():
                        yield text, None, {}


def opened(pattern: str, columns: Columns) -> Lines | Tables | None:
    """A list of URLs; None if the input is something else: pictures, or tables that hold them or lead to files.

    Args:
        pattern: of `.txt` files, or of tables as `clipflow embed` reads them.
        columns: of tables.

    Raises:
        NotFound: there is nothing.
        InvalidParameter: a table without a column that could hold URLs.
        InvalidDocument: it cannot be read.
    """
    if pattern.lower().endswith('.txt'):
        urls = storage.expanded(pattern)
        if missing := [url for url, size in storage.sizes(urls).items() if size < 0]:
            raise NotFound(f'{missing[0]}: there is no such file')
        return Lines(urls)
    reader = open_input(pattern, columns)
    if not isinstance(reader, Tables):
        return None
    try:
        held = next((held for held, _, _ in reader.fields() if held), None)
    except InvalidDocument:
        return None  # `embed` lists it
    return reader if isinstance(held, str) and held.lower().startswith(_FETCHED) else None


def prepared(folder: Path, pattern: str, source: Lines | Tables, options: dict[str, str]) -> Listed:
    """The list in the form above; made if it is not there.

    Args:
        folder: made here.
        pattern: as the caller named it.
        source: from `opened`.
        options: that decide what is fetched and how it is kept; by name.

    Raises:
        Conflict: the folder holds another list, this one has changed since, or the options have.
        NotFound: there are no URLs in it.
        InvalidDocument: it cannot be read.
        ReadOnly, StorageFull: the folder cannot be written.
    """
    wanted = Listed(pattern, source.digest(), options=options)
    path = folder / 'list.json'
    if path.is_file():
        found = json.loads(path.read_text(encoding='utf-8'))
        before = Listed(**found | {'columns': tuple(found['columns'])})
        if before.input != wanted.input:
            raise Conflict(f'{folder.parent} was begun with {before.input}; name another folder for the output')
        if before.digest != wanted.digest:
            raise Conflict(
                f'{pattern} has changed since {folder.parent} was begun; name another folder for the output, or give '
                f'the list as it was'
            )
        if before.options != wanted.options:
            given = ' '.join(f'{name} {value}' for name, value in before.options.items()) or 'none of these options'
            raise Conflict(f'{folder.parent} was begun with {given}; give the same, or name another folder')
        return before
    with translated(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix='.urls-', dir=folder.parent))
        try:
            listed = _written(made, wanted, source)
            replaced(made / path.name, json.dumps(asdict(listed), indent=2).encode('ascii'))
            made.chmod(0o755)
            os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return listed


def _written(folder: Path, wanted: Listed, source: Lines | Tables) -> Listed:
    names = {name: f'list_{name}' if name in _THEIRS else name for name in source.metadata()}
    count, number, captions, rows = 0, 0, False, source.fields()
    while block := list(islice(rows, _PER_FILE)):
        columns: writer.Columns = {'url': [_encoded(held) for held, _, _ in block]}
        columns['caption'] = [text or '' for _, text, _ in block]
        captions = captions or any(columns['caption'])
        columns |= {own: [fields.get(name) for _, _, fields in block] for name, own in names.items()}
        parquet().write_table(writer.table(columns), folder / f'urls_{number:05d}.parquet')
        count, number = count + len(block), number + 1
    if not count:
        raise NotFound(f'{wanted.input} holds no URLs')
    return replace(wanted, count=count, captions=captions, columns=tuple(names.values()))


def _encoded(held: Any) -> str:
    """As it goes over the wire: letters that no URL has are written as bytes; what is no text is no URL."""
    return quote(held.strip(), safe=_RESERVED) if isinstance(held, str) else ''

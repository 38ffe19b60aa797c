"""Reader of tables: CSV, parquet and Arrow files, and directories as Hugging Face `datasets` saves them.

A column holds pictures, or URIs of pictures; one may hold captions; all others are metadata.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

from clipflow.bulk.arrow import arrow, parquet
from clipflow.bulk.embed import storage
from clipflow.bulk.embed.items import Content, Fault, Item, Place, Range
from clipflow.errors import InvalidDocument, InvalidParameter

_PICTURES = (
    'image',
    'img',
    'picture',
    'uri',
    'url',
    'image_url',
    'image_path',
    'path',
    'file_name',
    'filename',
    'file',
)
_CAPTIONS = ('caption', 'text', 'captions', 'title', 'sentence', 'sentences')
_ROWS = 100
_BUFFER = 2**20
_ALL = 2**62
csv.field_size_limit(2**31 - 1)

Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None: found by name, the caption's may be missing."""

    picture: str | None = None
    caption: str | None = None

    def options(self) -> dict[str, str]:
        """Those that were given, by the names of the options."""
        given = {'--image-column': self.picture, '--caption-column': self.caption}
        return {name: value for name, value in given.items() if value is not None}

    def of(self, names: Sequence[str], source: str) -> tuple[str, str | None]:
        """Which columns of a table hold pictures and captions.

        Raises:
            InvalidParameter: they are not there.
            InvalidDocument: there is nothing in it.
        """
        if not names:
            raise InvalidDocument(f'{source} is empty')
        for wanted in (self.picture, self.caption):
            if wanted is not None and wanted not in names:
                raise InvalidParameter(f'{source} has no column {wanted!r}; it has {", ".join(names)}')
        picture = self.picture or _first(_PICTURES, names)
        if picture is None:
            raise InvalidParameter(
                f'{source} has no column that is known to hold pictures; name one of them with --image-column: '
                f'{", ".join(names)}'
            )
        return picture, self.caption or _first(_CAPTIONS, names)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in wanted if name in lower), None)


class Tables:
    """See `items.Reader`. The key of an item is its URI, or else the table and the number of the row.

    Args:
        urls: of the tables.
        columns: which of their columns are which.
        root: what is cut off the names of tables in keys.
    """

    def __init__(self, urls: list[str], columns: Columns, root: str = '') -> None:
        self._urls = urls
        self._columns = columns
        self._root = root or urls[0].rpartition('/')[0]
        self.captions = False

    def digest(self) -> str:
        """See `items.Reader`."""
        return storage.digest(storage.sizes(self._urls))

    def scan(self) -> Iterator[Place | Fault]:
        """See `items.Reader`.

        Raises:
            InvalidParameter: a table has not the columns.
        """
        for url in self._urls:
            try:
                kind = _kind(url)
                names = kind.names(url)
                self.captions |= self._columns.of(names, url)[1] is not None
                for row, offset in enumerate(kind.offsets(url)):
                    yield Place(url, row, offset)
            except InvalidDocument as error:
                yield Fault(url, error.message)

    def metadata(self) -> list[str]:
        """Names of the columns that are neither pictures nor captions, of all tables."""
        found = dict[str, None]()
        for url in self._urls:
            names = _kind(url).names(url)
            found |= dict.fromkeys(name for name in names if name not in self._columns.of(names, url))
        return list(found)

    def fields(self) -> Iterator[tuple[Any, str | None, Row]]:
        """Of every row what is in its column of pictures, its caption, and the metadata.

        Raises:
            InvalidParameter: a table has not the columns.
            InvalidDocument: it cannot be read.
        """
        for url in self._urls:
            kind = _kind(url)
            picture, caption = self._columns.of(kind.names(url), url)
            first = next(iter(kind.offsets(url)), 0)
            for row in kind.rows(Range(url, 0, _ALL, first)):
                text = _caption(row, caption)
                yield row.pop(picture, None), text, row

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        """See `items.Reader`."""
        kind = _kind(piece.source)
        columns = self._columns.of(kind.names(piece.source), piece.source)
        name = piece.source.removeprefix(self._root).lstrip('/')
        row = piece.start
        for fields in kind.rows(piece):
            yield _item(fields, columns, piece.source, f'{name}:{row}', most)
            row += 1
        if row < piece.stop:
            raise InvalidDocument(f'{piece.source} has lost {piece.stop - row:,} rows')


def _item(fields: Row, columns: tuple[str, str | None], source: str, name: str, most: int) -> Item | Fault:
    picture, caption = columns
    held, text = fields.pop(picture, None), _caption(fields, caption)
    if isinstance(held, dict):
        path, held = held.get('path'), held.get('bytes') or held.get('path')
        fields = ({'path': path} if path else {}) | fields
    if not held:
        return Fault(name, f'its column {picture!r} is empty')
    if isinstance(held, bytes):
        return Item(name, partial(Content, held, text, fields))
    uri = str(held)
    # A data: URI is the picture itself, and no name.
    key = name if uri.startswith('data:') else uri
    return Item(key, lambda: Content(storage.content(_absolute(uri, source), most), text, fields))


def _caption(fields: Row, name: str | None) -> str | None:
    """Take the caption out; where there are several, the first, and all stay, as `captions` where the name is taken.

    What is no text stays with the metadata.
    """
    said = fields.pop(name, None) if name else None
    if isinstance(said, str) or said is None:
        return said or None
    fields.setdefault('captions' if name == 'caption' else str(name), said)
    return next((one for one in said if isinstance(one, str) and one), None) if isinstance(said, list) else None


def _absolute(uri: str, source: str) -> str:
    """Where a URI leads that may be relative to its table."""
    return uri if '://' in uri or uri.startswith(('/', 'data:')) else f'{source.rpartition("/")[0]}/{uri}'


class _Csv:
    """CSV with a header, in UTF-8; a row is found by the byte at which it begins."""

    def __init__(self, url: str) -> None:
        self._delimiter = '\t' if url.lower().endswith(('.tsv', '.tsv.gz', '.tsv.bz2', '.tsv.xz')) else ','

    def names(self, url: str) -> list[str]:
        return next((fields for _, fields in self._lines(url, 0)), [])

    def offsets(self, url: str) -> Iterator[int]:
        rows = self._lines(url, 0)
        next(rows, None)
        return (offset for offset, fields in rows if fields)

    def rows(self, piece: Range) -> Iterator[Row]:
        names = self.names(piece.source)
        missing = piece.stop - piece.start
        for _, fields in self._lines(piece.source, piece.offset):
            if fields and missing:
                missing -= 1
                yield {name: value for name, value in zip(names, fields, strict=False) if value != ''}
            if not missing:
                break

    def _lines(self, url: str, offset: int) -> Iterator[tuple[int, list[str]]]:
        with storage.reading(url), storage.opened(url) as file:
            file.seek(offset)
            read = offset

            def decoded() -> Iterator[str]:
                nonlocal read
                for line in file:
                    read += len(line)
                    yield line.decode('utf-8-sig' if read == len(line) else 'utf-8')

            begun = read
            try:
                for fields in csv.reader(decoded(), delimiter=self._delimiter):
                    yield begun, fields
                    begun = read
            except csv.Error as error:
                raise InvalidDocument(f'{url} cannot be read: {error}') from None


class _Parquet:
    """Parquet, by row groups."""

    def names(self, url: str) -> list[str]:
        with storage.reading(url), storage.opened(url) as file:
            return list(parquet().ParquetFile(file).schema_arrow.names)

    def offsets(self, url: str) -> Iterator[int]:
        with storage.reading(url), storage.opened(url) as file:
            count = parquet().ParquetFile(file).metadata.num_rows
        return repeat(0, count)

    def rows(self, piece: Range) -> Iterator[Row]:
        with storage.reading(piece.source), storage.opened(piece.source) as file:
            # Of itself it keeps all that it has read until its end, and that would be the pictures of a partition.
            table = parquet().ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
            first, groups = 0, list[int]()
            skipped = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                if first + count <= piece.start:
                    skipped = first + count
                elif first < piece.stop:
                    groups.append(group)
                first += count
            yield from _sliced(table.iter_batches(_ROWS, groups), skipped, piece)


class _Arrow:
    """Arrow's stream format, which Hugging Face `datasets` writes."""

    def names(self, url: str) -> list[str]:
        with storage.reading(url), storage.opened(url) as file:
            return list(arrow('pyarrow.ipc').open_stream(file).schema.names)

    def offsets(self, url: str) -> Iterator[int]:
        with storage.reading(url), storage.opened(url) as file:
            for batch in arrow('pyarrow.ipc').open_stream(file):
                yield from (0 for _ in range(batch.num_rows))

    def rows(self, piece: Range) -> Iterator[Row]:
        with storage.reading(piece.source), storage.opened(piece.source) as file:
            yield from _sliced(arrow('pyarrow.ipc').open_stream(file), 0, piece)


def _sliced(batches: Any, first: int, piece: Range) -> Iterator[Row]:
    """Rows of a range out of record batches, of which the first begins with row `first`."""
    for batch in batches:
        start, stop = max(piece.start - first, 0), min(piece.stop - first, batch.num_rows)
        first += batch.num_rows
        for at in range(start, stop, _ROWS):
            yield from batch.slice(at, min(_ROWS, stop - at)).to_pylist()
        if first >= piece.stop:
            return


def _kind(url: str) -> '_Csv | _Parquet | _Arrow':
    suffix = url.rpartition('.')[2].lower()
    if suffix in ('parquet', 'arrow'):
        return _Parquet() if suffix == 'parquet' else _Arrow()
    return _Csv(url)


def of_dataset(url: str, columns: Columns) -> Tables | None:
    """The tables of a directory that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written; else None."""
    system, root = storage.located(url)
    if not any(system.exists(f'{root}/{name}') for name in ('dataset_dict.json', 'state.json')):
        return None
    folders = [root]
    if system.exists(f'{root}/dataset_dict.json'):
        with storage.reading(url):
            folders = [
                f'{root}/{split}' for split in json.loads(system.cat_file(f'{root}/dataset_dict.json'))['splits']
            ]
    files = list[str]()
    for folder in folders:
        with storage.reading(folder):
            state = json.loads(system.cat_file(f'{folder}/state.json'))
            files += [f'{folder}/{file["filename"]}' for file in state['_data_files']]
    return Tables([storage.named(system, file) for file in files], columns, storage.named(system, root))

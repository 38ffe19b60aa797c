"""Which reader reads an input."""

from clipflow.bulk.embed import storage, tables
from clipflow.bulk.embed.items import Reader
from clipflow.bulk.embed.shards import Shards
from clipflow.bulk.embed.stems import Folder, Zip
from clipflow.bulk.embed.tables import Columns, Tables
from clipflow.errors import InvalidParameter, NotFound
from clipflow.files import PICTURES

_PACKED = ('gz', 'bz2', 'xz')


def open_input(pattern: str, columns: Columns) -> Reader:
    """The reader of a path, a URL, or a pattern of several.

    Args:
        pattern: a folder of pictures, shards, tables or a saved dataset; or files, with `{000..127}`, `{a,b}` and `*`.
        columns: of tables.

    Raises:
        NotFound: there is nothing.
        InvalidParameter: it is of no kind that can be read, or of several kinds.
        InvalidDocument, Unavailable: the place where it is does not answer.
    """
    with storage.reading(pattern):
        urls = storage.expanded(pattern)
        if len(urls) == 1:
            system, path = storage.located(urls[0])
            if system.isdir(path):
                return _of_folder(urls[0], columns)
            if not system.exists(path):
                raise NotFound(f'{pattern}: there is no such file or folder')
    return _of_files(urls, pattern, columns)


def _of_folder(url: str, columns: Columns) -> Reader:
    dataset = tables.of_dataset(url, columns)
    if dataset is not None:
        return dataset
    system, _ = storage.located(url)
    names = [storage.named(system, name) for name in storage.listed(url)]
    kinds = {kind for name in names if (kind := _kind(name)) is not None}
    if 'picture' in kinds or not kinds:
        return Folder(url)
    kind = next(kind for kind in ('tar', 'parquet', 'arrow', 'zip', 'csv') if kind in kinds)
    return _of_files([name for name in names if _kind(name) == kind], url, columns)


def _of_files(urls: list[str], pattern: str, columns: Columns) -> Reader:
    kinds = {_kind(url) for url in urls}
    if kinds == {'tar'}:
        return Shards(urls)
    if kinds == {'zip'}:
        return Zip(urls)
    if len(kinds) == 1 and kinds & {'csv', 'parquet', 'arrow'}:
        return Tables(urls, columns)
    raise InvalidParameter(
        f'{pattern} is neither a folder, nor one or several of .tar, .zip, .csv, .tsv, .parquet and .arrow files'
    )


def _kind(name: str) -> str | None:
    parts = name.lower().rpartition('/')[2].split('.')
    if parts[-1] in _PACKED:
        parts.pop()
    suffix = parts[-1] if len(parts) > 1 else ''
    if suffix in PICTURES:
        return 'picture'
    if suffix == 'tgz':
        return 'tar'
    if suffix == 'tsv':
        return 'csv'
    return suffix if suffix in ('tar', 'zip', 'csv', 'parquet', 'arrow') else None

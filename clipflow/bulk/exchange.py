"""Vectors and metadata from and to the files of others: clip-retrieval's layout, and plain NumPy with JSON lines.

    clip-retrieval   img_emb/img_emb_N.npy (or text_emb), metadata/metadata_N.parquet, image.index
    plain            vectors.npy, documents.jsonl: one object a line with id, text, uri, tags

Beside them a dump has manifest.json: model, fingerprint and precision of the vectors.

Arrays are memory-mapped and read in blocks, and written in blocks, so that a collection may be larger than memory.
"""

import errno
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clipflow.bulk.arrow import arrow, parquet
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, StorageFull
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.tags import has_nul, is_suspect, unsendable
from clipflow.vectors import unit_rows

BLOCK = 1000
ROWS_PER_FILE = 100_000
"""Of clip-retrieval's layout, as it writes itself."""
_OWN = ('id', 'image_path', 'caption', 'text', 'url', 'uri', 'tags')
_IDS = ('id', 'image_path')
_LONGEST_ID = 512
_COLUMNS = ('id', 'image_path', 'caption', 'url', 'tags')
"""Of clip-retrieval's metadata, as they are written; all texts."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Rows = Iterator[tuple[NDArray[np.float32], list[dict[str, Any]]]]
"""Blocks of vectors [n, D] of unit length, and for each its metadata."""


def read(folder: Path) -> Iterator[list[Record]]:
    """The documents of a folder in either layout, in blocks.

    Raises:
        NotFound: the folder is of neither layout.
        InvalidDocument: vectors and metadata differ in number, or a vector is no direction.
        Unavailable: the parquet files need a package that is not installed.
    """
    return (records for records, _ in read_named(folder))


def read_named(folder: Path) -> Iterator[tuple[list[Record], list[Record]]]:
    """As `read`; beside each block those of its documents that have no ids of their own: their places are their ids."""
    start = 0
    for array in arrays_in(folder):
        for vectors, fields in _rows(array):
            records = [
                record(vector, row, start + n) for n, (vector, row) in enumerate(zip(vectors, fields, strict=True))
            ]
            yield records, [found for found, row in zip(records, fields, strict=True) if _first(row, *_IDS) == '']
            start += len(records)


def arrays_in(folder: Path) -> list[Path]:
    """The files of vectors of a folder in either layout, in their order.

    Raises:
        NotFound: there are none.
        InvalidDocument: some have metadata, and some have none.
    """
    plain = folder / 'vectors.npy'
    arrays = [plain] if plain.is_file() else sorted(folder.glob('img_emb/img_emb_*.npy'))
    arrays = arrays or sorted(folder.glob('text_emb/text_emb_*.npy'))
    if not arrays:
        raise NotFound(f'{folder} has neither vectors.npy nor img_emb/img_emb_*.npy; it is no collection of vectors')
    missing = [path for path in map(metadata_of, arrays) if not path.is_file()]
    if missing and len(missing) < len(arrays):
        raise InvalidDocument(f'{missing[0]} is missing, while other files of vectors in {folder} have their metadata')
    return arrays


def metadata_of(array: Path) -> Path:
    """Where the metadata of a file of vectors are, if there are any."""
    if array.name == 'vectors.npy':
        return array.with_name('documents.jsonl')
    number = re.sub(r'.*_', '', array.stem)
    return array.parent.parent / 'metadata' / f'metadata_{number}.parquet'


def _rows(array: Path) -> Rows:
    path, vectors = metadata_of(array), mapped(array)
    if not path.is_file():
        yield from _blocks(vectors, array, ({} for _ in range(len(vectors))), path)
    elif path.suffix == '.parquet':
        yield from _blocks(vectors, array, (row for batch in batches(path, BLOCK) for row in batch.to_pylist()), path)
    else:
        yield from _blocks(vectors, array, (parsed(line, path) for line in lines(path)), path)


def table(path: Path) -> Any:
    """A parquet file, of which nothing is read yet.

    Raises:
        InvalidDocument: it is damaged.
        Unavailable: pyarrow is not installed.
    """
    try:
        return parquet().ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own are both
        raise InvalidDocument(f'{path} cannot be read as parquet: {error}') from None


def batches(path: Path, size: int) -> Iterator[Any]:
    """A parquet file in pieces of `size` rows; raises as `table`."""
    try:
        yield from table(path).iter_batches(size)
    except (OSError, ValueError) as error:
        raise InvalidDocument(f'{path} cannot be read as parquet: {error}') from None


def lines(path: Path) -> Iterator[str]:
    """The lines of documents.jsonl; raises InvalidDocument if they cannot be read."""
    try:
        with path.open(encoding='utf-8') as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocument(f'{path} cannot be read as UTF-8: {error}') from None


def parsed(line: str, path: Path) -> dict[str, Any]:
    """A line of documents.jsonl; raises InvalidDocument if it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InvalidDocument(f'{path} holds a line that is not a JSON object: {line[:60]!r}')
    return row


def mapped(path: Path) -> NDArray[Any]:
    """A file of vectors, [N, D], memory-mapped; raises InvalidDocument if it is damaged or something else."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidDocument(f'{path} cannot be read as a NumPy array: {error}') from None
    if array.ndim != 2 or array.dtype.kind != 'f':
        raise InvalidDocument(f'{path} holds {array.dtype} of shape {array.shape}, not vectors of floats (n, D)')
    return array


def unit(vectors: NDArray[Any], path: Path, start: int) -> NDArray[np.float32]:
    """Rows of a file from `start` on, [N, D], of unit length; raises InvalidDocument if one has no direction."""
    rows, sound = unit_rows(vectors)
    if not sound.all():
        raise InvalidDocument(f'{path}: a vector of rows {start} to {start + len(rows)} is zero or not finite')
    return rows


def _blocks(vectors: NDArray[Any], array: Path, fields: Iterator[dict[str, Any]], path: Path) -> Rows:
    for start in range(0, len(vectors), BLOCK):
        rows = unit(vectors[start : start + BLOCK], array, start)
        some = list(itertools.islice(fields, len(rows)))
        if len(some) < len(rows):
            raise InvalidDocument(f'{path} has fewer rows than there are vectors ({len(vectors)})')
        yield rows, some
    if next(fields, None) is not None:
        raise InvalidDocument(f'{path} has more rows than there are vectors ({len(vectors)})')


def record(vector: NDArray[np.float32] | None, row: dict[str, Any], place: int) -> Record:
    """A document from its metadata; without `id` and `image_path` its place in the folder is its id.

    Raises:
        InvalidDocument: the id is too long, or the metadata cannot be stored or sent.
    """
    identifier = str(_first(row, *_IDS, default=place))
    name = identifier.encode('utf-8', 'surrogatepass')
    if len(name) > _LONGEST_ID:
        if _first(row, 'id') != '':
            raise InvalidDocument(f'the id {identifier[:40]!r}... is longer than {_LONGEST_ID} bytes')
        # A path or URL may be; it stays whole as the document's `uri`.
        identifier = f'{sha256(name).hexdigest()}:{name[-200:].decode("utf-8", "replace")}'
    text = str(_first(row, 'caption', 'text'))
    # Where there is no picture, a dump has the id in the place of its path, for clip-retrieval needs one.
    uri = str(_first(row, 'uri', 'url', *(['image_path'] if row.get('id') != row.get('image_path') else [])))
    tags = _tags(row.get('tags'))
    tags |= {name: value for name, value in row.items() if name not in _OWN and value is not None}
    # Of several texts or places the others stay too.
    own = {name: row.get(name) for name in _OWN[1:-1]}
    tags |= {name: value for name, value in own.items() if str(value or '') not in ('', identifier, text, uri)}
    tags = {name: value for name, value in tags.items() if not name.startswith('__')}
    try:
        found = json.dumps(tags, ensure_ascii=False, allow_nan=False, default=_plain)
    except (ValueError, RecursionError):
        raise InvalidDocument(f'the metadata of {identifier!r} are not finite numbers, texts and lists') from None
    if is_suspect(f'{identifier}{text}{uri}{found}') and (
        reason := unsendable([identifier, text, uri, json.loads(found)])
    ):
        raise InvalidDocument(f'the document {identifier[:40]!r} holds {reason}')
    if has_nul(found, tags):
        raise InvalidDocument(f'the metadata of {identifier!r} hold the character NUL, which cannot be stored')
    return Record(identifier, text, uri, found, vector)


def _plain(value: Any) -> str | None:
    """Of parquet's values what JSON has not: times and the like are texts; bytes, as of pictures, are left out."""
    return None if isinstance(value, bytes) else str(value)


def _first(row: dict[str, Any], *names: str, default: Any = '') -> Any:
    """The first of these fields that says anything; 0 does."""
    return next((row[name] for name in names if row.get(name) not in (None, '')), default)


def _tags(given: Any) -> dict[str, Any]:
    """Of a dump they are a JSON object; metadata of others may have anything under this name."""
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = given
        given = found if isinstance(found, dict) else given
    return dict(given) if isinstance(given, dict) else {} if given is None else {'tags': given}


def write(stores: Sequence[Store], folder: Path, layout: str, wrote: Callable[[int], None]) -> None:
    """Write every document of some shards into a new folder.

    Args:
        stores: the shards.
        folder: made here; must not exist, or be empty.
        layout: `clip-retrieval` or `plain`.
        wrote: is told of each block how many documents it had.

    Raises:
        NotFound: there are no documents.
        InvalidParameter: there is something in the folder already, or it cannot be written.
        StorageFull: the disk is full; the folder is left empty.
    """
    if not any(store.count() for store in stores):
        raise NotFound('there are no documents to write')
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InvalidParameter(f'{folder} is not empty; name a folder that does not exist')
        folder.mkdir(parents=True, exist_ok=True)
        try:
            vectors = (_write_plain if layout == 'plain' else _write_partitions)(stores, folder, wrote)
            _write_manifest(stores, folder)
            # Without them the folder is no collection: after a kill nobody takes a part for the whole.
            vectors.rename(folder / vectors.name.removeprefix('.'))
        except BaseException:
            _clear(folder)
            raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f'no space is left for {folder}; free some, or name a folder elsewhere') from None
        raise InvalidParameter(f'{folder} cannot be written: {error}') from None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_manifest(stores: Sequence[Store], folder: Path) -> None:
    """What `clipflow embed` says of its vectors too, so that they are not taken for those of another model."""
    filled = [store for store in stores if store.count()]
    fingerprint, model = filled[0].model()
    precision = 'int8' if all(store.precision() == 'int8' for store in filled) else 'float'
    manifest = {'model': model, 'fingerprint': fingerprint, 'precision': precision}
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n', encoding='ascii')


def _records(stores: Sequence[Store]) -> Iterator[Record]:
    for store in stores:
        for keys, _ in store.vectors():
            for start in range(0, len(keys), BLOCK):
                found = store.by_keys(keys[start : start + BLOCK].tolist(), vectors=True)
                yield from (found[key] for key in sorted(found))


def _blocks_of(records: Iterator[Record], count: int) -> Iterator[tuple[NDArray[np.float32], list[Record]]]:
    """The next `count`, in blocks: their vectors, [n, D], and themselves."""
    for start in range(0, count, BLOCK):
        block = list(itertools.islice(records, min(BLOCK, count - start)))
        yield np.stack([record.vector for record in block if record.vector is not None]), block


def _shape(stores: Sequence[Store]) -> tuple[int, int]:
    return sum(store.count() for store in stores), max(store.dimension() for store in stores)


def _begin(file: IO[bytes], dtype: type[np.floating], shape: tuple[int, int]) -> None:
    """What stands in a .npy file before the rows.

    These are written plainly: on a full disk a memory map ends the process, and `np.save` does not give the reason.
    """
    header = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, header)


def _begin_index(file: IO[bytes], shape: tuple[int, int]) -> None:
    """What stands in a file of FAISS before the rows of a flat index with inner product, which is never in memory.

    Source: `write_index` in FAISS's index_write.cpp: the vectors come last, after how many numbers they are.
    """
    import faiss

    count, dimension = shape
    index = faiss.IndexFlatIP(dimension)
    index.ntotal = count
    empty = bytes(faiss.serialize_index(index))
    file.write(empty[:-8] + np.uint64(count * dimension).tobytes())


def _write_plain(stores: Sequence[Store], folder: Path, wrote: Callable[[int], None]) -> Path:
    """Returns the vectors, which have their name still to get."""
    path, shape = folder / '.vectors.npy', _shape(stores)
    with path.open('wb') as array, (folder / 'documents.jsonl').open('w', encoding='utf-8') as documents:
        _begin(array, np.float32, shape)
        for vectors, records in _blocks_of(_records(stores), shape[0]):
            array.write(vectors.data)
            for record in records:
                row = {'id': record.id, 'text': record.text, 'uri': record.uri, 'tags': json.loads(record.tags)}
                documents.write(json.dumps(row, ensure_ascii=False) + '\n')
            wrote(len(records))
    return path


def _write_partitions(stores: Sequence[Store], folder: Path, wrote: Callable[[int], None]) -> Path:
    """As `_write_plain`."""
    tables, arrays = parquet(), arrow()
    schema = arrays.schema([(name, arrays.string()) for name in _COLUMNS])
    path, metadata, (count, dimension) = folder / '.img_emb', folder / 'metadata', _shape(stores)
    path.mkdir()
    metadata.mkdir()
    starts, remaining = range(0, count, ROWS_PER_FILE), _records(stores)
    with (folder / 'image.index').open('wb') as index:
        _begin_index(index, (count, dimension))
        for number, start in enumerate(starts):
            name, rows = f'{number:0{len(str(len(starts) - 1))}d}', min(ROWS_PER_FILE, count - start)
            with (
                (path / f'img_emb_{name}.npy').open('wb') as array,
                tables.ParquetWriter(metadata / f'metadata_{name}.parquet', schema) as table,
            ):
                _begin(array, np.float16, (rows, dimension))
                for vectors, records in _blocks_of(remaining, rows):
                    array.write(vectors.astype(np.float16).data)
                    index.write(vectors.data)
                    fields = ((r.id, r.uri or r.id, r.text, r.uri, r.tags) for r in records)
                    found = [dict(zip(_COLUMNS, row, strict=True)) for row in fields]
                    table.write_table(arrays.Table.from_pylist(found, schema))
                    wrote(len(records))
    return path

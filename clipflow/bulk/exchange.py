"""Vectors and metadata from and to the files of others: clip-retrieval's layout, and plain NumPy with JSON lines.

    clip-retrieval   img_emb/img_emb_N.npy (or text_emb), metadata/metadata_N.parquet, image.index
    plain            vectors.npy, documents.jsonl: one object a line with id, text, uri, tags

Beside them a dump has manifest.json: model, fingerprint and precision of the vectors.

Arrays are memory-mapped and read in blocks, so that a collection may be larger than memory.
"""

import errno
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.bulk.arrow import arrow, parquet
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, StorageFull
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.tags import has_nul, is_suspect, unsendable

BLOCK = 1000
ROWS_PER_FILE = 100_000
"""Of clip-retrieval's layout, as it writes itself."""
_OWN = ('id', 'image_path', 'caption', 'text', 'url', 'uri', 'tags')
_IDS = ('id', 'image_path')
_LONGEST_ID = 512

Rows = Iterator[tuple[NDArray[np.float32], list[dict[str, Any]]]]
"""Blocks of vectors [n, D] of unit length, and for each its metadata."""


def read(folder: Path) -> Iterator[list[Record]]:
    """The documents of a folder in either layout, in blocks.

    Raises:
        NotFound: the folder is of neither layout.
        InvalidDocument: vectors and metadata differ in number, or a vector is no direction.
        Unavailable: the parquet files need a package that is not installed.
    """
    place = 0
    for array in arrays_in(folder):
        for vectors, fields in _rows(array):
            yield [record(vector, row, place + n) for n, (vector, row) in enumerate(zip(vectors, fields, strict=True))]
            place += len(fields)


def numbered(folder: Path) -> bool:
    """Whether documents have no ids of their own, as far as the first one shows; then their places are their ids."""
    rows = (fields[0] for array in arrays_in(folder) for _, fields in _rows(array))
    return bool(_first(next(rows, {}), *_IDS) == '')


def arrays_in(folder: Path) -> list[Path]:
    """The files of vectors of a folder in either layout, in their order.

    Raises:
        NotFound: there are none.
    """
    plain = folder / 'vectors.npy'
    arrays = [plain] if plain.is_file() else sorted(folder.glob('img_emb/img_emb_*.npy'))
    arrays = arrays or sorted(folder.glob('text_emb/text_emb_*.npy'))
    if not arrays:
        raise NotFound(f'{folder} has neither vectors.npy nor img_emb/img_emb_*.npy; it is no collection of vectors')
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
        yield from _blocks(vectors, ({} for _ in range(len(vectors))), array)
    elif path.suffix == '.parquet':
        yield from _blocks(vectors, (row for batch in batches(path, BLOCK) for row in batch.to_pylist()), path)
    else:
        yield from _blocks(vectors, (parsed(line, path) for line in lines(path)), path)


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
    rows = np.array(vectors, dtype=np.float32)
    lengths = np.sqrt(np.einsum('ij,ij->i', rows, rows))[:, None]
    if not np.isfinite(lengths).all() or not lengths.all():
        raise InvalidDocument(f'{path}: a vector of rows {start} to {start + len(rows)} is zero or not finite')
    rows /= lengths
    return rows


def _blocks(vectors: NDArray[Any], fields: Iterator[dict[str, Any]], path: Path) -> Rows:
    for start in range(0, len(vectors), BLOCK):
        rows = unit(vectors[start : start + BLOCK], path, start)
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
    if len(identifier.encode('utf-8', 'surrogatepass')) > _LONGEST_ID:
        raise InvalidDocument(f'the id {identifier[:40]!r}... is longer than {_LONGEST_ID} bytes')
    tags = _tags(row.get('tags'))
    tags |= {name: value for name, value in row.items() if name not in _OWN and value is not None}
    tags = {name: value for name, value in tags.items() if not name.startswith('__')}
    text = str(_first(row, 'text', 'caption'))
    # Where there is no picture, a dump has the id in the place of its path, for clip-retrieval needs one.
    uri = str(_first(row, 'uri', 'url', *(['image_path'] if row.get('id') != row.get('image_path') else [])))
    try:
        found = json.dumps(tags, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, RecursionError):
        raise InvalidDocument(f'the metadata of {identifier!r} are not finite numbers, texts and lists') from None
    if is_suspect(f'{identifier}{text}{uri}{found}') and (reason := unsendable([identifier, text, uri, tags])):
        raise InvalidDocument(f'the document {identifier[:40]!r} holds {reason}')
    if has_nul(found, tags):
        raise InvalidDocument(f'the metadata of {identifier!r} hold the character NUL, which cannot be stored')
    return Record(identifier, text, uri, found, vector)


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
        StorageFull: the disk is full.
    """
    if not any(store.count() for store in stores):
        raise NotFound('there are no documents to write')
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InvalidParameter(f'{folder} is not empty; name a folder that does not exist')
        folder.mkdir(parents=True, exist_ok=True)
        (_write_plain if layout == 'plain' else _write_partitions)(stores, folder, wrote)
        _write_manifest(stores, folder)
    except (OSError, RuntimeError) as error:  # FAISS's word for any failure to write
        full = getattr(error, 'errno', None) == errno.ENOSPC
        raise (StorageFull if full else InvalidParameter)(f'{folder} cannot be written: {error}') from None


def _write_manifest(stores: Sequence[Store], folder: Path) -> None:
    """What `clipflow embed` says of its vectors too, so that they are not taken for those of another model."""
    filled = [store for store in stores if store.count()]
    fingerprint, model = filled[0].model()
    precision = 'int8' if all(store.precision() == 'int8' for store in filled) else 'float'
    manifest = {'model': model, 'fingerprint': fingerprint, 'precision': precision}
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n', encoding='ascii')


def _records(stores: Sequence[Store]) -> Iterator[list[Record]]:
    for store in stores:
        for keys, _ in store.vectors():
            for start in range(0, len(keys), BLOCK):
                found = store.by_keys(keys[start : start + BLOCK].tolist(), vectors=True)
                yield [found[key] for key in sorted(found)]


def _matrix(records: Sequence[Record]) -> NDArray[np.float32]:
    return np.stack([record.vector for record in records if record.vector is not None])


def _write_plain(stores: Sequence[Store], folder: Path, wrote: Callable[[int], None]) -> None:
    dimension = next((store.dimension() for store in stores if store.count()), 0)
    shape = (sum(store.count() for store in stores), dimension)
    vectors = np.lib.format.open_memmap(folder / 'vectors.npy', mode='w+', dtype=np.float32, shape=shape)
    place = 0
    with (folder / 'documents.jsonl').open('w', encoding='utf-8') as file:
        for records in _records(stores):
            vectors[place : place + len(records)] = _matrix(records)
            place += len(records)
            for record in records:
                row = {'id': record.id, 'text': record.text, 'uri': record.uri, 'tags': json.loads(record.tags)}
                file.write(json.dumps(row, ensure_ascii=False) + '\n')
            wrote(len(records))
    vectors.flush()


def _write_partitions(stores: Sequence[Store], folder: Path, wrote: Callable[[int], None]) -> None:
    import faiss

    tables, arrays = parquet(), arrow()
    for name in ('img_emb', 'metadata'):
        (folder / name).mkdir()
    width = len(str(max(0, sum(store.count() for store in stores) - 1) // ROWS_PER_FILE))
    index: Any = None
    waiting: list[Record] = []
    number = 0

    def put(records: list[Record]) -> None:
        nonlocal number
        name = f'{number:0{width}d}'
        np.save(folder / 'img_emb' / f'img_emb_{name}.npy', _matrix(records).astype(np.float16))
        rows = [
            {'id': r.id, 'image_path': r.uri or r.id, 'caption': r.text, 'url': r.uri, 'tags': r.tags} for r in records
        ]
        tables.write_table(arrays.Table.from_pylist(rows), folder / 'metadata' / f'metadata_{name}.parquet')
        number += 1

    for records in _records(stores):
        rows = _matrix(records)
        index = index or faiss.index_factory(rows.shape[1], 'Flat', faiss.METRIC_INNER_PRODUCT)
        index.add(rows)
        waiting += records
        if len(waiting) >= ROWS_PER_FILE:
            put(waiting[:ROWS_PER_FILE])
            waiting = waiting[ROWS_PER_FILE:]
        wrote(len(records))
    if waiting:
        put(waiting)
    if index is not None:
        faiss.write_index(index, str(folder / 'image.index'))

"""An index on disk, so that a start need not build it again: a directory `snapshots/<number>` beside the database.

    meta.json   format, token, sequence, kind, checksums           keys.i64   key of each slot, 0 for a dead one
    main.faiss  the FAISS part, where there is one                 rows.f32   vectors of the slots after it

A snapshot is derived: everything in it can be built from the database. It is written under a temporary name, synced and
renamed to the next number, so that the one before it is there until then; what does not match its checksums, or belongs
to another database, is not used.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

from clipflow.errors import StorageFull
from clipflow.files import sync
from clipflow.index.approximate import Approximate, save
from clipflow.index.choice import Choice
from clipflow.index.flat import BLOCK
from clipflow.index.layered import LayeredIndex
from clipflow.store import layout
from clipflow.store.sqlite import Store

FORMAT = 1
_TUNED = ('effort', 'rerank', 'recall', 'tuned_at', 'aimed', 'real')
_CHUNK = 1 << 22


class Unusable(Exception):
    """A snapshot cannot be used; the text says why. Nobody outside of the index meets it."""


@dataclass(frozen=True)
class Moment:
    """What an index was at one point: taken while writes wait, written out while they go on."""

    index: LayeredIndex
    choice: Choice
    token: str
    """Stands in the database too, beside that of the snapshot which is there already."""
    sequence: int
    keys: NDArray[np.int64]
    start: int
    """First slot after the FAISS part."""

    @classmethod
    def of(cls, index: LayeredIndex, choice: Choice, store: Store) -> 'Moment':
        """Nobody may write to the store or merge the index during this call.

        Raises:
            OSError: the disk is full.
        """
        view = index.table.view
        keys = view.keys[: view.count].copy()
        keys[view.died[: view.count] <= view.version] = 0
        token = secrets.token_hex(8)
        try:
            store.note_snapshot(token, _token(layout.newest(store.directory / layout.SNAPSHOTS)))
        except StorageFull:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        return cls(index, choice, token, store.last_sequence(), keys, view.count - index.unmerged)


def write(folder: Path, moment: Moment) -> Path:
    """Write a snapshot and delete those before it. Rows must not be merged meanwhile; writes may go on.

    Raises:
        OSError: the disk is full or cannot be written; older snapshots stay as they are.
    """
    before = layout.newest(folder)
    final = folder / str(1 if before is None else int(before.name) + 1)
    temporary = final.with_suffix('.part')
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        sums = {'keys.i64': _put(temporary / 'keys.i64', [moment.keys])}
        sums['rows.f32'] = _put(temporary / 'rows.f32', moment.index.rows(moment.start, len(moment.keys)))
        main = moment.index.main
        if main is not None:
            save(main.faiss, temporary / 'main.faiss')
            sums['main.faiss'] = checksum(temporary / 'main.faiss')
        meta = {
            'format': FORMAT,
            'token': moment.token,
            'sequence': moment.sequence,
            'dimension': moment.index.dimension,
            'choice': asdict(moment.choice),
            'factory': main.factory if main is not None else '',
            'tuned': [getattr(main, name) for name in _TUNED] if main is not None else [],
            'sums': sums,
        }
        (temporary / 'meta.json').write_text(json.dumps({'meta': meta, 'sum': _sum_of(meta)}))
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def drop(folder: Path) -> None:
    """Delete all snapshots: the index is empty.

    Raises:
        OSError: they cannot be deleted.
    """
    if folder.is_dir():
        shutil.rmtree(folder)


def read(folder: Path, store: Store, fits: Callable[[Choice], bool]) -> tuple[LayeredIndex, Choice, int]:
    """The index as it was in the newest snapshot, its kind, and the sequence number up to which it knows the store.

    Raises:
        Unusable: there is none, it is damaged, it does not belong to this database, or its kind does not fit.
    """
    path = layout.newest(folder)
    if path is None:
        raise Unusable('there is no snapshot')
    try:
        written = json.loads((path / 'meta.json').read_text())
        meta = written['meta']
        if meta['format'] != FORMAT:
            raise Unusable(f'its format is {meta["format"]}, not {FORMAT}')
        if written['sum'] != _sum_of(meta):
            raise Unusable('meta.json is damaged')
        # A database that was put back does not know the snapshots that came after it was copied.
        if meta['token'] not in store.snapshots():
            raise Unusable('it belongs to another database, or to a later state of this one')
        choice = Choice(**meta['choice'])
        if not fits(choice):
            raise Unusable(f'its {choice.factory or "flat"} takes more memory than CLIPFLOW_INDEX_MEMORY allows')
        return _index(path, meta, store), choice, int(meta['sequence'])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        # RuntimeError and AssertionError: FAISS's words for a file that it cannot read.
        raise Unusable(f'it cannot be read: {str(error)[:200] or type(error).__name__}') from None


def _token(path: Path | None) -> str:
    """That of a snapshot; empty if there is none that can be read."""
    try:
        return '' if path is None else str(json.loads((path / 'meta.json').read_text())['meta']['token'])
    except (OSError, ValueError, KeyError, TypeError):
        return ''


def _index(path: Path, meta: dict[str, Any], store: Store) -> LayeredIndex:
    sums, dimension = meta['sums'], int(meta['dimension'])
    if store.dimension() not in (0, dimension):
        raise Unusable('its vectors are of another length')
    main = None
    if 'main.faiss' in sums:
        _check(path / 'main.faiss', sums, checksum(path / 'main.faiss'))
        main = Approximate(faiss.read_index(str(path / 'main.faiss')), meta['factory'])
        # Older ones note fewer: then it is tuned again.
        for name, value in zip(_TUNED, meta['tuned'], strict=False):
            setattr(main, name, value)
    keys = np.fromfile(path / 'keys.i64', dtype=np.int64)
    _check(path / 'keys.i64', sums, xxhash.xxh3_128_hexdigest(keys.data))
    index = LayeredIndex(dimension, store.vectors_of, main)
    seen = xxhash.xxh3_128()
    with (path / 'rows.f32').open('rb') as file:
        index.restore(keys, _blocks(file, dimension, seen))
    _check(path / 'rows.f32', sums, seen.hexdigest())
    return index


def _blocks(file: Any, dimension: int, checksum: Any) -> Iterator[NDArray[np.float32]]:
    while True:
        rows = np.fromfile(file, dtype=np.float32, count=BLOCK * dimension)
        if not len(rows):
            return
        checksum.update(rows.data)
        yield rows.reshape(-1, dimension)


def _check(path: Path, sums: dict[str, str], found: str) -> None:
    if sums[path.name] != found:
        raise Unusable(f'{path.name} is damaged')


def _put(path: Path, arrays: Any) -> str:
    checksum = xxhash.xxh3_128()
    with path.open('wb') as file:
        for array in arrays:
            whole = np.ascontiguousarray(array)
            checksum.update(whole.data)
            file.write(whole.data)
    return str(checksum.hexdigest())


def _sum_of(meta: dict[str, Any]) -> str:
    return str(xxhash.xxh3_128_hexdigest(json.dumps(meta, sort_keys=True).encode()))


def checksum(path: Path) -> str:
    """Of a file: 128 bits of xxHash3, in hexadecimal."""
    found = xxhash.xxh3_128()
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return str(found.hexdigest())

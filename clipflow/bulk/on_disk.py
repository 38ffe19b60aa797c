"""A FAISS index of inverted lists that is larger than memory: parts, made side by side, then merged into one file.

All parts have the same clusters; each holds some of the rows, under their places as ids, and is written to disk. The
merge reads the parts memory-mapped and writes list after list. The file is one that FAISS itself could have written:
`faiss.read_index` reads it into memory, and with `IO_FLAG_MMAP` leaves the lists where they are.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from clipflow.bulk.build import INDEXING
from clipflow.bulk.mapped import Mapped
from clipflow.bulk.processes import Told, each
from clipflow.errors import InvalidParameter
from clipflow.index.approximate import Approximate, save
from clipflow.index.build import sampled
from clipflow.index.choice import Choice, Wanted
from clipflow.index.tuning import Best, aim, calibration, smallest
from clipflow.work import cores

_BLOCK = 1024
_CLUSTERS = 'clusters.faiss'
_SHARE_OF_PARTS = 4
"""FAISS's lists may take twice what is in them, and vectors are on their way into them."""
_SHARE_OF_SAMPLE = 8
"""K-means holds it up to three times."""
_MAPPED = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY


@dataclass(frozen=True)
class _Part:
    """Rows of a folder, from `start` to `stop`, and where they go."""

    source: Path
    clusters: Path
    file: Path
    start: int
    stop: int
    threads: int


class _Held:
    """All rows of a folder, under their places. See `tuning.Held`."""

    def __init__(self, source: Mapped) -> None:
        self._source = source

    def keys_at(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return slots

    def vectors_at(
        self, keys: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self._source.vectors_of(keys)

    def holds(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.ones(len(keys), bool)


def write(source: Mapped, file: Path, choice: Choice, wanted: Wanted, told: Told) -> None:
    """Write the index of a folder; ids are places in it.

    Args:
        source: the folder.
        file: is made; the parts lie beside it meanwhile.
        choice: of a kind with inverted lists.
        wanted: the bytes that vectors may take at once, in all processes together, and the recall of the ten best;
            the search effort is tuned to it, and written too.
        told: hears of INDEXING.

    Raises:
        InvalidParameter: parts of this kind cannot be merged.
        OSError: the disk is full or cannot be written.
    """
    main = Approximate.create(choice.factory, source.dimension())
    # Eight bytes a vector, for what is not done here.
    faiss.extract_index_ivf(main.faiss).set_direct_map_type(faiss.DirectMap.NoMap)
    folder = file.with_name(f'{file.name}-parts')
    folder.mkdir()
    try:
        sample = sampled([source], main, wanted.memory // (_SHARE_OF_SAMPLE * 4 * source.dimension()))
        main.train(sample)
        _head(main, np.zeros(main.lists, np.uint64))  # a kind that cannot be merged is refused now, not in hours
        nobody = np.empty((0, source.dimension()), np.float32)
        queries = calibration(sample, nobody)
        del sample
        save(main.faiss, folder / _CLUSTERS)
        parts = _parts(source, folder, wanted.memory // max(1, choice.memory // source.count()))
        each(parts, _fill, min(len(parts), cores()), told)
        sizes = _merge(main, parts, file)
        merged = Approximate(faiss.read_index(str(file), _MAPPED), choice.factory)
        best = Best(queries)
        for start, rows in _blocks(source, 0, source.count()):
            best.look(np.arange(start, start + len(rows)), rows)
        smallest(merged, best, aim(wanted.recall, nobody), _Held(source))
        faiss.ParameterSpace().set_index_parameter(main.faiss, 'nprobe', merged.effort)
        with file.open('r+b') as out:
            out.write(_head(main, sizes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parts(source: Mapped, folder: Path, together: int) -> list[_Part]:
    """Of as many rows that one part for each core may be in memory, if `together` vectors may."""
    workers, count = cores(), source.count()
    rows = max(_BLOCK, together // (_SHARE_OF_PARTS * workers))
    threads = max(1, faiss.omp_get_max_threads() // workers)
    return [
        _Part(source.folder, folder / _CLUSTERS, folder / f'{start}.faiss', start, min(start + rows, count), threads)
        for start in range(0, count, rows)
    ]


def _fill(part: _Part, told: Told) -> None:
    faiss.omp_set_num_threads(part.threads)
    index = faiss.read_index(str(part.clusters))
    for start, rows in _blocks(Mapped(part.source), part.start, part.stop):
        index.add_with_ids(rows, np.arange(start, start + len(rows)))
        told(INDEXING, len(rows))
    save(index, part.file)


def _blocks(source: Mapped, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for place in range(start, stop, _BLOCK):
        _, rows = source.vectors_of(np.arange(place, min(place + _BLOCK, stop)))
        yield place, rows


def _merge(main: Approximate, parts: Sequence[_Part], file: Path) -> NDArray[np.uint64]:
    """Write the lists of all parts, in the order of the parts; returns how many vectors each of the lists has."""
    # An index that is gone takes its lists along.
    indexes = [faiss.read_index(str(part.file), _MAPPED) for part in parts]
    inverted = [faiss.extract_index_ivf(index).invlists for index in indexes]
    sizes = np.array([[one.list_size(number) for one in inverted] for number in range(main.lists)], np.uint64)
    width = inverted[0].code_size
    with file.open('wb') as out:
        out.write(_head(main, sizes.sum(axis=1)))
        for number, of_parts in enumerate(sizes.tolist()):
            here = [(one, size) for one, size in zip(inverted, of_parts, strict=True) if size]
            for one, size in here:
                out.write(faiss.rev_swig_ptr(one.get_codes(number), size * width).data)
            for one, size in here:
                out.write(faiss.rev_swig_ptr(one.get_ids(number), size).data)
    return np.asarray(sizes.sum(axis=1))


def _head(main: Approximate, sizes: NDArray[np.uint64]) -> bytes:
    """What stands in a file of FAISS before the contents of the lists.

    Source: `write_index` in FAISS's index_write.cpp: the lists come last, `ilar`, their number, the bytes of a code,
    and either `sprs` with the sizes of those that are not empty, or `full` with all sizes.
    """
    lists = faiss.extract_index_ivf(main.faiss)
    before = lists.ntotal
    main.faiss.ntotal = lists.ntotal = int(sizes.sum())
    whole = bytes(faiss.serialize_index(main.faiss))
    main.faiss.ntotal = lists.ntotal = before
    head = b'ilar' + np.array([main.lists, lists.code_size], np.uint64).tobytes()
    if not whole.endswith(head + b'sprs' + bytes(8)):
        raise InvalidParameter(
            f'{main.factory!r} is larger than the memory for it, and parts of this kind cannot be merged on disk; '
            'allow more --memory, or take another --kind, such as ivf'
        )
    return whole[: -len(b'sprs') - 8] + b'full' + np.array([main.lists, *sizes], np.uint64).tobytes()

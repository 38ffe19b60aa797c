"""The vectors of a folder that `exchange` reads, where they lie: memory-mapped, by their places, in any order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.bulk import exchange
from clipflow.errors import Conflict, DimensionMismatch, InvalidDocument, ModelMismatch, NotFound
from clipflow.settings import EncoderSettings
from clipflow.store.reading import Record
from clipflow.weights import ModelSpec

BLOCK = 1 << 14
"""Rows that are in memory at once: 32 MB at 512 dimensions."""


class Mapped:
    """See the module. As `index.base.Stored`, with places as keys: N vectors of unit length, [N, D].

    Attributes:
        folder: where they are.
        manifest: what `clipflow embed` says of them; empty if somebody else has made them.

    Raises:
        NotFound: there are no vectors in the folder.
        Conflict: `clipflow embed` is not through with it.
        InvalidDocument: a file is damaged or missing, or its metadata are of another number of rows.
        DimensionMismatch: the files hold vectors of different lengths.
        Unavailable: the parquet files need a package that is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / 'plan' / 'plan.json').is_file() and not (folder / 'manifest.json').is_file():
            raise Conflict(
                f'{folder} is not complete: the `clipflow embed` that makes it has not come to its end; run the same '
                'command again'
            )
        self._files = [(path, exchange.mapped(path)) for path in exchange.arrays_in(folder)]
        self._starts = np.cumsum([0, *(len(array) for _, array in self._files)])
        self.manifest = _manifest(folder / 'manifest.json')
        if (there := self.manifest.get('sample_count', self.count())) != self.count():
            raise InvalidDocument(
                f'{folder} holds {self.count():,} vectors, not {there} as its manifest.json says: files are missing; '
                'copy it again, or run the `clipflow embed` again that has made it'
            )
        if not self.count():
            raise NotFound(f'the files in {folder} hold no vectors')
        for path, array in self._files:
            if array.shape[1] != self.dimension():
                raise DimensionMismatch(
                    f'{path} holds vectors of {array.shape[1]} dimensions, {self._files[0][0].name} of '
                    f'{self.dimension()}; embed all with one model'
                )
            metadata = exchange.metadata_of(path)
            if metadata.suffix == '.parquet' and metadata.is_file():
                rows = exchange.table(metadata).metadata.num_rows
                if rows != len(array):
                    raise InvalidDocument(f'{metadata} has {rows} rows for {len(array)} vectors')

    def check_model(self, spec: ModelSpec) -> None:
        """Whether the vectors can be those of a model.

        Raises:
            ModelMismatch: the folder says that another one has made them.
            DimensionMismatch: they are of another length.
        """
        found = self.manifest.get('fingerprint', spec.fingerprint)
        if found != spec.fingerprint:
            raise ModelMismatch(
                f'the vectors in {self.folder} were made with the model {self.manifest.get("model")!r} ({found}), not '
                f'with {spec.name!r} ({spec.fingerprint}); set CLIPFLOW_MODEL to theirs'
            )
        # The runtime `fake` has its own dimension, whatever the model.
        if spec.dimension not in (0, self.dimension()) and EncoderSettings.load().runtime != 'fake':
            raise DimensionMismatch(
                f'the vectors in {self.folder} have {self.dimension()} dimensions, those of the model {spec.name!r} '
                f'have {spec.dimension}; set CLIPFLOW_MODEL to theirs'
            )

    @property
    def precision(self) -> str:
        """What the vectors were made with, as far as the folder says: float or int8."""
        return 'int8' if self.manifest.get('precision') == 'int8' else 'float'

    def files(self) -> list[tuple[str, int, int]]:
        """Name, bytes and time of change of each file, metadata too: what tells this content from another."""
        paths = [path for array, _ in self._files for path in (array, exchange.metadata_of(array)) if path.is_file()]
        found = [(path.name, path.stat()) for path in paths]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]

    def count(self) -> int:
        """N."""
        return int(self._starts[-1])

    def dimension(self) -> int:
        """D."""
        return int(self._files[0][1].shape[1])

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All places and vectors, in blocks of [n] and [n, D]."""
        for start in range(0, self.count(), BLOCK):
            yield self.vectors_of(np.arange(start, min(start + BLOCK, self.count())))

    def sample(self, most: int) -> NDArray[np.float32]:
        """Vectors from everywhere, [n, D]; all if there are fewer."""
        # Drawn, not scrambled as the store does it: of a hundred million places few are looked at.
        some = np.random.default_rng(0).choice(self.count(), min(most, self.count()), replace=False, shuffle=False)
        return self.vectors_of(np.sort(some))[1]

    def vectors_of(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of [N] places all, [N], and their vectors, [N, D]."""
        rows = np.empty((len(keys), self.dimension()), dtype=np.float32)
        for (path, array), start, stop in zip(self._files, self._starts[:-1], self._starts[1:], strict=True):
            here = (keys >= start) & (keys < stop)
            if here.any():
                rows[here] = exchange.unit(array[keys[here] - start], path, int(keys[here].min() - start))
        return keys, rows

    def records(self, places: NDArray[np.int64]) -> Iterator[Record]:
        """What is known of [N] places, which ascend; without vectors."""
        for (path, array), start, stop in zip(self._files, self._starts[:-1], self._starts[1:], strict=True):
            own = places[(places >= start) & (places < stop)]
            if len(own):
                rows = _fields(exchange.metadata_of(path), own - start, len(array))
                for place, row in zip(own.tolist(), rows, strict=True):
                    yield exchange.record(None, row, place)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidDocument(f'{path} cannot be read: {error}') from None
    if not isinstance(found, dict):
        raise InvalidDocument(f'{path} is no JSON object')
    return found


def _fields(path: Path, rows: NDArray[np.int64], count: int) -> Iterator[dict[str, Any]]:
    """The metadata of some rows of a file, which ascend; of `count` there are."""
    if not path.is_file():
        yield from ({} for _ in rows)
    elif path.suffix == '.parquet':
        start = 0
        for batch in exchange.batches(path, BLOCK):
            here = rows[(rows >= start) & (rows < start + len(batch))]
            if len(here):
                yield from batch.take(here - start).to_pylist()
            start += len(batch)
    else:
        wanted, last = set(rows.tolist()), -1
        for last, line in enumerate(exchange.lines(path)):
            if last in wanted:
                yield exchange.parsed(line, path)
        if last + 1 != count:
            raise InvalidDocument(f'{path} has {last + 1} rows for {count} vectors')

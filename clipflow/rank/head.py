"""A small matrix that moves queries to where their good answers are: results change, and no picture is encoded anew.

The score of a query q and a stored embedding d, both of unit length, is

    (1 - blend) * cos(q, d)  +  blend * cos(q + up (down q), d)

with `down` [R, D] and `up` [D, R]: a residual of low rank as in LoRA (Hu et al. 2021), but on the embedding. With `up`
zero it is the cosine itself, which is where training begins (`clipflow/rank/fit.py`). R = D makes it a full matrix.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clipflow.errors import DimensionMismatch, InvalidParameter, ModelMismatch, NotFound, ReadOnly
from clipflow.files import replaced

FORMAT = 'clipflow-head-1'
_LARGEST = 256 * 1024 * 1024
_LENGTH_BYTES = 8


@dataclass(frozen=True, eq=False)
class Head:
    """See the module.

    Attributes:
        down: float32, [R, D].
        up: float32, [D, R].
        model: fingerprint of the model whose embeddings these are.
        blend: the share of the moved query in the score, 0 to 1.
        made: when, in ISO 8601.
        source: what it was trained from, for people.
        figures: how it did on queries that it was not trained with.
        passed: whether it ranked those no worse than the cosine alone.
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]
    model: str
    blend: float = 1.0
    made: str = ''
    source: str = ''
    figures: dict[str, Any] = field(default_factory=dict)
    passed: bool = False

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.down.shape[1])

    @cached_property
    def version(self) -> str:
        """A hash of what decides about scores, 12 hexadecimal digits."""
        digest = hashlib.sha256(f'{FORMAT} {self.model} {self.blend!r} {self.down.shape}'.encode())
        digest.update(np.ascontiguousarray(self.down).tobytes())
        digest.update(np.ascontiguousarray(self.up).tobytes())
        return digest.hexdigest()[:12]

    def moved(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """What queries of unit length, [Q, D], become: the product with a candidate is its score.

        Raises:
            DimensionMismatch: they have another length.
        """
        self.check_dimension(queries.shape[1])
        rows = queries.astype(np.float64)
        there = rows + (rows @ self.down.T.astype(np.float64)) @ self.up.T.astype(np.float64)
        there /= np.maximum(np.linalg.norm(there, axis=1, keepdims=True), 1e-12)
        found: NDArray[np.float64] = self.blend * there + (1 - self.blend) * rows
        return found

    def scores(self, queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores in [-1, 1] of queries [Q, D] against candidates [N, D], both of unit length, [Q, N]."""
        found: NDArray[np.float64] = self.moved(queries) @ candidates.T.astype(np.float64)
        return found

    def check(self, model: str) -> None:
        """Raises ModelMismatch if it was made for another model than that with this fingerprint."""
        if self.model != model:
            raise ModelMismatch(
                f'the head {self.version} was trained for another model ({self.model[:12]}, here runs {model[:12]}); '
                'train one for this model'
            )

    def check_dimension(self, dimension: int) -> None:
        """Raises DimensionMismatch if it is not for vectors of this length."""
        if self.dimension != dimension:
            raise DimensionMismatch(
                f'the head {self.version} is for vectors of {self.dimension} dimensions, and here they have '
                f'{dimension}; train one with these'
            )

    def content(self) -> bytes:
        """The file: safetensors, with all else in its metadata."""
        metadata = {
            'format': FORMAT,
            'version': self.version,
            'model': self.model,
            'dimension': str(self.dimension),
            'blend': repr(self.blend),
            'made': self.made,
            'source': self.source,
            'figures': json.dumps(self.figures),
            'passed': str(self.passed).lower(),
        }
        return bytes(save({'down': self.down, 'up': self.up}, metadata))

    def write(self, path: Path) -> None:
        """Write the file; it is there as a whole or not at all.

        Raises:
            ReadOnly, StorageFull: it cannot be written.
        """
        replaced(path, self.content())

    @classmethod
    def read(cls, path: Path) -> 'Head':
        """Read a file.

        Raises:
            NotFound: there is none.
            InvalidParameter, DimensionMismatch: see `of`.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise InvalidParameter(f'{path} has more than {_LARGEST:,} bytes; it is no head')
            return cls.of(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise NotFound(f'there is no head {path}') from None
        except OSError as error:
            raise ReadOnly(f'the head {path} cannot be read: {error.strerror}') from None

    @classmethod
    def of(cls, content: bytes, name: str) -> 'Head':
        """From the content of a file; `name` is for messages.

        Raises:
            InvalidParameter: it is damaged, no head, or holds numbers that are not finite.
            DimensionMismatch: its matrices do not fit each other.
        """
        try:
            length = int.from_bytes(content[:_LENGTH_BYTES], 'little')
            metadata = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])['__metadata__']
            tensors = load(content)
            if metadata['format'] != FORMAT:
                raise InvalidParameter(f'{name} is of the form {metadata["format"]!r}; this clipflow reads {FORMAT!r}')
            down, up = tensors['down'], tensors['up']
            head = cls(
                down,
                up,
                metadata['model'],
                float(metadata['blend']),
                metadata.get('made', ''),
                metadata.get('source', ''),
                json.loads(metadata.get('figures', '{}')),
                metadata.get('passed') == 'true',
            )
            dimension, version = int(metadata['dimension']), metadata['version']
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidParameter(f'{name} is damaged, or no head; `clipflow head train` writes one') from None
        if down.ndim != 2 or up.shape != down.shape[::-1] or dimension != down.shape[1]:
            raise DimensionMismatch(f'{name} holds matrices that do not fit: {down.shape} and {up.shape}')
        numbers = (down, up)
        if any(matrix.dtype != np.float32 or not np.isfinite(matrix).all() for matrix in numbers):
            raise InvalidParameter(f'{name} holds numbers that are not finite, or not float32; train it again')
        if not 0 <= head.blend <= 1 or head.version != version:
            raise InvalidParameter(f'{name} is damaged: its content is not that of its version {version}')
        return head

"""Vectors without weights, for tests of everything around the model: the same input gives the same vector.

Pictures that look alike get vectors that are close; texts are spread at random by their tokens.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from clipflow.sessions.base import Options, Tower
from clipflow.weights import ModelSpec

DIMENSION = 32
_GRID = 4


def load(spec: ModelSpec, options: Options) -> 'FakeSession':
    """There is nothing to load."""
    return FakeSession()


class FakeSession:
    """See `base.Session`."""

    dimension = DIMENSION

    def __init__(self) -> None:
        self._projection = np.random.default_rng(0).normal(size=(_GRID * _GRID * 3 + 1, DIMENSION))

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {'runtime': 'fake', 'device': 'cpu', 'precision': 'float32', 'runtime_version': '0'}

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`: the mean colour of a grid of cells, projected at random."""
        count, height, width, _ = pixels.shape
        cells = pixels[:, : height // _GRID * _GRID, : width // _GRID * _GRID]
        cells = cells.reshape(count, _GRID, height // _GRID, _GRID, width // _GRID, 3)
        means = cells.mean(axis=(2, 4)).reshape(count, -1) / 255 - 0.5
        return _unit(np.concatenate([means, np.full((count, 1), 0.1)], axis=1) @ self._projection)

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`: seeded by the tokens that the mask leaves."""
        seeds = [zlib.crc32(row[keep.astype(bool)].tobytes()) for row, keep in zip(ids, mask, strict=True)]
        return _unit(np.stack([np.random.default_rng(seed).normal(size=DIMENSION) for seed in seeds]))

    def release(self, tower: Tower) -> None:
        """See `base.Session`: nothing of it is held here."""

    def close(self) -> None:
        """See `base.Session`."""


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit

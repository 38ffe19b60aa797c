"""Vectors of unit length, for which the inner product is the cosine."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, InvalidDocument

_BLOCK = 256
_ROUNDING = 1e-6
"""Of a cosine in float32, so that copies are alike at a threshold of 1."""


def unit_vector(embedding: Any, dimension: int | None = None) -> NDArray[np.float32]:
    """An embedding that somebody else has made, brought to unit length.

    Args:
        embedding: numbers, [D].
        dimension: D, if it is known.

    Raises:
        InvalidDocument: it is no vector, not finite, or zero.
        DimensionMismatch: it has another D.
    """
    try:
        vector = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidDocument('the embedding is not an array of numbers') from None
    if vector.ndim != 1:
        raise InvalidDocument(f'an embedding has one axis, not the shape {vector.shape}')
    if dimension is not None and len(vector) != dimension:
        raise DimensionMismatch(f'the embedding has {len(vector)} dimensions, the model has {dimension}')
    rows, sound = unit_rows(vector[None])
    if not sound[0]:
        raise InvalidDocument('the embedding has to be finite and other than zero')
    row: NDArray[np.float32] = rows[0]
    return row


def unit_rows(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors of any floats, [N, D], brought to unit length, and which of them, [N], have a direction.

    One has none if its length in float64 is zero or not finite; its row is not finite either.
    """
    unit, sound = np.empty(vectors.shape, np.float32), np.empty(len(vectors), np.bool_)
    # By blocks, so that only few are in memory in float64, in which the squares of float32 neither overflow nor vanish.
    with np.errstate(over='ignore', invalid='ignore'):
        for start in range(0, len(vectors), _BLOCK):
            here = slice(start, start + _BLOCK)
            block = np.asarray(vectors[here], dtype=np.float64)
            lengths = np.sqrt(np.einsum('nd,nd->n', block, block))
            sound[here] = np.isfinite(lengths) & (lengths > 0)
            lengths[~sound[here]] = np.nan
            np.divide(block, lengths[:, None], out=unit[here], casting='same_kind')
    return unit, sound


def distinct(rows: NDArray[np.float32], threshold: float, most: int | None = None) -> list[int]:
    """Of [N, D] unit vectors the rows to keep, first come, so that no two have a cosine of `threshold` or more.

    With `most` the first so many of these.
    """
    # By blocks, so that BLAS does the work; a row at a time would copy what is kept for each.
    bound = threshold - _ROUNDING
    kept, places = np.empty_like(rows), list[int]()
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        free: NDArray[np.bool_] = (block @ kept[: len(places)].T).max(axis=1, initial=-2.0) < bound
        apart = block @ block.T < bound
        for number, row in enumerate(block):
            if free[number]:
                kept[len(places)] = row
                places.append(start + number)
                free &= apart[number]
                if len(places) == most:
                    return places
    return places


def normalised(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """A vector that is not zero, [D], brought to unit length."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)

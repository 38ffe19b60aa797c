"""Vectors of unit length, for which the inner product is the cosine."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, InvalidDocument


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
    length = float(np.linalg.norm(vector)) if np.isfinite(vector).all() else 0.0
    if not np.isfinite(length) or length == 0:
        raise InvalidDocument('the embedding has to be finite and other than zero')
    return (vector / length).astype(np.float32)


def distinct(rows: NDArray[np.float32], threshold: float) -> list[int]:
    """Of [N, D] unit vectors the rows to keep, first come, so that no two have a cosine of `threshold` or more."""
    kept: list[int] = []
    for number, row in enumerate(rows):
        if not kept or float((rows[kept] @ row).max()) < threshold:
            kept.append(number)
    return kept


def normalised(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """A vector that is not zero, [D], brought to unit length."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)

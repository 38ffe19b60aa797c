"""Which of alike vectors are kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipflow import vectors
from clipflow.vectors import distinct


def units(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def one_by_one(rows: NDArray[np.float32], threshold: float) -> list[int]:
    """By the definition, in float64."""
    kept: list[int] = []
    wide = rows.astype(np.float64)
    for number in range(len(rows)):
        if all(float(wide[number] @ wide[other]) < threshold for other in kept):
            kept.append(number)
    return kept


@pytest.mark.parametrize('block', [1, 3, 256])
@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 40), dimension=st.integers(2, 5), threshold=st.floats(0.3, 0.99), seed=st.integers(0, 999))
def test_the_first_of_alike_vectors_are_kept_whatever_the_blocks(
    count: int, dimension: int, threshold: float, seed: int, block: int
) -> None:
    rows = units(count, dimension, seed)
    rows[1::4] = rows[: len(rows[1::4])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, '_BLOCK', block)
        found = distinct(rows, threshold)
        assert found == one_by_one(rows, threshold)
        for most in (1, 2, 5):
            assert distinct(rows, threshold, most) == found[:most]


def test_copies_are_alike_at_a_threshold_of_one() -> None:
    # In float32 the cosine of a vector with itself is often a little below one.
    rows = np.concatenate([units(300, 64), units(300, 64)])
    assert distinct(rows, 1.0) == list(range(300))

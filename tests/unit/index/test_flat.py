"""The flat index on its own; tests/congruence compares it with the reference under any order of operations."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.index.layered import LayeredIndex
from clipflow.index.reference import ReferenceIndex

AXES = np.eye(4, dtype=np.float32)
Index = LayeredIndex | ReferenceIndex


def keys(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@pytest.fixture(params=['flat', 'reference'])
def index(request: pytest.FixtureRequest) -> Index:
    return LayeredIndex(4) if request.param == 'flat' else ReferenceIndex()


def found(index: Index, query: NDArray[np.float32], limit: int, allowed: NDArray[np.int64] | None = None) -> list[int]:
    ((ranked, scores),) = index.search(query[None], limit, allowed)
    assert (np.diff(scores) <= 0).all()
    return ranked.tolist()


def test_an_empty_index_answers_every_query_with_nothing(index: Index) -> None:
    assert [len(ranked) for ranked, _ in index.search(AXES[:3], 5, None)] == [0, 0, 0]
    index.remove(keys(1, 2))
    index.put(keys(), AXES[:0])
    assert len(index) == 0


def test_the_nearest_stand_first_with_their_cosines(index: Index) -> None:
    index.put(keys(10, 20, 30), np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [-1, 0, 0, 0]], np.float32))
    ((ranked, scores),) = index.search(AXES[:1], 3, None)
    assert ranked.tolist() == [10, 20, 30]
    assert scores == pytest.approx([1, 0.6, -1], abs=1e-6)


def test_a_key_that_comes_again_is_replaced_and_the_last_of_a_batch_wins(index: Index) -> None:
    index.put(keys(1, 2, 1), AXES[[0, 1, 2]])
    assert len(index) == 2
    assert found(index, AXES[2], 1) == [1]
    index.put(keys(2), AXES[3:4])
    assert (found(index, AXES[3], 1), len(index)) == ([2], 2)


def test_what_ties_with_the_last_comes_along(index: Index) -> None:
    index.put(np.arange(40), np.repeat(AXES[:2], 20, axis=0))
    assert sorted(found(index, AXES[0], 3)) == list(range(20))
    assert len(found(index, AXES[0], 21)) == 40


@pytest.mark.parametrize('gone', [[0], [9], [0, 9], [4, 5, 9], list(range(9)), list(range(10)), [3, 3, 77]])
def test_removed_keys_are_never_found_again_and_the_others_are(index: Index, gone: list[int]) -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.put(np.arange(10), vectors)
    index.remove(keys(*gone))
    left = [key for key in range(10) if key not in gone]
    assert len(index) == len(left)
    for key in left:
        assert found(index, vectors[key], 1) == [key]
    index.put(keys(100), vectors[:1])
    assert 100 in found(index, vectors[0], 1)


@pytest.mark.parametrize(
    ('allowed', 'limit', 'expected'),
    [([2, 0], 5, [0, 2]), ([3], 5, [3]), ([], 5, []), ([77, 1], 5, [1]), ([0, 1, 2, 3], 2, [0, 1])],
)
def test_only_allowed_keys_are_found(index: Index, allowed: list[int], limit: int, expected: list[int]) -> None:
    index.put(np.arange(4), AXES)
    query = np.array([0.8, 0.5, 0.3, 0.1], np.float32)
    assert found(index, query, limit, keys(*allowed)) == expected


def test_the_vectors_given_are_copied(index: Index) -> None:
    vectors = AXES[:2].copy()
    index.put(keys(1, 2), vectors)
    vectors[:] = 0
    assert found(index, AXES[0], 1) == [1]

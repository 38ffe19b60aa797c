"""Measures against values worked out by hand, and against a slow program that does as the definitions say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipflow.relevance import metrics

SCORES = np.array([[0.9, 0.5, 0.1, 0.7], [0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]])


def ranks(scores: NDArray[np.floating], right: list[list[int]]) -> list[list[int]]:
    places = np.asarray(right, np.int64)
    return metrics.ranks_of(lambda part: scores[part], places, scores.shape[1]).tolist()


def test_the_rank_counts_what_scores_more() -> None:
    assert ranks(SCORES, [[0], [3], [0]])[0] == [1]
    assert ranks(SCORES, [[1], [3], [0]])[0] == [3]
    assert ranks(SCORES, [[1], [3], [0]])[2] == [4]


def test_what_ties_with_the_right_item_stands_before_it() -> None:
    assert ranks(SCORES, [[0], [0], [0]])[1] == [4]
    near = np.array([[0.5, 0.5 - metrics.TIE / 2, 0.5 - 3 * metrics.TIE]])
    assert ranks(near, [[0]]) == [[2]]


def test_right_items_are_ranked_among_each_other_and_the_wrong_ones() -> None:
    assert ranks(SCORES, [[2, 0], [0, 1], [3, -1]]) == [[1, 4], [3, 4], [1, 0]]


def test_places_by_their_owner() -> None:
    assert metrics.grouped(np.array([2, 0, 2, 3, 2, 0]), 5).tolist() == [
        [1, 5, -1],
        [-1, -1, -1],
        [0, 2, 4],
        [3, -1, -1],
        [-1, -1, -1],
    ]


def test_lists_of_the_best_give_the_same_ranks_and_the_worst_to_what_is_missing() -> None:
    found = [
        (np.array([0, 3, 1]), np.array([0.9, 0.7, 0.5])),
        (np.array([2, 3, 0, 1]), np.array([0.2, 0.2, 0.2, 0.2])),
        (np.array([-1, -1]), np.array([0.4, 0.3])),
    ]
    right = np.array([[1], [2], [0]])
    assert metrics.ranks_found(found, right, 50).tolist() == [[3], [4], [50]]


def test_measures_of_ranks_by_hand() -> None:
    values = metrics.retrieval(np.array([[1, 3], [6, 0], [11, 12]]))
    assert values['R@1'].tolist() == [1, 0, 0]
    assert values['R@5'].tolist() == [1, 0, 0]
    assert values['R@10'].tolist() == [1, 1, 0]
    assert values['median rank'].tolist() == [1, 6, 11]
    assert values['MRR'] == pytest.approx([1, 1 / 6, 1 / 11])
    # First: (1 + 1/2) of a possible (1 + 1/log2 3); second: 1/log2 7 of 1.
    assert values['nDCG@10'] == pytest.approx([1.5 / (1 + 1 / math.log2(3)), 1 / math.log2(7), 0])


def test_of_more_right_items_than_ten_the_first_ten_are_all_that_can_be_gained() -> None:
    assert metrics.retrieval(np.arange(1, 13)[None])['nDCG@10'] == pytest.approx([1])


def test_zero_shot_counts_the_first_and_the_first_five() -> None:
    values = metrics.zero_shot(np.array([[1], [2], [5], [6]]), 10)
    assert {name: each.tolist() for name, each in values.items()} == {'top-1': [1, 0, 0, 0], 'top-5': [1, 1, 1, 0]}
    assert set(metrics.zero_shot(np.array([[1]]), 5)) == {'top-1'}


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Scores with many ties, and one to three right items a query."""
    queries, items = draw(st.integers(1, 6)), draw(st.integers(3, 15))
    levels = st.integers(0, 4).map(lambda level: level / 4)
    scores = [[draw(levels) for _ in range(items)] for _ in range(queries)]
    right = [draw(st.lists(st.integers(0, items - 1), min_size=1, max_size=3, unique=True)) for _ in range(queries)]
    return np.asarray(scores), [[*some, *[-1] * (3 - len(some))] for some in right]


def slow(scores: list[float], right: list[int]) -> list[int]:
    """Sort, with the wrong items first among equals, and look where the right ones are."""
    wanted = [place for place in right if place >= 0]
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place in wanted))
    found = [rank for rank, place in enumerate(order, 1) if place in wanted]
    return [*found, *[0] * (len(right) - len(found))]


@given(cases())
def test_ranks_are_those_of_a_sort(case: tuple[NDArray[np.float64], list[list[int]]]) -> None:
    scores, right = case
    assert ranks(scores, right) == [slow(row.tolist(), some) for row, some in zip(scores, right, strict=True)]


@given(cases())
def test_whole_lists_give_the_ranks_of_all_scores(case: tuple[NDArray[np.float64], list[list[int]]]) -> None:
    scores, right = case
    orders = np.argsort(-scores, axis=1, kind='stable')
    found = [(order, row[order]) for order, row in zip(orders, scores, strict=True)]
    # Of one right item: of several that tie with each other, a list alone cannot tell which would come first.
    one = [some[:1] for some in right]
    assert metrics.ranks_found(found, np.asarray(one), scores.shape[1]).tolist() == ranks(scores, one)


@given(cases())
def test_the_gain_is_that_of_the_definition(case: tuple[NDArray[np.float64], list[list[int]]]) -> None:
    scores, right = case
    found = np.asarray(ranks(scores, right))
    for row, gain in zip(found.tolist(), metrics.retrieval(found)['nDCG@10'], strict=True):
        real = [rank for rank in row if rank]
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, len(real) + 1))
        assert gain == pytest.approx(sum(1 / math.log2(1 + rank) for rank in real if rank <= 10) / ideal)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.normal(size=(50, 40)), rng.integers(0, 40, (50, 1))
    whole = metrics.ranks_of(lambda part: scores[part], right, 40)
    sizes = list[int]()

    def some(part: slice) -> NDArray[np.float64]:
        sizes.append(len(scores[part]))
        return scores[part]

    monkeypatch.setattr(metrics, '_SCORES', 40 * 7)
    assert (metrics.ranks_of(some, right, 40) == whole).all()
    assert max(sizes) == 7

"""Who stands beside whom."""

import numpy as np

from clipflow.tuning import batches
from clipflow.tuning.schedule import cosine


def test_batches_hold_every_example_once_and_none_is_tiny() -> None:
    parts = batches.batches(batches.shuffled(101, 0, 0), 25)
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    assert {len(part) for part in parts} == {20, 21}


def test_each_epoch_has_another_order_and_the_same_when_it_is_asked_again() -> None:
    assert batches.shuffled(50, 1, 0).tolist() == batches.shuffled(50, 1, 0).tolist()
    assert batches.shuffled(50, 1, 0).tolist() != batches.shuffled(50, 1, 1).tolist()
    assert batches.shuffled(50, 1, 0).tolist() != batches.shuffled(50, 2, 0).tolist()


def test_the_hardest_wrong_pairs_come_behind_a_pair_unless_they_are_alike() -> None:
    # On a circle: 0 and 1 are close, 2 and 3 are, 4 is 0 once more, 5 has the text of 2.
    angles = np.radians([0, 10, 90, 100, 1, 91])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pictures, texts = np.array([0, 1, 2, 3, 0, 5]), np.array([0, 1, 2, 3, 4, 2])
    order = batches.hard(np.array([0, 2, 1, 3, 4, 5]), vectors, vectors, (pictures, texts), 1)
    assert order.tolist() == [0, 1, 2, 3, 4, 5]
    assert batches.hard(np.array([4, 5, 0, 1, 2, 3]), vectors, vectors, (pictures, texts), 1).tolist()[:4] == [
        4,
        1,
        5,
        3,
    ]


def test_few_of_the_rejected_are_drawn_and_all_where_there_are_few() -> None:
    drawn = batches.drawn_rejected(range(10, 20), 3, 0, 0, 0)
    assert len(set(drawn)) == 3
    assert set(drawn) <= set(range(10, 20))
    assert batches.drawn_rejected([5, 6], 3, 0, 0, 0) == [5, 6]


def test_the_learning_rate_rises_evenly_and_falls_as_a_cosine() -> None:
    factors = [cosine(step, 14, 4) for step in range(15)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == 0.5
    assert factors[14] == 0.0
    assert factors[4:] == sorted(factors[4:], reverse=True)

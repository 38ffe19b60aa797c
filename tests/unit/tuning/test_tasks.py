"""What a task finds, counted by hand."""

import numpy as np

from clipflow.tuning.tasks import Retrieval


def test_pictures_without_a_text_are_looked_through_but_do_not_count_as_found() -> None:
    vectors = np.eye(20, 32, dtype=np.float32)
    task = Retrieval(tuple(f'p{number}' for number in range(20)), ((0, 'zero'), (1, 'one')))  # type: ignore[arg-type]
    crossed = task.measure(vectors, vectors[[1, 0]])
    right = task.measure(vectors, vectors[[0, 1]])
    assert (crossed['text R@1'], crossed['image R@1']) == (0.0, 0.0)
    assert (right['text R@1'], right['image R@1']) == (1.0, 1.0)


def test_equal_pictures_are_one_with_the_captions_of_all() -> None:
    captions = ((0, 'x'), (1, 'y'), (2, 'x'), (2, 'z'))
    task = Retrieval(tuple('abc'), captions).merged(['one', 'two', 'one'])  # type: ignore[arg-type]
    assert task == Retrieval(tuple('ab'), ((0, 'x'), (1, 'y'), (0, 'z')))  # type: ignore[arg-type]


def test_a_text_that_belongs_to_two_pictures_is_one_question() -> None:
    task = Retrieval(tuple('abcd'), ((0, 'cat'), (1, 'cat'), (2, 'dog'), (3, 'dog')))  # type: ignore[arg-type]
    images = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]], np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    assert task.texts == ('cat', 'dog')
    assert set(task.measure(images, np.eye(2, dtype=np.float32)).values()) == {1.0}
    # Both ask for the other's pictures, which are the first two of four.
    crossed = task.measure(images, np.eye(2, dtype=np.float32)[::-1].copy())
    assert (crossed['image R@1'], crossed['text R@1'], crossed['image R@5']) == (0.0, 0.0, 1.0)

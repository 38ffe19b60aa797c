"""The session without weights: the same input gives the same vector, whatever stands beside it."""

import numpy as np

from clipflow.sessions.fake import FakeSession

RNG = np.random.default_rng(0)


def test_the_same_input_gives_the_same_unit_vector_in_every_session() -> None:
    pixels = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ids, mask = RNG.integers(1, 99, (3, 7), dtype=np.int32), np.ones((3, 7), np.int32)
    for one, two in (
        (FakeSession().encode_images(pixels), FakeSession().encode_images(pixels[:1])),
        (FakeSession().encode_texts(ids, mask), FakeSession().encode_texts(ids[:1], mask[:1])),
    ):
        assert one.dtype == np.float32
        assert one.shape == (3, FakeSession.dimension)
        assert (one[0] == two[0]).all()
        assert np.abs(np.linalg.norm(one, axis=1) - 1).max() < 1e-6


def test_padding_behind_the_mask_changes_nothing_and_another_text_does() -> None:
    short = FakeSession().encode_texts(np.array([[5, 6]], np.int32), np.array([[1, 1]], np.int32))
    padded = FakeSession().encode_texts(np.array([[5, 6, 9]], np.int32), np.array([[1, 1, 0]], np.int32))
    other = FakeSession().encode_texts(np.array([[5, 7]], np.int32), np.array([[1, 1]], np.int32))
    assert (short == padded).all()
    assert float(short[0] @ other[0]) < 0.9


def test_pictures_that_look_alike_lie_close() -> None:
    base = RNG.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    near = np.clip(base.astype(int) + RNG.integers(-3, 4, base.shape), 0, 255).astype(np.uint8)
    far = np.zeros_like(base)
    vectors = FakeSession().encode_images(np.concatenate([base, near, far]))
    assert vectors[0] @ vectors[1] > 0.99 > vectors[0] @ vectors[2]

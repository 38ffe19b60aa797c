"""The cache of text embeddings, and that the embedder uses it without a trace in the results."""

import sys

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.batching import Embedder, Job
from clipflow.cache import Encoded, TextCache
from clipflow.sessions.fake import FakeSession
from clipflow.weights import ModelSpec
from clipflow.wire import TRUNCATED


class Counting(FakeSession):
    """Counts the texts that reach the model."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = 0

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        self.texts += len(ids)
        return super().encode_texts(ids, mask)


def one(number: int) -> Encoded:
    return Encoded(np.array([number], dtype=np.float32), False)


def test_the_texts_that_were_not_used_for_longest_are_forgotten() -> None:
    cache = TextCache(2)
    cache.put({'a': one(1), 'b': one(2)})
    assert set(cache.get(['a'])) == {'a'}
    cache.put({'c': one(3)})
    assert set(cache.get(['a', 'b', 'c'])) == {'a', 'c'}
    assert (len(cache), cache.hits, cache.misses) == (2, 3, 1)


def test_a_cache_of_size_0_keeps_nothing() -> None:
    cache = TextCache(0)
    cache.put({'a': one(1)})
    assert (len(cache), cache.get(['a'])) == (0, {})


def held(cache: TextCache) -> int:
    """Bytes of what the cache refers to, arrays behind views and all."""
    seen: dict[int, int] = {}
    open_ends: list[object] = [cache._texts]
    while open_ends:
        one = open_ends.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = sys.getsizeof(one)
        if isinstance(one, dict):
            open_ends += [*one.keys(), *one.values()]
        elif isinstance(one, tuple):
            open_ends += one
        elif isinstance(one, np.ndarray) and one.base is not None:
            open_ends.append(one.base)
    return sum(seen.values())


def test_the_bytes_of_the_cache_do_not_depend_on_the_length_of_the_texts_nor_on_the_size_of_the_calls(
    mini: ModelSpec,
) -> None:
    session, cache = FakeSession(), TextCache(10)
    embedder = Embedder(mini, session, 8, cache)
    embedder.text_vectors([f'{n} ' + 'cat ' * 5_000 for n in range(20)])
    embedder.text_vectors([f'dog {n}' for n in range(500)] + ['x'])
    embedder.text_vectors([f'{n} ' + 'cat ' * 5_000 for n in range(7)])
    assert len(cache) == 10
    assert held(cache) < 10 * (session.dimension * 4 + 500)


def test_texts_that_differ_only_far_behind_are_two() -> None:
    cache = TextCache(10)
    cache.put({'a' * 100_000 + 'b': one(1), 'a' * 100_000 + 'c': one(2)})
    found = cache.get(['a' * 100_000 + 'c', 'a' * 100_000 + 'b', '\ud800'])
    assert [float(encoded.vector[0]) for encoded in found.values()] == [2, 1]


class OnceBroken(FakeSession):
    """Its first answer is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        self.calls += 1
        return super().encode_texts(ids, mask) * np.float32(np.nan if self.calls == 1 else 1)


def test_a_vector_that_is_not_finite_is_not_kept(mini: ModelSpec) -> None:
    embedder = Embedder(mini, OnceBroken(), 8, TextCache(100))
    docs = [Document(text='a dog') for _ in range(2)]
    for doc in docs:
        embedder.embed([doc])
    assert [wire.failed(doc) for doc in docs] == [True, False]


def test_a_text_passes_the_model_once_and_its_vector_stays_the_same(mini: ModelSpec) -> None:
    session = Counting()
    embedder = Embedder(mini, session, 8, TextCache(100))
    first = [Document(text='cat'), Document(text='dog'), Document(text='cat')]
    embedder.embed(first)
    assert session.texts == 2
    second = [Document(text='dog'), Document(text='cat')]
    embedder.embed(second)
    assert session.texts == 2
    assert np.array_equal(second[0].embedding, first[1].embedding)
    assert np.array_equal(second[1].embedding, first[0].embedding)


def test_a_cut_text_is_flagged_when_it_comes_from_the_cache_too(mini: ModelSpec) -> None:
    embedder = Embedder(mini, FakeSession(), 8, TextCache(100))
    docs = [Document(text='dog ' * 100) for _ in range(2)]
    for doc in docs:
        embedder.embed([doc])
    assert [doc.tags.get(TRUNCATED) for doc in docs] == [True, True]


def test_requests_with_different_templates_are_encoded_together_and_keep_their_own(mini: ModelSpec) -> None:
    embedder = Embedder(mini, FakeSession(), 8)
    jobs = [
        Job([Document(text='cat')], ('a photo of {}', '{}')),
        Job([Document(text='cat')]),
        Job([Document(text='x')]),
    ]
    embedder.embed_together(jobs)
    for job in jobs:
        alone = Document(text=job.docs[0].text)
        embedder.embed([alone], job.templates)
        assert np.array_equal(alone.embedding, job.docs[0].embedding)

"""The cache of text embeddings, and that the embedder uses it without a trace in the results."""

import numpy as np
from docarray import Document
from numpy.typing import NDArray

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

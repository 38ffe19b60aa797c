"""Documents to embeddings: in order, in minibatches, one bad one alone; with the session that needs no weights."""

from typing import Any

import numpy as np
import pytest
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.batching import Embedder
from clipflow.classify import classify, softmax
from clipflow.errors import Internal, InvalidParameter, Unavailable
from clipflow.sessions.base import OutOfMemory
from clipflow.sessions.fake import FakeSession
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec

WORDS = [
    'cat',
    'a much longer text about a dog',
    'the sea',
    'x',
    'two cats and one dog on a green meadow',
    'red',
    'cat',
]


@pytest.fixture
def embedder(mini: ModelSpec) -> Embedder:
    return Embedder(mini, FakeSession(), batch_size=3)


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def picture(spec: ModelSpec, seed: int, **fields: Any) -> Document:
    """As the preprocessor hands it on."""
    return Document(tensor=pixels(seed), tags={wire.MODEL: spec.fingerprint}, **fields)


def text_vector(spec: ModelSpec, text: str) -> NDArray[np.float64]:
    """One text through the session, past the code that is tested."""
    tokens = Tokenizer(spec)([text])
    return FakeSession().encode_texts(tokens.ids, tokens.mask)[0].astype(np.float64)


def picture_vector(seed: int) -> NDArray[np.float64]:
    return FakeSession().encode_images(pixels(seed)[None])[0].astype(np.float64)


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


def test_every_document_gets_its_own_vector_whatever_the_order_and_the_minibatches(
    embedder: Embedder, mini: ModelSpec
) -> None:
    docs = [Document(id=f't{n}', text=word) for n, word in enumerate(WORDS)]
    docs[2:2] = [picture(mini, 7, id='p7')]
    docs += [picture(mini, seed, id=f'p{seed}') for seed in range(5)]
    order = [doc.id for doc in docs]
    embedder.embed(docs)
    assert [doc.id for doc in docs] == order
    for doc in docs:
        expected = text_vector(mini, doc.text) if doc.text else picture_vector(int(doc.id[1:]))
        assert np.abs(doc.embedding - expected).max() < 1e-6
        assert doc.embedding.dtype == np.float32
        assert doc.tags == {wire.MODEL: mini.fingerprint}
        assert doc.tensor is None


def test_a_bad_document_fails_alone(embedder: Embedder, mini: ModelSpec) -> None:
    earlier = Document(id='earlier', tags={wire.ERROR: {'code': 'too-large', 'message': 'm', 'stage': 'preprocessor'}})
    docs = [
        Document(id='good', text='cat'),
        Document(id='unprepared', blob=b'\xff\xd8'),
        Document(id='foreign', tensor=pixels(1), tags={wire.MODEL: 'another'}),
        Document(id='raw', tensor=pixels(1)),
        earlier,
        Document(id='empty'),
        picture(mini, 3, id='also good'),
    ]
    embedder.embed(docs)
    codes = {doc.id: doc.tags.get(wire.ERROR, {}).get('code') for doc in docs}
    assert codes == {
        'good': None,
        'unprepared': 'invalid-document',
        'foreign': 'not-ready',
        'raw': 'model-mismatch',
        'earlier': 'too-large',
        'empty': None,
        'also good': None,
    }
    assert [doc.id for doc in docs if doc.embedding is not None] == ['good', 'also good']
    assert docs[1].tags[wire.ERROR]['stage'] == 'encoder'
    assert earlier.tags[wire.ERROR]['stage'] == 'preprocessor'


@pytest.mark.parametrize(
    ('embedding', 'code'),
    [
        (np.zeros(FakeSession.dimension), 'invalid-document'),
        (np.full(FakeSession.dimension, np.nan), 'invalid-document'),
        (np.full(FakeSession.dimension, np.inf), 'invalid-document'),
        (np.ones(FakeSession.dimension + 1), 'dimension-mismatch'),
        (np.ones((1, FakeSession.dimension)), 'invalid-document'),
        (np.float64(1), 'invalid-document'),
        (['a'] * FakeSession.dimension, 'invalid-document'),
    ],
    ids=str,
)
def test_a_ready_embedding_has_to_be_a_direction_of_the_right_size(
    embedder: Embedder, embedding: Any, code: str
) -> None:
    docs = [Document(id='x', embedding=embedding), Document(text='cat')]
    embedder.embed(docs)
    assert docs[0].tags[wire.ERROR]['code'] == code
    assert docs[0].embedding is None
    assert docs[1].embedding is not None


@pytest.mark.parametrize('length', [1e-30, 1e-3, 1.0, 5.0, 1e30])
def test_a_ready_embedding_is_brought_to_unit_length_and_not_encoded(embedder: Embedder, length: float) -> None:
    direction = unit(np.random.default_rng(3).normal(size=FakeSession.dimension))
    doc = Document(text='cat', embedding=(direction * length).tolist())
    embedder.embed([doc])
    assert np.abs(doc.embedding - direction).max() < 1e-6
    assert doc.embedding.dtype == np.float32
    assert doc.text == 'cat'


def test_a_query_of_which_a_part_was_cut_says_so_itself(embedder: Embedder) -> None:
    docs = [Document(chunks=[Document(text=text), Document(text='dog')]) for text in ('cat ' * 500, 'cat')]
    embedder.embed(docs)
    assert [doc.tags.get(wire.TRUNCATED) for doc in docs] == [True, None]


@pytest.mark.parametrize('weights', [(1e-7,), (1e-30,), (3e-9, -1e-9), (1e30, 1e29)])
def test_only_the_proportion_of_the_weights_counts(embedder: Embedder, weights: tuple[float, ...]) -> None:
    texts = ('cat', 'dog')
    doc, scaled = (
        Document(
            chunks=[Document(text=text, weight=weight / unit) for text, weight in zip(texts, weights, strict=False)]
        )
        for unit in (1.0, abs(weights[0]))
    )
    embedder.embed([doc, scaled])
    assert not wire.failed(doc)
    assert np.allclose(doc.embedding, scaled.embedding, atol=1e-6)


def test_a_compound_query_is_the_weighted_sum_of_its_parts(embedder: Embedder, mini: ModelSpec) -> None:
    ready = unit(np.random.default_rng(5).normal(size=FakeSession.dimension))
    doc = Document(
        chunks=[
            Document(text='cat', weight=2.0),
            picture(mini, 4, weight=-0.5),
            Document(text='red'),  # no weight given: 1
            Document(embedding=ready * 10, weight=0.25),
        ]
    )
    embedder.embed([doc, Document(text='cat')])
    expected = 2 * text_vector(mini, 'cat') - 0.5 * picture_vector(4) + text_vector(mini, 'red') + 0.25 * ready
    assert np.abs(doc.embedding - unit(expected)).max() < 1e-6
    assert doc.tags[wire.MODEL] == mini.fingerprint
    assert all(part.embedding is None and part.tensor is None for part in doc.chunks)


def test_parts_that_cancel_each_other_out_are_an_error_of_that_query(embedder: Embedder) -> None:
    docs = [
        Document(id='none', chunks=[Document(text='cat', weight=1.0), Document(text='cat', weight=-1.0)]),
        Document(id='some', chunks=[Document(text='cat', weight=1.0), Document(text='dog', weight=-1.0)]),
    ]
    embedder.embed(docs)
    assert docs[0].tags[wire.ERROR]['code'] == 'invalid-document'
    assert docs[1].embedding is not None


def test_a_bad_part_fails_its_query_alone(embedder: Embedder) -> None:
    docs = [Document(id='bad', chunks=[Document(text='cat'), Document(tensor=pixels(1))]), Document(text='dog')]
    embedder.embed(docs)
    assert docs[0].tags[wire.ERROR]['code'] == 'model-mismatch'
    assert docs[1].embedding is not None


def test_what_is_attached_for_later_stages_is_no_part_of_a_query(embedder: Embedder, mini: ModelSpec) -> None:
    doc = picture(mini, 4)
    wire.attach(doc, wire.THUMBNAIL, blob=b'webp')
    embedder.embed([doc])
    assert np.abs(doc.embedding - picture_vector(4)).max() < 1e-6
    assert wire.detach(doc, wire.THUMBNAIL) is not None


def test_templates_are_averaged_and_leave_pictures_alone(embedder: Embedder, mini: ModelSpec) -> None:
    templates = ('a photo of {}', '{} in a drawing', 'the {}')
    docs = [Document(text=word) for word in ('cat', 'dog')] + [picture(mini, 4)]
    embedder.embed(docs, templates)
    for doc, word in zip(docs[:2], ('cat', 'dog'), strict=True):
        total = sum(text_vector(mini, form.replace('{}', word)) for form in templates)
        assert np.abs(doc.embedding - unit(np.asarray(total))).max() < 1e-6
        assert doc.text == word
    assert np.abs(docs[2].embedding - picture_vector(4)).max() < 1e-6


@pytest.mark.parametrize('text', ['{}', '{0}', '%s', 'a {} b'])
def test_a_text_with_braces_is_put_in_as_it_is(embedder: Embedder, mini: ModelSpec, text: str) -> None:
    doc = Document(text=text)
    embedder.embed([doc], ('photo of {}',))
    assert np.abs(doc.embedding - text_vector(mini, f'photo of {text}')).max() < 1e-6


def test_a_text_that_was_cut_is_flagged(embedder: Embedder) -> None:
    docs = [Document(text='cat'), Document(text='cat ' * 500)]
    embedder.embed(docs)
    assert wire.TRUNCATED not in docs[0].tags
    assert docs[1].tags[wire.TRUNCATED] is True


def test_a_text_that_only_a_template_makes_too_long_is_flagged_too(embedder: Embedder) -> None:
    doc = Document(text='cat')
    embedder.embed([doc], ('{}', '{} ' + 'dog ' * 100))
    assert doc.tags[wire.TRUNCATED] is True


@pytest.mark.parametrize('original', [{'blob': b'\xff\xd8 jpeg'}, {'tensor': np.full((5, 6, 3), 9, np.uint8)}])
def test_an_original_that_was_kept_comes_back_in_its_place(
    embedder: Embedder, mini: ModelSpec, original: dict[str, Any]
) -> None:
    doc = picture(mini, 4, uri='a.jpg')
    wire.attach(doc, wire.ORIGINAL, **original)
    embedder.embed([doc])
    assert np.array_equal(doc.content, next(iter(original.values())))
    assert doc.uri == 'a.jpg'
    assert len(doc.chunks) == 0
    assert np.abs(doc.embedding - picture_vector(4)).max() < 1e-6


def test_nothing_to_encode_is_no_work(embedder: Embedder) -> None:
    embedder.embed([])
    doc = Document(id='x', tags={'a': 1})
    embedder.embed([doc])
    assert (doc.embedding, doc.tags) == (None, {'a': 1})


def test_odd_texts_are_texts(embedder: Embedder) -> None:
    docs = [Document(text=text) for text in (' ', '🙂', '一只猫', '\u200b', '[SEP]', 'a\0b', 'x' * 5000)]
    embedder.embed(docs)
    assert all(np.abs(np.linalg.norm(doc.embedding) - 1) < 1e-5 for doc in docs)


def classified(embedder: Embedder, docs: list[Document], labels: list[str], templates: list[str]) -> None:
    """As the encoder does."""
    classes = [Document(text=label) for label in labels]
    embedder.embed(docs)
    embedder.embed(classes, templates)
    classify(docs, classes, embedder.spec.scale)


def expected_shares(
    spec: ModelSpec, vector: NDArray[np.float64], labels: list[str], templates: list[str]
) -> list[float]:
    """Radford et al. 2021, section 3.1, written out."""
    classes = [
        unit(sum((text_vector(spec, t.replace('{}', label)) for t in templates), np.zeros(32))) for label in labels
    ]
    weights = np.exp([spec.scale * float(vector @ one) for one in classes])
    return [float(weight) for weight in weights / weights.sum()]


def test_a_classification_is_the_softmax_of_temperature_times_cosine(embedder: Embedder, mini: ModelSpec) -> None:
    labels, templates = ['cat', 'dog', 'ship'], ['a photo of {}', 'the {}']
    docs = [Document(text='dog'), picture(mini, 4), Document(embedding=text_vector(mini, 'the ship'))]
    vectors = [text_vector(mini, 'dog'), picture_vector(4), text_vector(mini, 'the ship')]
    classified(embedder, docs, labels, templates)
    for doc, vector in zip(docs, vectors, strict=True):
        shares = expected_shares(mini, vector, labels, templates)
        assert list(doc.tags['probabilities']) == labels
        assert list(doc.tags['probabilities'].values()) == pytest.approx(shares, abs=1e-5)
        assert doc.tags['label'] == labels[int(np.argmax(shares))]
        assert doc.embedding is None
    assert docs[2].tags['label'] == 'ship'


def test_a_classification_says_that_a_label_was_cut(embedder: Embedder) -> None:
    for labels, cut in ((['cat', 'dog ' * 200], True), (['cat', 'dog'], None)):
        docs, classes = [Document(text='a cat'), Document(id='empty')], [Document(text=label) for label in labels]
        embedder.embed([*docs, *classes])
        classify(docs, classes, 1.0)
        assert [doc.tags.get(wire.TRUNCATED) for doc in docs] == [cut, None]


def test_a_classification_leaves_out_what_failed(embedder: Embedder) -> None:
    docs = [Document(id='bad', blob=b'x'), Document(text='cat'), Document(id='empty')]
    classified(embedder, docs, ['cat', 'dog'], ['{}'])
    assert docs[0].tags[wire.ERROR]['code'] == 'invalid-document'
    assert 'label' not in docs[0].tags
    assert docs[1].tags['label'] == 'cat'
    assert docs[2].tags == {}
    classified(embedder, [Document(id='bad', blob=b'x')], ['cat', 'dog'], ['{}'])


def test_a_label_that_cannot_be_encoded_is_an_error_of_the_request(embedder: Embedder) -> None:
    with pytest.raises(InvalidParameter, match='labels'):
        classified(embedder, [Document(text='cat')], ['cat', ''], ['{}'])
    failed = Document(text='dog')
    wire.fail(failed, Internal('the model gave a vector that is not finite'), 'encoder')
    with pytest.raises(Internal, match='not finite'):
        classify([Document(text='cat')], [Document(text='cat', embedding=np.ones(32)), failed], 1.0)


def test_a_softmax_of_large_numbers_is_finite_and_sums_to_one() -> None:
    shares = softmax(np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]]))
    assert shares.sum(axis=1) == pytest.approx([1, 1])
    assert shares[0, 0] / shares[0, 1] == pytest.approx(np.e)
    assert shares[1].tolist() == pytest.approx([1 / 3] * 3)


class Small(FakeSession):
    """A device that has no room for more than `room` items at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def _fits(self, count: int) -> None:
        self.sizes.append(count)
        if count > self.room:
            raise OutOfMemory(f'no room for {count}')

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._fits(len(pixels))
        return super().encode_images(pixels)

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        self._fits(len(ids))
        return super().encode_texts(ids, mask)


def test_a_device_without_memory_gets_half_as_much_and_nothing_is_lost(mini: ModelSpec) -> None:
    session = Small(room=3)
    embedder = Embedder(mini, session, batch_size=8)
    docs = [Document(text=word) for word in WORDS] + [picture(mini, seed, id=f'p{seed}') for seed in range(5)]
    embedder.embed(docs)
    for doc in docs:
        expected = text_vector(mini, doc.text) if doc.text else picture_vector(int(doc.id[1:]))
        assert np.abs(doc.embedding - expected).max() < 1e-6
    assert embedder.batch_size == 3  # six different words, then a half of six
    assert session.sizes == [6, 3, 3, 3, 2]


def test_a_device_without_memory_for_one_item_is_an_error(mini: ModelSpec) -> None:
    embedder = Embedder(mini, Small(room=0), batch_size=8)
    with pytest.raises(Unavailable, match='no memory for a single item'):
        embedder.embed([Document(text='cat'), Document(text='dog')])


def test_only_a_tower_that_nobody_has_asked_for_is_freed(mini: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr('clipflow.batching.time.monotonic', lambda: now)
    freed: list[str] = []
    session = FakeSession()
    monkeypatch.setattr(session, 'release', freed.append)
    embedder = Embedder(mini, session, batch_size=8)
    now = 105.0
    embedder.embed([Document(text='cat')])
    now = 112.0
    embedder.release_idle(10)
    assert (freed, embedder.loaded) == (['image'], ['text'])
    embedder.release_idle(10)
    assert freed == ['image'], 'it was freed before'
    embedder.embed([picture(mini, 1)])
    assert embedder.loaded == ['image', 'text']


def test_a_tower_that_came_back_for_a_call_that_failed_is_freed_again(
    mini: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []
    session = FakeSession()
    monkeypatch.setattr(session, 'release', freed.append)
    embedder = Embedder(mini, session, batch_size=8)
    embedder.release_idle(0)
    freed.clear()

    def fails(*_: Any) -> Any:
        raise RuntimeError('the device is gone')

    monkeypatch.setattr(session, 'encode_texts', fails)
    with pytest.raises(RuntimeError):
        embedder.embed([Document(text='cat')])
    assert embedder.loaded == ['text']
    embedder.release_idle(0)
    assert freed == ['text']

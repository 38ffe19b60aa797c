"""The room `encoder`: what it counts as working, and how large a call it makes of a request."""

import asyncio
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from clipflow import ROOT, wire
from clipflow.batching import Embedder
from clipflow.cache import TextCache
from clipflow.gathering import Gathering
from clipflow.sessions.fake import FakeSession
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec
from clipflow.wire import EncodeParameters
from clipflow.work import WorkQueue


class Session(FakeSession):
    """Breaks as it is told to, and remembers how many items each call had."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.calls: list[int] = []

    def _ask(self, tower: str, count: int) -> None:
        self.calls.append(count)
        if tower in self.broken:
            raise RuntimeError(f'the {tower} tower is broken')

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._ask('image', len(pixels))
        return super().encode_images(pixels)

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        self._ask('text', len(ids))
        return super().encode_texts(ids, mask)


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def encoder(mini: ModelSpec, session: Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The room without Jina around it, with four items in a call."""
    monkeypatch.syspath_prepend(Path(ROOT) / 'executors' / 'encoder')
    from clip_encoder import ClipEncoder

    room = ClipEncoder.__new__(ClipEncoder)
    room.settings, room.spec, room.log = EncoderSettings.load(batch_size=4), mini, logging.getLogger('clipflow.test')
    room.work = WorkQueue('encoder', 1, 100)
    room._embedder = Embedder(mini, session, 4, TextCache(100))
    room._gathering = Gathering(room.work, room._embed_together, 4)
    return room


def picture(spec: ModelSpec) -> Document:
    shape = (spec.picture.height, spec.picture.width, 3)
    return Document(tensor=np.full(shape, 9, np.uint8), tags={wire.MODEL: spec.fingerprint})


def embed(encoder: Any, *docs: Document, templates: tuple[str, ...] = ()) -> None:
    asyncio.run(encoder._embed(list(docs), EncodeParameters.parse({}), templates))


def classify(encoder: Any, *docs: Document, **parameters: Any) -> None:
    asyncio.run(encoder.classify(docs=DocumentArray(docs), parameters=parameters))


def works(encoder: Any) -> bool:
    return bool(asyncio.run(encoder.works()))


@pytest.mark.parametrize('tower', ['image', 'text'])
def test_it_does_not_count_as_working_until_the_tower_that_failed_answers(
    encoder: Any, session: Session, tower: str
) -> None:
    assert works(encoder)
    assert session.calls == [], 'the model is asked only after a failure'
    embed(encoder, Document(text='known'))
    session.broken = {tower}
    with pytest.raises(RuntimeError, match=tower):
        embed(encoder, picture(encoder.spec) if tower == 'image' else Document(text='new'))
    assert not works(encoder)
    # Neither of these asks the model.
    embed(encoder, Document(text='known'))
    embed(encoder, Document(tensor=np.zeros((3, 3, 3), np.uint8)))
    assert not works(encoder)
    session.broken = set()
    assert works(encoder)
    asked = len(session.calls)
    assert works(encoder)
    assert len(session.calls) == asked


def test_a_gpu_that_is_lost_to_the_process_ends_it(
    encoder: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, codes = '', list[int]()

    def synchronize() -> None:
        if said:
            raise RuntimeError(said)

    monkeypatch.setattr(Session, 'description', {**session.description, 'device': 'cuda'})
    monkeypatch.setattr('torch.cuda.synchronize', synchronize)
    monkeypatch.setattr('os._exit', codes.append)
    session.broken = {'text'}
    with pytest.raises(RuntimeError, match='text tower is broken'):
        embed(encoder, Document(text='new'))
    assert not works(encoder)
    assert codes == [], 'CUDA goes on after this error'
    said = 'CUDA error: an illegal memory access was encountered'
    assert not works(encoder)
    assert codes == [1]
    with pytest.raises(RuntimeError, match='text tower is broken'):
        embed(encoder, Document(text='other'))
    assert codes == [1, 1]


def test_a_classification_that_fails_counts_too(encoder: Any, session: Session) -> None:
    session.broken = {'text'}
    with pytest.raises(Exception, match='the encoder failed'):
        classify(encoder, picture(encoder.spec), labels=['cat', 'dog'])
    assert not works(encoder)


def test_a_classification_takes_its_turn_after_each_minibatch(encoder: Any, session: Session) -> None:
    docs = [picture(encoder.spec) for _ in range(10)]
    labels, forms = ['cat', 'dog', 'ship'], ['{}', 'a {}']
    classify(encoder, *docs, labels=labels, templates=forms)
    assert all(list(doc.tags['probabilities']) == labels and doc.embedding is None for doc in docs)
    assert session.calls == [4, 4, 2, 4, 2]
    assert (encoder._gathering.calls, encoder._gathering.items) == (5, 16)


def test_a_request_is_cut_by_texts_and_not_by_documents(encoder: Any, session: Session) -> None:
    mix = Document(chunks=[Document(text=f'part {number}') for number in range(3)])
    embed(encoder, mix, Document(text='a'), Document(text='b'), templates=('{}', 'the {}'))
    # Six, which are more than four, then twice two.
    assert (encoder._gathering.calls, encoder._gathering.items) == (3, 10)
    assert session.calls == [4, 2, 4]


def mixture(spec: ModelSpec) -> list[Document]:
    """Queries that have many items each: with parts of all kinds, with a text that is cut, and without parts."""
    ready = np.zeros(FakeSession.dimension, np.float32)
    ready[3] = 5.0
    mix = Document(
        id='mix',
        chunks=[
            Document(text='cat', weight=2.0),
            picture(spec),
            Document(text='dog ' * 100, weight=-0.5),
            Document(embedding=ready),
            Document(text='ship', weight=0.25),
        ],
    )
    return [Document(id='lone', text='dog'), mix, Document(id='few', chunks=[picture(spec) for _ in range(6)])]


def test_one_large_query_takes_its_turn_after_each_minibatch_too(encoder: Any, session: Session) -> None:
    forms = tuple(f'{number} {{}}' for number in range(9))
    docs, expected = mixture(encoder.spec), mixture(encoder.spec)
    Embedder(encoder.spec, FakeSession(), 4).embed(expected, forms)
    embed(encoder, *docs, templates=forms)
    assert max(size for size, _ in encoder._gathering.sizes) == 4
    assert encoder._gathering.items == 9 + (3 * 9 + 1) + 6
    for doc, same in zip(docs, expected, strict=True):
        assert np.abs(doc.embedding - same.embedding).max() < 1e-6
        assert doc.tags == same.tags
        assert (doc.text, doc.tensor) == (same.text, None)
        assert all(part.embedding is None and part.tensor is None for part in doc.chunks)
    assert docs[1].tags[wire.TRUNCATED]


@pytest.mark.parametrize(
    ('bad', 'code'),
    [
        (lambda spec: Document(blob=b'x'), 'invalid-document'),
        (lambda spec: Document(tensor=np.zeros((3, 3, 3), np.uint8)), 'model-mismatch'),
        (lambda spec: Document(text='x', weight=float('nan')), 'invalid-document'),
        (lambda spec: Document(embedding=np.zeros(FakeSession.dimension)), 'invalid-document'),
        (lambda spec: Document(text='nan'), 'internal'),
    ],
)
def test_a_bad_part_of_a_large_query_fails_that_query_alone(
    encoder: Any, session: Session, monkeypatch: pytest.MonkeyPatch, bad: Any, code: str
) -> None:
    through = Embedder._through_model

    def broken(self: Embedder, texts: Any) -> Any:
        found = through(self, texts)
        for text in texts:
            if 'nan' in text:
                found[text].vector[:] = np.nan
        return found

    monkeypatch.setattr(Embedder, '_through_model', broken)
    query = Document(id='query', chunks=[Document(text='cat'), bad(encoder.spec), *(picture(encoder.spec),) * 4])
    other = Document(id='other', text='dog')
    embed(encoder, query, other, templates=('{}', 'a {}'))
    error = wire.error_of(query)
    assert error is not None
    assert error.code == code
    assert error.message.startswith("'query': ")
    assert query.embedding is None
    assert other.embedding is not None


def test_a_tower_that_cannot_be_freed_is_tried_again(
    encoder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried, over = [], threading.Event()

    def release(seconds: float) -> None:
        tried.append(seconds)
        if len(tried) == 3:
            over.set()
        raise RuntimeError('CUDA error')

    monkeypatch.setattr(encoder._embedder, 'release_idle', release)
    monkeypatch.setattr(logging.getLogger('clipflow'), 'propagate', True)
    encoder.settings = EncoderSettings.load(tower_ttl=0.01)
    encoder._closing = threading.Event()
    thread = threading.Thread(target=encoder._release_idle, daemon=True)
    thread.start()
    assert over.wait(60), 'the thread has ended'
    encoder._closing.set()
    thread.join(60)
    assert not thread.is_alive()
    assert 'cannot be freed' in caplog.text


_LOADING = """
import signal, sys, threading
sys.path[:0] = {path!r}
from clip_encoder import ClipEncoder
from clipflow.settings import EncoderSettings
import logging
room = ClipEncoder.__new__(ClipEncoder)
room.settings, room.log, room.runtime_args = EncoderSettings.load(), logging.getLogger('test'), None
signal.signal(signal.SIGTERM, lambda *_: None)  # as a loop that does not run yet

def load():
    print('loading', flush=True)
    threading.Event().wait(600)

room._load = load
room.open()
"""


def test_who_is_told_to_end_while_the_model_loads_ends_at_once() -> None:
    script = _LOADING.format(path=[str(ROOT / 'executors' / 'encoder'), str(ROOT)])
    with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'loading\n'
        process.terminate()
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_query_has_a_bounded_number_of_parts(encoder: Any, session: Session) -> None:
    def mix(parts: int) -> Document:
        return Document(chunks=[Document(text=f'part {number}') for number in range(parts)])

    most, more = mix(32), mix(33)
    embed(encoder, most, more)
    assert most.embedding is not None
    error = wire.error_of(more)
    assert error is not None
    assert (error.code, '33 parts' in error.message, '32' in error.message) == ('too-large', True, True)
    assert more.embedding is None
    assert sum(session.calls) == 32

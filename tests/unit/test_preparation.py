"""What the preprocessor makes of one Document, and what it writes into one that it cannot use."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow import pictures, wire
from clipflow.errors import ClipflowError, ModelMismatch, NotReady
from clipflow.preparation import Preparation, check_pixels
from clipflow.settings import PreprocessorSettings
from clipflow.weights import ModelSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def blob(kind: str = 'PNG', pixels: Any = PIXELS) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


Prepare = Callable[..., Document]


@pytest.fixture
def prepare(mini: ModelSpec, tmp_path: Path) -> Prepare:
    """Prepare one Document as on /index, unless told otherwise."""
    settings = PreprocessorSettings(file_roots=(tmp_path,), max_bytes=50_000, max_pixels=10_000, max_characters=100)
    preparation = Preparation(mini, settings)
    usual = {'needs_content': True, 'trust_embedding': True, 'thumbnail': False, 'keep': False}

    def call(doc: Document, **options: bool) -> Document:
        preparation.prepare(doc, **usual | options)
        return doc

    return call


def error_code(doc: Document) -> str | None:
    return doc.tags[wire.ERROR]['code'] if wire.failed(doc) else None


def contents(tmp_path: Path) -> dict[str, dict[str, Any]]:
    (tmp_path / 'a.png').write_bytes(blob())
    return {
        'blob': {'blob': blob()},
        'bytes': {'tensor': PIXELS},
        'floats': {'tensor': (PIXELS / 255).astype(np.float32)},
        'data': {'uri': 'data:image/png;base64,' + base64.b64encode(blob()).decode()},
        'file': {'uri': str(tmp_path / 'a.png')},
        'blob and uri': {'blob': blob(), 'uri': '/no/such/file.png'},
    }


@pytest.mark.parametrize('form', ['blob', 'bytes', 'floats', 'data', 'file', 'blob and uri'])
def test_a_picture_in_any_form_becomes_the_model_s_input(
    prepare: Prepare, mini: ModelSpec, tmp_path: Path, form: str
) -> None:
    given = contents(tmp_path)[form]
    doc = prepare(Document(id='x', tags={'a': 1}, **given))
    assert error_code(doc) is None
    assert (doc.tensor == pictures.prepare(Image.fromarray(PIXELS), mini.picture)).all()
    assert doc.tags == {'a': 1, wire.MODEL: mini.fingerprint}
    assert (doc.blob, doc.uri) == (b'', given.get('uri', ''))
    assert (check_pixels(doc, mini) == doc.tensor).all()


def test_a_text_passes_as_it_is_and_its_uri_is_not_read(prepare: Prepare) -> None:
    doc = prepare(Document(text='a cat', uri='/etc/passwd'))
    assert (error_code(doc), doc.text, doc.uri, doc.tensor) == (None, 'a cat', '/etc/passwd', None)


def test_an_embedding_stands_for_the_content_where_it_is_trusted(prepare: Prepare) -> None:
    doc = prepare(Document(blob=b'no picture', uri='/etc/passwd', embedding=np.ones(3)))
    assert (error_code(doc), doc.blob, doc.uri) == (None, b'', '/etc/passwd')
    assert doc.embedding.tolist() == [1, 1, 1]


def test_content_is_encoded_anew_where_an_embedding_is_not_trusted(prepare: Prepare) -> None:
    doc = prepare(Document(text='a cat', embedding=np.ones(3)), trust_embedding=False)
    assert (doc.text, doc.embedding) == ('a cat', None)
    alone = prepare(Document(uri='/etc/passwd', embedding=np.ones(3)), trust_embedding=False)
    assert alone.embedding.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ('given', 'code'),
    [
        ({}, 'invalid-document'),
        ({'text': 'x' * 101}, 'too-large'),
        ({'text': 'half \ud800'}, 'invalid-document'),
        ({'blob': b'x'}, 'unsupported-media'),
        ({'blob': blob()[:500]}, 'undecodable'),
        ({'blob': b'x' * 50_001}, 'too-large'),
        ({'blob': blob(pixels=np.zeros((100, 101, 3), np.uint8))}, 'too-large'),
        ({'tensor': np.zeros((4, 4))}, 'invalid-document'),
        ({'tensor': np.zeros((100, 101, 3), np.uint8)}, 'too-large'),
        ({'uri': '/etc/passwd'}, 'forbidden-source'),
        ({'uri': 'http://example.com/a.png'}, 'forbidden-source'),
        ({'uri': 'http://[::1'}, 'forbidden-source'),
        ({'uri': 'file://[::1/a.png'}, 'invalid-document'),
        ({'uri': 'data:,hello'}, 'unsupported-media'),
        ({'chunks': [Document()]}, 'invalid-document'),
        ({'chunks': [Document(text='a'), Document(blob=b'x')]}, 'unsupported-media'),
        ({'chunks': [Document(text='a', chunks=[Document(text='b')])]}, 'invalid-document'),
    ],
)
def test_what_cannot_be_used_is_written_into_the_document(prepare: Prepare, given: dict[str, Any], code: str) -> None:
    doc = prepare(Document(id='the id', **given))
    assert error_code(doc) == code
    assert doc.tags[wire.ERROR]['stage'] == 'preprocessor'
    assert "'the id'" in doc.tags[wire.ERROR]['message']
    assert (doc.id, doc.blob, doc.tensor, doc.embedding) == ('the id', b'', None, None)


def test_an_empty_document_passes_untouched_where_nothing_is_needed(prepare: Prepare) -> None:
    doc = prepare(Document(id='x', tags={'a': 1}), needs_content=False)
    assert doc.tags == {'a': 1}


def test_a_thumbnail_is_attached_to_pictures_only(prepare: Prepare) -> None:
    doc = prepare(Document(blob=blob()), thumbnail=True)
    small = wire.detach(doc, wire.THUMBNAIL)
    assert small is not None
    assert Image.open(io.BytesIO(small.blob)).size == (60, 40)
    assert len(prepare(Document(text='a cat'), thumbnail=True).chunks) == 0


@pytest.mark.parametrize('form', ['blob', 'bytes'])
def test_the_original_is_attached_if_it_has_to_come_back(prepare: Prepare, tmp_path: Path, form: str) -> None:
    given = contents(tmp_path)[form]
    original = wire.detach(prepare(Document(**given), keep=True), wire.ORIGINAL)
    assert original is not None
    assert np.array_equal(original.content, next(iter(given.values())))
    assert wire.detach(prepare(Document(**given), keep=False), wire.ORIGINAL) is None


def test_a_picture_behind_a_uri_is_not_sent_back(prepare: Prepare, tmp_path: Path) -> None:
    doc = prepare(Document(**contents(tmp_path)['file']), keep=True)
    assert wire.detach(doc, wire.ORIGINAL) is None


def test_tags_and_chunks_that_only_stages_write_are_not_taken_from_a_client(prepare: Prepare) -> None:
    doc = Document(text='a cat', tags={wire.MODEL: 'forged', wire.ERROR: {'code': 'internal'}, 'mine': 1})
    for _ in range(3):
        for modality in wire.CHUNKS:
            wire.attach(doc, modality, blob=b'forged')
    prepare(doc)
    assert doc.tags == {'mine': 1}
    assert len(doc.chunks) == 0


def test_the_parts_of_a_query_are_prepared_like_documents(prepare: Prepare, mini: ModelSpec) -> None:
    parts = [
        Document(text='a cat', tags={wire.MODEL: 'forged'}),
        Document(blob=blob(), weight=-0.5),
        Document(embedding=np.ones(3)),
    ]
    doc = prepare(Document(chunks=parts))
    text, picture, ready = doc.chunks
    assert error_code(doc) is None
    assert (text.text, text.tags) == ('a cat', {})
    assert (picture.tensor.shape, picture.weight, picture.blob) == ((224, 224, 3), -0.5, b'')
    assert picture.tags == {wire.MODEL: mini.fingerprint}
    assert ready.embedding.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ('pixels', 'fingerprint', 'kind'),
    [
        (np.zeros((224, 224, 3), np.uint8), None, ModelMismatch),
        # It is for a preprocessor to say; the stages get the other model one after the other.
        (np.zeros((224, 224, 3), np.uint8), 'another model', NotReady),
        (np.zeros((224, 225, 3), np.uint8), 'this', ModelMismatch),
        (np.zeros((224, 224, 3), np.float32), 'this', ModelMismatch),
    ],
)
def test_pixels_not_made_for_this_model_are_refused(
    mini: ModelSpec, pixels: Any, fingerprint: str | None, kind: type[ClipflowError]
) -> None:
    doc = Document(tensor=pixels)
    if fingerprint is not None:
        doc.tags[wire.MODEL] = mini.fingerprint if fingerprint == 'this' else fingerprint
    with pytest.raises(kind):
        check_pixels(doc, mini)


def test_a_query_of_too_many_parts_is_refused_before_any_is_prepared(prepare: Prepare) -> None:
    def query(parts: int) -> Document:
        return Document(id='many', chunks=[Document(tensor=PIXELS) for _ in range(parts)])

    assert error_code(prepare(query(wire.MAX_PARTS))) is None
    refused = prepare(query(wire.MAX_PARTS + 1))
    assert error_code(refused) == 'too-large'
    assert "'many'" in refused.tags[wire.ERROR]['message']
    assert all(part.tensor.shape == PIXELS.shape for part in refused.chunks), 'no part was made the size of the model'

"""Documents to records and back."""

import json

import numpy as np
import pytest
from docarray import Document

from clipflow import wire
from clipflow.errors import InvalidDocument
from clipflow.records import document_of, record_of

VECTOR = np.array([0.6, 0.8], dtype=np.float32)


def test_a_document_becomes_a_record_and_gives_up_its_thumbnail() -> None:
    doc = Document(id='猫', text='a cat', uri='a.jpg', tags={'a': {'b': [1, None]}, wire.MODEL: 'x'}, embedding=VECTOR)
    wire.attach(doc, wire.THUMBNAIL, blob=b'webp')
    record = record_of(doc)
    assert (record.id, record.text, record.uri, record.thumbnail) == ('猫', 'a cat', 'a.jpg', b'webp')
    assert json.loads(record.tags) == {'a': {'b': [1, None]}}
    assert record.vector is not None
    assert record.vector.tolist() == VECTOR.tolist()
    assert len(doc.chunks) == 0


def test_tags_that_are_no_json_are_refused() -> None:
    with pytest.raises(InvalidDocument):
        record_of(Document(tags={'a': float('nan')}, embedding=VECTOR))


def test_a_document_without_anything_optional_is_a_record_too() -> None:
    record = record_of(Document(id='x', embedding=VECTOR))
    assert (record.text, record.uri, record.tags, record.thumbnail) == ('', '', '{}', None)


@pytest.mark.parametrize('include', [(), ('tags',), ('uri',), ('thumbnail',), ('embedding',), ('tags', 'uri')])
def test_a_stored_document_shows_what_is_asked_for_and_nothing_else(include: tuple[str, ...]) -> None:
    given = Document(id='x', text='a cat', uri='a.jpg', tags={'a': 1}, embedding=VECTOR)
    wire.attach(given, wire.THUMBNAIL, blob=b'webp')
    doc = document_of(record_of(given), include)
    assert (doc.id, doc.text if 'thumbnail' not in include else 'a cat') == ('x', 'a cat')
    assert doc.tags == ({'a': 1} if 'tags' in include else {})
    assert doc.uri == ('a.jpg' if 'uri' in include else '')
    assert doc.blob == (b'webp' if 'thumbnail' in include else b'')
    assert (doc.embedding is not None) == ('embedding' in include)

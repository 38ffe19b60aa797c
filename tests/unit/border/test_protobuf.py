"""Documents as protobuf: ours is what DocArray's own functions make."""

import math
from typing import Any

import numpy as np
import pytest
from docarray import Document
from docarray.proto.docarray_pb2 import DocumentProto
from docarray.proto.io import flush_proto, parse_proto
from docarray.score import NamedScore
from hypothesis import given
from hypothesis import strategies as st

from clipflow.border.protobuf import read, write

PARTS = (
    'id',
    'parent_id',
    'granularity',
    'adjacency',
    'blob',
    'mime_type',
    'text',
    'weight',
    'uri',
    'tags',
    '_metadata',
)
MORE = ('offset', 'location', 'modality')
TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TAGS = st.dictionaries(TEXTS, VALUES, max_size=4)
ARRAYS = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5).map(lambda row: np.array(row, np.float32))
CONTENT: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({'text': TEXTS}),
    st.fixed_dictionaries({'blob': st.binary(max_size=8)}),
    st.fixed_dictionaries({'tensor': ARRAYS}),
)
URIS = st.sampled_from(['', 'file:///a/cat.jpg', 'data:,x', 'http://x/y', 'clip.mp4?x', 'a.unheard'])
KINDS = st.sampled_from(['', 'image/webp', 'png', 'text', 'foo/bar', 'jpg'])


@st.composite
def documents(draw: Any, depth: int = 2) -> Document:
    doc = Document(id=draw(st.text(min_size=1, max_size=8)), **draw(CONTENT), uri=draw(URIS), tags=draw(TAGS))
    if kind := draw(KINDS):
        doc.mime_type = kind
    if draw(st.booleans()):
        doc.embedding = draw(ARRAYS)
    if draw(st.booleans()):
        doc.weight, doc.offset, doc.location, doc.modality = 0.5, 2.0, [1.0, 2.0], draw(TEXTS)
    for name in draw(st.lists(TEXTS, max_size=2)):
        doc.scores[name] = NamedScore(value=draw(st.floats(-1, 1, width=32)), op_name=draw(TEXTS))
    if depth:
        for inner in draw(st.lists(documents(depth=depth - 1), max_size=2)):
            draw(st.sampled_from([doc.chunks, doc.matches])).append(inner)
    return doc


def shown(doc: Document) -> dict[str, Any]:
    """Everything that a Document holds, as plain values."""
    data = doc._data
    found: dict[str, Any] = {name: getattr(data, name) for name in (*PARTS, *MORE)}
    for name in ('tensor', 'embedding'):
        array = getattr(data, name)
        found[name] = None if array is None else (str(array.dtype), array.tolist())
    for name in ('scores', 'evaluations'):
        found[name] = {
            key: (s._data.value, s._data.op_name, s._data.description, s._data.ref_id)
            for key, s in (getattr(data, name) or {}).items()
        }
    for name in ('chunks', 'matches'):
        inner = getattr(data, name)
        found[name] = None if inner is None else (type(inner), [shown(one) for one in inner])
    return found


@given(documents())
def test_what_is_written_is_what_docarray_writes(doc: Document) -> None:
    assert write(doc, DocumentProto()) == flush_proto(doc)


@given(documents())
def test_what_is_read_is_what_docarray_reads(doc: Document) -> None:
    message = DocumentProto.FromString(flush_proto(doc).SerializeToString())
    ours = read(message)
    assert shown(ours) == shown(parse_proto(message))
    for inner in (*ours.chunks, *ours.matches):
        assert inner._data._reference_doc is inner


def test_a_document_without_an_id_gets_one_of_its_own() -> None:
    one, other = (read(DocumentProto(text='x')) for _ in range(2))
    assert one.id
    assert one.id != other.id


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_no_tags(number: float) -> None:
    message = DocumentProto(id='x')
    message.tags.update({'deep': [{'a': 1}]})
    message.tags.fields['deep'].list_value.values[0].struct_value.fields['a'].number_value = number
    with pytest.raises(ValueError, match='not finite'):
        read(message)


def test_what_protobuf_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match='Unexpected type'):
        write(Document(id='x', tags={'when': object()}), DocumentProto())


def test_what_is_read_can_be_changed_as_any_document() -> None:
    doc = read(flush_proto(Document(id='x', text='words', tags={'a': 1})))
    doc.blob = b'bytes'
    assert doc.text == ''
    doc.tags['b'] = 2
    doc.matches.append(Document(id='inner'))
    assert doc.matches[0].adjacency == 1
    assert read(write(doc, DocumentProto())).tags == {'a': 1.0, 'b': 2.0}

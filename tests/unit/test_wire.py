"""Parameters and endpoints as clients send them, and the conventions on Documents."""

import json
import time
from typing import Any

import numpy as np
import pytest
from docarray import Document, DocumentArray
from hypothesis import given
from hypothesis import strategies as st

from clipflow import wire
from clipflow.errors import InvalidDocument, InvalidFilter, InvalidParameter, NotFound, Timeout, TooLarge
from clipflow.tags import drop_private_tags, is_suspect, plain_tags, tags_json, unsendable
from clipflow.wire import (
    ENDPOINTS,
    ClassifyParameters,
    DeleteParameters,
    EncodeParameters,
    FeedbackParameters,
    GetParameters,
    Parameters,
    PurgeParameters,
    RankerParameters,
    SearchParameters,
    parse_endpoint,
)


def test_numbers_that_travelled_as_floats_are_whole_again() -> None:
    parsed = SearchParameters.parse({'limit': 3.0, 'offset': 20.0})
    assert (parsed.limit, parsed.offset) == (3, 20)
    assert isinstance(parsed.limit, int)


def test_a_search_reaches_no_deeper_than_it_can_be_served() -> None:
    assert SearchParameters.parse({'limit': 10_000, 'offset': 10_000}).reach == 20_000
    with pytest.raises(InvalidParameter, match='reach the best 20,000; narrow'):
        SearchParameters.parse({'limit': 10_000, 'offset': 10_001})
    assert GetParameters.parse({'offset': 2_000_000}).offset == 2_000_000, 'larger collections have pages too'


def test_defaults_of_a_search_are_those_of_the_design() -> None:
    parsed = SearchParameters.parse({})
    assert (parsed.limit, parsed.offset, parsed.include) == (10, 0, ('tags', 'uri'))
    assert (parsed.filter, parsed.min_score, parsed.group_by) == (None, None, None)


@pytest.mark.parametrize(
    ('kind', 'name', 'value'),
    [
        (SearchParameters, 'limit', 2.5),
        (SearchParameters, 'limit', 'ten'),
        (SearchParameters, 'limit', 0.0),
        (SearchParameters, 'limit', 10_001.0),
        (SearchParameters, 'limit', float('inf')),
        (SearchParameters, 'limit', float('nan')),
        (SearchParameters, 'limit', None),
        (SearchParameters, 'limit', [10.0]),
        (SearchParameters, 'offset', -1.0),
        (SearchParameters, 'min_score', 1.5),
        (SearchParameters, 'min_score', 'high'),
        (SearchParameters, 'group_by', ''),
        (SearchParameters, 'nprobe', 0.0),
        (SearchParameters, 'nprobe', 1_000_001.0),
        (SearchParameters, 'ef_search', 1_000_001.0),
        (SearchParameters, 'ef_search', 2.0**62),
        (SearchParameters, 'include', ['pixels']),
        (SearchParameters, 'filter', 'color = red'),
        (SearchParameters, 'templates', [1]),
        (SearchParameters, 'templates', ['{}'] * 1001),
        (SearchParameters, 'diversity', 1.5),
        (SearchParameters, 'diversity', -0.1),
        (SearchParameters, 'templates', ['a photo']),
        (SearchParameters, 'templates', ['{} and {}']),
        (SearchParameters, 'access_paths', 'r'),
        (SearchParameters, 'access_paths', '@r; import os'),
        (SearchParameters, 'access_paths', '@'),
        (GetParameters, 'ids', 'one'),
        (GetParameters, 'ids', [1.0]),
        (DeleteParameters, 'ids', {'a': 1}),
        (EncodeParameters, 'drop_image_content', 'perhaps'),
        (ClassifyParameters, 'templates', []),
        (ClassifyParameters, 'labels', ['cat']),
        (ClassifyParameters, 'labels', ['cat', 'cat']),
        (ClassifyParameters, 'labels', []),
    ],
)
def test_a_bad_value_is_named(kind: type[Parameters], name: str, value: Any) -> None:
    given = {'labels': ['a', 'b'], name: value} if kind is ClassifyParameters else {name: value}
    with pytest.raises((InvalidParameter, InvalidFilter)) as caught:
        kind.parse(given)
    assert name in caught.value.message
    assert len(caught.value.message) < 300


def test_a_classification_needs_labels() -> None:
    with pytest.raises(InvalidParameter, match='labels'):
        ClassifyParameters.parse({})


@pytest.mark.parametrize(
    ('kind', 'name', 'nearest'),
    [
        (SearchParameters, 'limt', "'limit'"),
        (SearchParameters, 'top_k', 'limit'),
        (SearchParameters, 'filters', "'filter'"),
        (EncodeParameters, 'acces_paths', "'access_paths'"),
        (DeleteParameters, 'id', "'ids'"),
    ],
)
def test_an_unknown_name_is_an_error_that_helps(kind: type[Parameters], name: str, nearest: str) -> None:
    with pytest.raises(InvalidParameter, match=nearest) as caught:
        kind.parse({name: 1})
    assert repr(name) in caught.value.message
    assert '__' not in caught.value.message


@pytest.mark.parametrize('endpoint', ENDPOINTS)
def test_names_that_published_clients_send_are_accepted_everywhere(endpoint: str) -> None:
    given: dict[str, Any] = {
        'drop_image_content': True,
        'minibatch_size': 4.0,
        'batch_size': 8.0,
        'model_name': 'ViT-B/32',
        'traversal_paths': '@r',
        wire.DEADLINE: None,
        wire.REQUEST_ID: 'x',
    }
    kind = ENDPOINTS[endpoint]
    needed: dict[type[Parameters], dict[str, Any]] = {
        ClassifyParameters: {'labels': ['a', 'b']},
        FeedbackParameters: {'shown': ['a'], 'clicked': ['a']},
        PurgeParameters: {'user': 'a'},
        RankerParameters: {'do': 'off'},
    }
    parsed = kind.parse(given | needed.get(kind, {}))
    assert parsed.request_id == 'x'


def test_traversal_paths_means_access_paths_where_there_are_any() -> None:
    assert EncodeParameters.parse({'traversal_paths': '@c'}).access_paths == '@c'
    assert EncodeParameters.parse({'traversal_paths': '@c', 'access_paths': '@r,m'}).access_paths == '@r,m'
    with pytest.raises(InvalidParameter, match='access_paths'):
        EncodeParameters.parse({'traversal_paths': 'r'})


def test_drop_image_content_is_honoured() -> None:
    assert EncodeParameters.parse({}).drop_image_content
    assert not EncodeParameters.parse({'drop_image_content': False}).drop_image_content


def test_a_bad_filter_fails_the_request_as_such() -> None:
    with pytest.raises(InvalidFilter, match=r'\$near'):
        SearchParameters.parse({'filter': {'a': {'$near': 1}}})


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'shown': ['a', 'b', 'a'], 'clicked': ['a']}, "'shown' names each result once; 'a'"),
        ({'shown': ['a', 'b'], 'clicked': ['b', 'b']}, "'clicked' names each result once; 'b'"),
        ({'shown': ['a', 'b'], 'disliked': ['b', 'b']}, "'disliked' names each result once; 'b'"),
        ({'shown': ['a', 'b'], 'clicked': ['b'], 'disliked': ['a', 'b']}, "either 'clicked' or 'disliked'; 'b'"),
    ],
)
def test_feedback_says_one_thing_of_a_result(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        FeedbackParameters.parse(given)


def test_a_deadline_that_has_passed_is_a_timeout() -> None:
    Parameters.parse({}).check_deadline()
    Parameters.parse({wire.DEADLINE: time.time() + 60}).check_deadline()
    with pytest.raises(Timeout):
        Parameters.parse({wire.DEADLINE: time.time() - 1}).check_deadline()


@pytest.mark.parametrize(
    ('endpoint', 'expected'),
    [
        *((name, (name, None)) for name in ENDPOINTS),
        ('/encode/ViT-B-32::openai', ('/encode', 'ViT-B-32::openai')),
        ('/encode/openai/clip-vit-base-patch32', ('/encode', 'openai/clip-vit-base-patch32')),
        ('/rank/clip-mini', ('/rank', 'clip-mini')),
    ],
)
def test_an_endpoint_is_split_from_the_model(endpoint: str, expected: tuple[str, str | None]) -> None:
    assert parse_endpoint(endpoint) == expected


@pytest.mark.parametrize(
    ('endpoint', 'named'),
    [
        ('/serch', "'/search'"),
        ('search', "'/search'"),
        ('/Search', "'/search'"),
        ('/encode/', "'/encode'"),
        ('/index/clip-mini', '/index'),
        ('', '/status'),
        ('/zzzzz', '/classify'),
    ],
)
def test_an_unknown_endpoint_is_not_found_and_names_known_ones(endpoint: str, named: str) -> None:
    with pytest.raises(NotFound, match=named):
        parse_endpoint(endpoint)


def test_a_failed_document_keeps_its_id_and_loses_content_embedding_and_matches() -> None:
    doc = Document(id='x', blob=b'\xff\xd8', tags={'a': 1}, embedding=np.ones(3))
    doc.matches.append(Document(text='m'))
    doc.chunks.append(Document(text='c'))
    wire.fail(doc, TooLarge('it is too large'), 'preprocessor')
    assert wire.failed(doc)
    assert (doc.id, doc.blob, doc.embedding, len(doc.matches), len(doc.chunks)) == ('x', b'', None, 0, 0)
    assert doc.tags['a'] == 1
    assert doc.tags[wire.ERROR] == {'code': 'too-large', 'message': 'it is too large', 'stage': 'preprocessor'}


def test_the_error_of_a_document_is_read_back_also_after_a_journey() -> None:
    doc = Document(id='x', text='hello')
    assert wire.error_of(doc) is None
    wire.fail(doc, TooLarge('it is too large'), 'preprocessor')
    error = wire.error_of(Document.from_protobuf(doc.to_protobuf()))
    assert (type(error), str(error)) == (TooLarge, 'it is too large')
    assert wire.error_of(Document(tags={wire.ERROR: 'nonsense'})) is not None


def test_what_goes_wrong_inside_caught_concerns_the_document_alone() -> None:
    doc = Document(text='hello')
    with wire.caught(doc, 'indexer'):
        raise InvalidDocument('no')
    assert doc.tags[wire.ERROR]['stage'] == 'indexer'
    with pytest.raises(ZeroDivisionError), wire.caught(doc, 'indexer'):
        raise ZeroDivisionError


def test_what_is_attached_comes_off_once_and_only_by_its_name() -> None:
    doc = Document(text='hello')
    doc.chunks.append(Document(text='a part', weight=0.5))
    wire.attach(doc, wire.THUMBNAIL, blob=b'webp')
    wire.attach(doc, wire.ORIGINAL, blob=b'jpeg')
    assert [part.text for part in wire.parts_of(doc)] == ['a part']
    assert wire.detach(doc, wire.THUMBNAIL).blob == b'webp'
    assert wire.detach(doc, wire.THUMBNAIL) is None
    assert wire.detach(doc, wire.ORIGINAL).blob == b'jpeg'
    assert [chunk.text for chunk in doc.chunks] == ['a part']
    assert wire.detach(Document(), wire.ORIGINAL) is None


def test_strip_takes_out_what_only_stages_need() -> None:
    doc = Document(text='hello', tags={wire.MODEL: 'abc', wire.TRUNCATED: True, 'a': 1})
    wire.attach(doc, wire.THUMBNAIL, blob=b'webp')
    wire.attach(doc, wire.ORIGINAL, blob=b'jpeg')
    wire.strip(doc)
    assert doc.tags == {wire.TRUNCATED: True, 'a': 1}
    assert len(doc.chunks) == 0


@pytest.mark.parametrize(
    ('doc', 'empty'),
    [
        (Document(), True),
        (Document(text=''), True),
        (Document(blob=b''), True),
        (Document(tags={'a': 1}), True),
        (Document(text='x'), False),
        (Document(blob=b'x'), False),
        (Document(uri='x.jpg'), False),
        (Document(tensor=np.zeros((1, 1, 3), np.uint8)), False),
        (Document(embedding=np.zeros(2)), False),
        (Document(chunks=[Document(text='x')]), False),
    ],
)
def test_a_document_without_content_is_empty(doc: Document, empty: bool) -> None:
    assert wire.is_empty(doc) == empty


@pytest.mark.parametrize('identifier', ['a', ' ', '猫' * 170, 'x' * 512, "'; --", '/..//'])
def test_any_text_up_to_512_bytes_is_an_id(identifier: str) -> None:
    wire.check_id(Document(id=identifier))


@pytest.mark.parametrize('identifier', ['x' * 513, '猫' * 171])
def test_a_longer_id_is_refused(identifier: str) -> None:
    with pytest.raises(InvalidDocument, match='512'):
        wire.check_id(Document(id=identifier))


def test_an_empty_id_is_refused() -> None:
    doc = Document()
    doc.id = ''
    with pytest.raises(InvalidDocument, match='empty'):
        wire.check_id(doc)


def test_documents_are_chosen_by_their_path() -> None:
    docs = DocumentArray([Document(text='r', chunks=[Document(text='c')], matches=[Document(text='m')])])
    assert [doc.text for doc in wire.chosen(docs, '@r')] == ['r']
    assert [doc.text for doc in wire.chosen(docs, '@c')] == ['c']
    assert [doc.text for doc in wire.chosen(docs, '@r,m')] == ['r', 'm']


TEXTS = st.text(max_size=5).filter(lambda text: '\0' not in text)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS.filter(lambda name: not name.startswith('__')), JSON, max_size=4))
def test_tags_become_the_same_json(tags: dict[str, Any]) -> None:
    assert json.loads(tags_json(Document(tags=tags | {wire.MODEL: 'abc'}))) == tags


@pytest.mark.parametrize(
    'value', [float('nan'), float('inf'), [float('-inf')], {'a': float('nan')}, b'x', {1}, 'a\0b', ['\0'], {'\0': 1}]
)
def test_tags_that_cannot_be_stored_are_refused(value: Any) -> None:
    with pytest.raises(InvalidDocument, match='tags'):
        tags_json(Document(tags={'a': value}))


ODD = st.sampled_from(
    ['\ud800', 'x\udfffy', 1.79e308, -1.75e308, 1e308, 10**308, 10**309, -(10**400), '9' * 400, 'e+308']
)
DEEP = st.integers(0, 30).map(lambda depth: json.loads('[' * depth + '{"a":' * 2 + '1' + '}' * 2 + ']' * depth))


@given(st.dictionaries(TEXTS | ODD.filter(lambda one: isinstance(one, str)), JSON | ODD | DEEP, max_size=3))
def test_what_cannot_be_sent_is_suspect_by_its_json(tags: dict[str, Any]) -> None:
    if unsendable(['id', tags]):
        assert is_suspect(json.dumps(tags, ensure_ascii=False))


def test_tags_of_a_client_that_are_reserved_for_us_are_dropped() -> None:
    doc = Document(tags={'__model__': 'forged', '__error__': {}, 'a': 1, '_b': 2})
    drop_private_tags(doc)
    assert doc.tags == {'a': 1, '_b': 2}


def test_whole_numbers_that_travelled_as_floats_are_plain_again() -> None:
    doc = Document(tags={'n': 5, 'half': 0.5, 'deep': [{'n': 2}], 'yes': True, 'big': 1e300, wire.MODEL: 'abc'})
    plain = plain_tags(Document.from_protobuf(doc.to_protobuf()))
    assert json.dumps(plain, sort_keys=True) == json.dumps(
        {'n': 5, 'half': 0.5, 'deep': [{'n': 2}], 'yes': True, 'big': 1e300}, sort_keys=True
    )

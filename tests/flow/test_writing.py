"""`/index`, `/update`, `/delete`, `/clear` and `/get` through plain `jina.Client`."""

import base64
import io

import numpy as np
import pytest
from docarray import Document, DocumentArray
from PIL import Image

from clipflow.errors import InvalidParameter
from service import Service, error_codes, png


def _album(count: int) -> DocumentArray:
    return DocumentArray([Document(id=f'd{i:02}', text=f'text {i}', tags={'place': i}) for i in range(count)])


def test_index_answers_with_the_ids_in_the_order_in_which_they_were_sent(fake: Service) -> None:
    reply = fake.post('/index', _album(20))
    assert [doc.id for doc in reply] == [f'd{i:02}' for i in range(20)]
    assert error_codes(reply) == dict.fromkeys((f'd{i:02}' for i in range(20)), None)


def test_what_index_has_acknowledged_is_found_by_the_next_search(fake: Service) -> None:
    for i in range(10):
        fake.post('/index', Document(id=f'd{i}', text=f'sentence number {i}'))
        assert fake.matches(f'sentence number {i}', limit=1)[0].id == f'd{i}'


def test_indexing_an_id_again_replaces_everything_of_it(fake: Service) -> None:
    fake.post('/index', Document(id='a', blob=png(), uri='http://there/a.png', tags={'old': 1}))
    fake.post('/index', Document(id='a', text='new', tags={'new': 2}))
    stored = fake.one('/get', Document(id='a'), {'include': ['tags', 'uri', 'thumbnail']})
    assert (stored.text, stored.uri, stored.blob, dict(stored.tags)) == ('new', '', b'', {'new': 2})
    assert len(fake.matches('new')) == 1


def test_a_reply_to_index_carries_embeddings_and_no_picture_unless_it_is_asked_to_keep_it(fake: Service) -> None:
    blob = png()
    dropped = fake.one('/index', Document(id='a', blob=blob))
    kept = fake.one('/index', Document(id='a', blob=blob), {'drop_image_content': False})
    assert dropped.blob == b''
    assert dropped.tensor is None
    assert dropped.embedding is not None
    assert kept.blob == blob
    assert not dropped.chunks
    assert not kept.chunks


def test_uri_text_and_tags_stay_with_a_document_in_replies_and_in_the_store(fake: Service) -> None:
    tags = {'name': 'ü"\'', 'list': [1, 'two', None], 'deep': {'er': True}, 'none': None}
    reply = fake.one('/index', Document(id='a', text='a text', uri='https://example.org/a.png', tags=tags))
    stored = fake.one('/get', Document(id='a'))
    for doc in (reply, stored):
        assert (doc.text, doc.uri, dict(doc.tags)) == ('a text', 'https://example.org/a.png', tags)


def test_chunks_are_stored_under_their_own_ids_with_access_paths(fake: Service) -> None:
    pages = DocumentArray([Document(id='page 1', text='one'), Document(id='page 2', text='two')])
    fake.post('/index', Document(id='book', chunks=pages), {'access_paths': '@c'})
    assert fake.stored_ids() == {'page 1', 'page 2'}


def test_update_merges_tags_and_null_removes_one(fake: Service) -> None:
    fake.post('/index', Document(id='a', text='x', tags={'keep': 1, 'change': 1, 'gone': 1, 'deep': {'a': 1, 'b': 2}}))
    reply = fake.post('/update', Document(id='a', tags={'change': 2, 'gone': None, 'add': [1], 'deep': {'b': None}}))
    assert error_codes(reply) == {'a': None}
    stored = fake.one('/get', Document(id='a'))
    assert dict(stored.tags) == {'keep': 1, 'change': 2, 'add': [1], 'deep': {'a': 1}}
    assert stored.text == 'x'


def test_update_of_an_unknown_id_is_an_error_of_that_document_alone(fake: Service) -> None:
    fake.post('/index', Document(id='a', text='x'))
    reply = fake.post('/update', [Document(id='nobody', tags={'n': 1}), Document(id='a', tags={'n': 1})])
    assert error_codes(reply) == {'nobody': 'not-found', 'a': None}
    assert fake.one('/get', Document(id='a')).tags == {'n': 1}
    assert fake.stored_ids() == {'a'}


def test_an_updated_tag_is_what_filters_see(fake: Service) -> None:
    fake.post('/index', _album(4))
    fake.post('/update', Document(id='d02', tags={'place': 'moved'}))
    assert [doc.id for doc in fake.matches('text', filter={'place': 'moved'})] == ['d02']
    assert {doc.id for doc in fake.matches('text', filter={'place': {'$gte': 0}})} == {'d00', 'd01', 'd03'}


@pytest.mark.parametrize(
    ('docs', 'parameters', 'left'),
    [
        (DocumentArray([Document(id='d01'), Document(id='unknown')]), {}, {'d00', 'd02', 'd03'}),
        (None, {'ids': ['d00', 'd03', 'unknown']}, {'d01', 'd02'}),
        (None, {'filter': {'place': {'$lt': 2}}}, {'d02', 'd03'}),
        (DocumentArray([Document(id='d00')]), {'ids': ['d01'], 'filter': {'place': 2}}, {'d03'}),
        (None, {'ids': ['unknown']}, {'d00', 'd01', 'd02', 'd03'}),
    ],
)
def test_delete_takes_documents_ids_and_a_filter_and_counts(
    fake: Service, docs: DocumentArray | None, parameters: dict[str, object], left: set[str]
) -> None:
    fake.post('/index', _album(4))
    reply = fake.post('/delete', docs, parameters)
    assert [doc.tags['deleted'] for doc in reply] == [4 - len(left)]
    assert fake.stored_ids() == left
    assert {doc.id for doc in fake.matches('text')} == left


def test_delete_without_anything_to_delete_is_refused_and_deletes_nothing(fake: Service) -> None:
    fake.post('/index', _album(3))
    with pytest.raises(InvalidParameter, match=r'/clear'):
        fake.post('/delete')
    assert len(fake.stored_ids()) == 3


def test_clear_deletes_everything_and_another_collection_can_follow(fake: Service) -> None:
    fake.post('/index', _album(5))
    assert fake.post('/clear')[0].tags['deleted'] == 5
    assert fake.stored_ids() == set()
    assert len(fake.matches('text 1')) == 0
    fake.post('/index', Document(id='next', text='text 1'))
    assert [doc.id for doc in fake.matches('text 1')] == ['next']


def test_get_answers_in_the_order_of_the_ids_and_marks_the_unknown(fake: Service) -> None:
    fake.post('/index', _album(5))
    reply = fake.post('/get', [Document(id='d04'), Document(id='nobody'), Document(id='d00')], {'ids': ['d02', 'd04']})
    assert error_codes(reply) == {'d04': None, 'nobody': 'not-found', 'd00': None, 'd02': None}
    assert [doc.id for doc in reply] == ['d04', 'nobody', 'd00', 'd02']
    assert "'nobody'" in reply[1].tags['__error__']['message']
    assert reply[0].text == 'text 4'


def test_get_without_ids_gives_pages_by_filter_that_together_are_the_whole(fake: Service) -> None:
    fake.post('/index', _album(11))
    matching = {'place': {'$gte': 2}}
    pages = [fake.post('/get', None, {'filter': matching, 'limit': 4, 'offset': start}) for start in (0, 4, 8, 12)]
    assert [len(page) for page in pages] == [4, 4, 1, 0]
    assert [doc.id for page in pages for doc in page] == [f'd{i:02}' for i in range(2, 11)]


def test_get_sends_thumbnail_and_embedding_only_on_request(fake: Service) -> None:
    sent = fake.one('/index', Document(id='a', blob=png(size=(1000, 500)), tags={'n': 1}, uri='data:,x'))
    plain = fake.one('/get', Document(id='a'))
    full = fake.one('/get', Document(id='a'), {'include': ['thumbnail', 'embedding']})
    assert (plain.blob, plain.embedding, dict(plain.tags), plain.uri) == (b'', None, {'n': 1}, 'data:,x')
    assert dict(full.tags) == {}
    assert full.uri == ''
    assert np.array_equal(full.embedding, sent.embedding)
    thumbnail = Image.open(io.BytesIO(full.blob))
    assert (thumbnail.format, thumbnail.size, full.mime_type) == ('WEBP', (256, 128), 'image/webp')


def test_a_thumbnail_is_never_larger_than_the_picture(fake: Service) -> None:
    fake.post('/index', Document(id='a', blob=png(size=(20, 10))))
    stored = fake.one('/get', Document(id='a'), {'include': ['thumbnail']})
    assert Image.open(io.BytesIO(stored.blob)).size == (20, 10)


def test_a_data_uri_is_indexed_as_the_picture_that_it_holds(fake: Service) -> None:
    fake.post('/index', Document(id='a', uri='data:image/png;base64,' + base64.b64encode(png('blue')).decode()))
    match = fake.matches(Document(blob=png('blue')))[0]
    assert match.id == 'a'
    assert match.scores['cosine'].value == pytest.approx(1, abs=1e-5)

"""HTTP: `/v1`, health, the documentation page, problem documents for every kind of error, and `POST /post`."""

import asyncio
import base64
import io
import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow.errors import BY_CODE
from service import Service, png

LIMIT = 64 * 1024 * 1024
ODD_IDS = ['a/b/c', '/leading', '"quoted" \'id\'', 'ümläut 猫 😀', '100%?&#;=+ ', '..', '../../etc/passwd', 'a\\b']


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _path(identifier: str) -> str:
    # Dots are percent-encoded too: clients and proxies resolve `..` otherwise.
    return quote(identifier, safe='').replace('.', '%2E')


def _store(http: httpx.Client, *documents: dict[str, Any]) -> dict[str, Any]:
    reply = http.post('/v1/documents', json={'documents': documents})
    assert reply.status_code == 200, reply.text
    return reply.json()


def _search(http: httpx.Client, **body: Any) -> list[tuple[str, float]]:
    reply = http.post('/v1/search', json=body)
    assert reply.status_code == 200, reply.text
    return [(match['id'], match['score']) for match in reply.json()['matches']]


def _assert_problem(reply: httpx.Response, status: int, code: str, detail: str = '') -> None:
    assert (reply.status_code, reply.headers['content-type']) == (status, 'application/problem+json'), reply.text
    body = reply.json()
    assert set(body) == {'type', 'title', 'status', 'detail', 'code'}
    assert (body['status'], body['code']) == (status, code)
    assert re.search(detail, body['detail'])
    assert len(body['detail']) > 10
    assert 'Traceback' not in reply.text
    assert reply.headers.get('retry-after') == ('1' if BY_CODE[code].retryable else None)


@pytest.fixture
def album(http: httpx.Client) -> dict[str, Any]:
    """Five documents: three texts, two pictures."""
    return _store(
        http,
        {'id': 'one', 'text': 'text one', 'tags': {'n': 1, 'kind': 'text'}},
        {'id': 'two', 'text': 'text two', 'tags': {'n': 2, 'kind': 'text'}},
        {'id': 'three', 'text': 'text three', 'tags': {'n': 3, 'kind': 'text'}},
        {'id': 'red', 'image': _base64(png('red')), 'uri': 'http://there/red.png', 'tags': {'kind': 'picture'}},
        {'id': 'blue', 'image': _base64(png('blue', (900, 300))), 'tags': {'kind': 'picture'}},
    )


def test_health_readiness_and_status_answer(http: httpx.Client, album: dict[str, Any]) -> None:
    assert http.get('/healthz').json() == {'status': 'ok'}
    assert http.get('/readyz').json() == {'status': 'ready'}
    stages = http.get('/v1/status').json()['stages']
    assert list(stages) == ['preprocessor', 'encoder', 'indexer', 'ranker']
    assert stages['encoder']['runtime'] == 'fake'


def test_stored_documents_are_counted_and_named(album: dict[str, Any]) -> None:
    names = ['one', 'two', 'three', 'red', 'blue']
    assert album == {'stored': 5, 'documents': [{'id': name, 'error': None} for name in names]}


def test_search_takes_text_image_id_and_embedding(fake: Service, http: httpx.Client, album: dict[str, Any]) -> None:
    vector = fake.one('/encode', Document(text='text two')).embedding.tolist()
    assert _search(http, text='text two', limit=1) == [('two', 1.0)]
    assert _search(http, image=_base64(png('red')), limit=1) == [('red', 1.0)]
    assert _search(http, image='data:image/png;base64,' + _base64(png('red')), limit=1) == [('red', 1.0)]
    assert _search(http, id='blue', limit=1) == [('blue', 1.0)]
    assert _search(http, embedding=vector, limit=1) == [('two', 1.0)]
    assert _search(http, text='text two') == _search(http, id='two') == _search(http, embedding=vector)


def test_a_match_has_id_score_uri_text_and_tags(http: httpx.Client, album: dict[str, Any]) -> None:
    reply = http.post('/v1/search', json={'id': 'red', 'limit': 1}).json()
    match = {'id': 'red', 'score': 1.0, 'uri': 'http://there/red.png', 'text': None, 'tags': {'kind': 'picture'}}
    assert reply == {'matches': [match], 'partial': False}
    found = http.post('/v1/search', json={'text': 'text two', 'limit': 1}).json()['matches'][0]
    assert (found['text'], found['uri'], found['tags']) == ('text two', None, {'n': 2, 'kind': 'text'})


def test_a_composed_query_is_the_weighted_sum_of_its_parts(
    fake: Service, http: httpx.Client, album: dict[str, Any]
) -> None:
    def vector(doc: Document) -> np.ndarray:
        return fake.one('/encode', doc).embedding.astype(np.float64)

    parts = [{'text': 'text one'}, {'image': _base64(png('blue', (900, 300))), 'weight': -0.5}, {'id': 'two'}]
    texts = {name: vector(Document(text=f'text {name}')) for name in ('one', 'two', 'three')}
    blue = vector(Document(blob=png('blue', (900, 300))))
    total = texts['one'] - 0.5 * blue + texts['two']
    total /= np.linalg.norm(total)
    found = dict(_search(http, query=parts))
    assert {name: found[name] for name in texts} == pytest.approx(
        {name: float(text @ total) for name, text in texts.items()}, abs=1e-5
    )
    assert min(found, key=lambda name: found[name]) == 'blue'


def test_search_filters_pages_groups_and_cuts(http: httpx.Client, album: dict[str, Any]) -> None:
    whole = _search(http, text='x', limit=5)
    assert len(whole) == 5
    assert _search(http, text='x', limit=2, offset=1) == whole[1:3]
    assert {name for name, _ in _search(http, text='x', filter={'kind': 'picture'})} == {'red', 'blue'}
    assert {name for name, _ in _search(http, text='x', filter={'n': {'$gte': 2}})} == {'two', 'three'}
    assert _search(http, text='x', min_score=whole[2][1] - 1e-6) == whole[:3]
    assert len(_search(http, text='x', group_by='kind')) == 2
    assert _search(http, text='two', templates=['text {}'], limit=1) == [('two', 1.0)]


def test_a_document_is_read_and_deleted(http: httpx.Client, album: dict[str, Any]) -> None:
    expected = {'id': 'two', 'uri': None, 'text': 'text two', 'tags': {'n': 2, 'kind': 'text'}}
    assert http.get('/v1/documents/two').json() == expected
    assert http.delete('/v1/documents/two').json() == {'deleted': 1}
    assert http.delete('/v1/documents/two').json() == {'deleted': 0}
    _assert_problem(http.get('/v1/documents/two'), 404, 'not-found', "'two'")
    assert 'two' not in dict(_search(http, text='text two'))


@pytest.mark.parametrize('identifier', ODD_IDS)
def test_ids_with_slashes_quotes_and_emoji_work_in_paths(http: httpx.Client, identifier: str) -> None:
    _store(http, {'id': identifier, 'image': _base64(png())}, {'id': 'other', 'text': 'other'})
    assert http.get('/v1/documents/' + _path(identifier)).json()['id'] == identifier
    assert http.get('/v1/thumbnails/' + _path(identifier)).status_code == 200
    assert _search(http, id=identifier, limit=1) == [(identifier, 1.0)]
    assert http.delete('/v1/documents/' + _path(identifier)).json() == {'deleted': 1}
    assert [name for name, _ in _search(http, text='x')] == ['other']


@pytest.mark.parametrize(('size', 'shown'), [((900, 300), (256, 85)), ((300, 900), (85, 256)), ((30, 20), (30, 20))])
def test_thumbnails_are_webp_with_a_longer_side_of_at_most_256(
    http: httpx.Client, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    _store(http, {'id': 'p', 'image': _base64(png('green', size))})
    reply = http.get('/v1/thumbnails/p')
    assert reply.headers['content-type'] == 'image/webp'
    image = Image.open(io.BytesIO(reply.content))
    assert image.format == 'WEBP'
    assert image.size == shown
    assert image.convert('RGB').getpixel((shown[0] // 2, shown[1] // 2)) == pytest.approx((0, 128, 0), abs=12)


def test_a_document_without_a_picture_has_no_thumbnail(http: httpx.Client, album: dict[str, Any]) -> None:
    _assert_problem(http.get('/v1/thumbnails/one'), 404, 'not-found', "'one'")
    _assert_problem(http.get('/v1/thumbnails/nobody'), 404, 'not-found', "'nobody'")


def test_pictures_come_as_multipart_with_ids_or_under_their_file_names(http: httpx.Client) -> None:
    files = [('files', ('a b.png', png('red'))), ('files', ('ü.jpg', png('blue', form='JPEG')))]
    named = http.post('/v1/documents', files=files, data={'tags': '{"album": "x"}'})
    assert named.json() == {'stored': 2, 'documents': [{'id': n, 'error': None} for n in ('a b.png', 'ü.jpg')]}
    numbered = http.post('/v1/documents', files=files, data={'ids': ['1', '2']})
    assert [item['id'] for item in numbered.json()['documents']] == ['1', '2']
    found = http.get('/v1/documents/' + _path('ü.jpg')).json()
    assert found['tags'] == {'album': 'x', 'filename': 'ü.jpg'}
    assert {name for name, _ in _search(http, image=_base64(png('red')), limit=2)} == {'a b.png', '1'}


def test_each_bad_document_has_its_own_error_and_the_others_are_stored(http: httpx.Client) -> None:
    numbers, deep = '1' + '0' * 400, '[' * 40 + ']' * 40
    documents = [
        '{"id": "good", "text": "x"}',
        '{"id": "no base64", "image": "@@@"}',
        '{"id": "no picture", "image": "eHg="}',
        '{"id": "nan", "text": "x", "tags": {"a": NaN}}',
        '{"id": "", "text": "x"}',
        '{"id": "empty", "text": ""}',
        f'{{"id": "huge", "text": "x", "tags": {{"a": [{numbers}]}}}}',
        '{"id": "vector", "embedding": [1, 2]}',
        f'{{"id": "zero", "embedding": {[0] * 32}}}',
        '{"id": "good", "text": "again"}',
        f'{{"id": "{"i" * 600}", "text": "x"}}',
        f'{{"id": "deep", "text": "x", "tags": {{"a": {deep}}}}}',
        '{"id": "private", "text": "x", "tags": {"__error__": 1}}',
        '{"id": "fine", "text": "y"}',
    ]
    body = f'{{"documents": [{", ".join(documents)}]}}'
    reply = http.post('/v1/documents', content=body, headers={'content-type': 'application/json'})
    assert reply.status_code == 200, reply.text
    found = [(item['id'][:20], (item['error'] or {}).get('code')) for item in reply.json()['documents']]
    assert found == [
        ('good', None),
        ('no base64', 'invalid-document'),
        ('no picture', 'unsupported-media'),
        ('nan', 'invalid-document'),
        ('', 'invalid-document'),
        ('empty', 'invalid-document'),
        ('huge', 'invalid-document'),
        ('vector', 'dimension-mismatch'),
        ('zero', 'invalid-document'),
        ('good', 'invalid-document'),
        ('i' * 20, 'invalid-document'),
        ('deep', 'invalid-document'),
        ('private', None),
        ('fine', None),
    ]
    assert reply.json()['stored'] == 3
    assert http.get('/v1/documents/good').json()['text'] == 'x'
    assert http.get('/v1/documents/private').json()['tags'] == {}
    assert {name for name, _ in _search(http, text='x')} == {'good', 'private', 'fine'}


def test_one_bad_file_of_a_form_fails_alone(http: httpx.Client) -> None:
    files = [('files', ('good.png', png())), ('files', ('bad.png', b'no picture')), ('files', ('empty.png', b''))]
    found = http.post('/v1/documents', files=files).json()
    codes = {item['id']: (item['error'] or {}).get('code') for item in found['documents']}
    assert codes == {'good.png': None, 'bad.png': 'unsupported-media', 'empty.png': 'invalid-document'}
    assert found['stored'] == 1


def test_a_single_bad_document_is_answered_with_the_status_of_its_error(http: httpx.Client) -> None:
    def post(document: dict[str, Any]) -> httpx.Response:
        return http.post('/v1/documents', json={'documents': [document]})

    _assert_problem(post({'id': 'x', 'image': 'eHg='}), 415, 'unsupported-media', "'x'")
    _assert_problem(post({'id': 'x', 'image': _base64(png()[:-40])}), 422, 'undecodable', "'x'")
    _assert_problem(post({'id': 'x', 'embedding': [1.0]}), 409, 'dimension-mismatch', "'x'")
    _assert_problem(post({'id': 'x', 'uri': 'file:///etc/passwd'}), 403, 'forbidden-source', "'x'")
    _assert_problem(post({'id': 'x', 'text': 'w' * 100_001}), 413, 'too-large', "'x'")
    _assert_problem(post({'id': '', 'text': 'w'}), 400, 'invalid-document', 'id')
    _assert_problem(post({'id': 'x', 'image': '@'}), 400, 'invalid-document', 'base64')


@pytest.mark.parametrize(
    ('body', 'status', 'code', 'detail'),
    [
        ({}, 400, 'invalid-parameter', 'exactly one'),
        ({'text': 'a', 'id': 'b'}, 400, 'invalid-parameter', 'exactly one'),
        ({'text': ''}, 400, 'invalid-document', 'empty'),
        ({'image': ''}, 400, 'invalid-document', 'empty'),
        ({'image': '@@@'}, 400, 'invalid-document', 'base64'),
        ({'image': 'eHg='}, 415, 'unsupported-media', 'picture'),
        ({'id': 'nobody'}, 404, 'not-found', "'nobody'"),
        ({'embedding': []}, 400, 'invalid-parameter', 'embedding'),
        ({'embedding': ['a']}, 400, 'invalid-parameter', 'embedding'),
        ({'embedding': [1.0] * 31}, 409, 'dimension-mismatch', '31'),
        ({'embedding': [0.0] * 32}, 400, 'invalid-document', 'zero'),
        ({'text': 'a', 'limt': 3}, 400, 'invalid-parameter', 'limt'),
        ({'text': 'a', 'limit': 0}, 400, 'invalid-parameter', 'limit'),
        ({'text': 'a', 'limit': 2.5}, 400, 'invalid-parameter', 'limit'),
        ({'text': 'a', 'limit': 'ten'}, 400, 'invalid-parameter', 'limit'),
        ({'text': 'a', 'limit': 1e9}, 400, 'invalid-parameter', 'limit'),
        ({'text': 'a', 'offset': -1}, 400, 'invalid-parameter', 'offset'),
        ({'text': 'a', 'min_score': 2}, 400, 'invalid-parameter', 'min_score'),
        ({'text': 'a', 'filter': 'x'}, 400, 'invalid-parameter', 'filter'),
        ({'text': 'a', 'filter': {'$near': 1}}, 400, 'invalid-filter', r'\$near'),
        ({'text': 'a', 'templates': ['none']}, 400, 'invalid-parameter', 'none'),
        ({'query': []}, 400, 'invalid-parameter', 'query'),
        ({'query': [{'text': 'a', 'id': 'b'}]}, 400, 'invalid-parameter', 'exactly one'),
        ({'query': [{'text': 'a', 'weight': 0}]}, 400, 'invalid-parameter', 'weight'),
        ({'query': [{'text': 'a'}, {'text': 'a', 'weight': -1}]}, 400, 'invalid-document', 'cancel'),
        ({'text': '\ud800'}, 400, 'invalid-parameter', 'JSON'),
        ([1], 400, 'invalid-parameter', ''),
    ],
)
def test_a_bad_search_is_a_problem_that_names_what_is_wrong(
    http: httpx.Client, body: Any, status: int, code: str, detail: str
) -> None:
    content = json.dumps(body)
    reply = http.post('/v1/search', content=content, headers={'content-type': 'application/json'})
    _assert_problem(reply, status, code, detail)


@pytest.mark.parametrize('number', ['NaN', 'Infinity', '1' + '0' * 400])
def test_numbers_that_are_none_are_refused_in_filters_and_embeddings(http: httpx.Client, number: str) -> None:
    for body in ('{"text": "a", "filter": {"n": %s}}', '{"embedding": [%s]}', '{"text": "a", "min_score": %s}'):
        reply = http.post('/v1/search', content=body % number, headers={'content-type': 'application/json'})
        assert 400 <= reply.status_code < 500, reply.text
        _assert_problem(reply, reply.status_code, reply.json()['code'])


@pytest.mark.parametrize('path', ['/v1/search', '/v1/documents', '/post'])
@pytest.mark.parametrize('content', ['{', '', 'null', '"x"', '{"a":' * 3000, '\xff\xfe'])
def test_a_body_that_is_no_json_object_is_a_400(http: httpx.Client, path: str, content: str) -> None:
    body = content.encode('latin-1')
    _assert_problem(
        http.post(path, content=body, headers={'content-type': 'application/json'}), 400, 'invalid-parameter'
    )


def test_unknown_fields_are_named(http: httpx.Client) -> None:
    reply = http.post('/v1/documents', json={'documents': [{'txt': 'x'}]})
    _assert_problem(reply, 400, 'invalid-parameter', 'txt')
    _assert_problem(http.post('/v1/documents', json={'docs': []}), 400, 'invalid-parameter', 'docs')
    _assert_problem(http.post('/v1/documents', json={'documents': []}), 400, 'invalid-parameter', 'documents')


def test_a_form_that_is_none_is_a_problem(http: httpx.Client) -> None:
    files = [('files', ('a.png', png()))]
    _assert_problem(http.post('/v1/documents', files=[('other', ('a', b'x'))]), 400, 'invalid-parameter', 'files')
    _assert_problem(http.post('/v1/documents', files=files, data={'ids': ['1', '2']}), 400, 'invalid-parameter', 'ids')
    _assert_problem(http.post('/v1/documents', files=files, data={'tags': '[1]'}), 400, 'invalid-document', 'tags')
    broken = {'content-type': 'multipart/form-data; boundary=x'}
    _assert_problem(http.post('/v1/documents', content=b'broken', headers=broken), 400, 'invalid-parameter')


@pytest.mark.parametrize('kind', ['text/csv', 'text/plain', 'application/x-www-form-urlencoded', 'image/png'])
@pytest.mark.parametrize('path', ['/v1/search', '/v1/documents'])
def test_another_media_type_is_a_415_that_names_the_right_one(http: httpx.Client, path: str, kind: str) -> None:
    reply = http.post(path, content='{"text": "a cat"}', headers={'content-type': kind})
    _assert_problem(reply, 415, 'unsupported-media', f'application/json.*{kind}')


def test_unknown_paths_and_methods_are_problems(http: httpx.Client) -> None:
    _assert_problem(http.get('/nothing/here'), 404, 'not-found', '/nothing/here')
    reply = http.get('/v1/search')
    assert (reply.status_code, reply.headers['content-type']) == (405, 'application/problem+json')
    assert reply.headers['allow'] == 'POST'
    assert reply.json()['status'] == 405


def _raw(http: httpx.Client, headers: str, pieces: Iterator[bytes]) -> tuple[int, dict[str, Any]]:
    """Send a request by hand and read the answer without having finished it."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        head = f'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n\r\n'
        connection.sendall(head.encode())
        for piece in pieces:
            connection.sendall(piece)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())


def test_a_body_that_is_announced_as_too_large_is_a_413_before_it_is_sent(http: httpx.Client) -> None:
    status, body = _raw(http, f'Content-Length: {LIMIT + 1}', iter(()))
    assert (status, body['code']) == (413, 'too-large')
    assert '67,108,864' in body['detail']


def test_a_stream_is_a_413_as_soon_as_it_is_too_large(http: httpx.Client) -> None:
    megabyte = b'100000\r\n' + b' ' * 2**20 + b'\r\n'
    pieces = (piece for piece in [megabyte] * (LIMIT // 2**20) + [b'1\r\n \r\n'])
    status, body = _raw(http, 'Transfer-Encoding: chunked', pieces)
    assert (status, body['code']) == (413, 'too-large')
    assert http.get('/healthz').status_code == 200


def test_a_body_of_just_the_limit_is_read(http: httpx.Client) -> None:
    content = b'{"text": "x"' + b' ' * (LIMIT - 13) + b'}'
    assert len(content) == LIMIT
    assert http.post('/v1/search', content=content, headers={'content-type': 'application/json'}).status_code == 200


def test_the_documentation_page_is_served_locally_and_names_no_foreign_host(http: httpx.Client) -> None:
    page = http.get('/docs')
    assert page.status_code == 200
    assert page.headers['content-type'].startswith('text/html')
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert files
    for name in files:
        assert name.startswith('/'), name
        assert http.get(name).status_code == 200, name
    assert not re.findall(r'(?:https?:)?//(?!127\.0\.0\.1)[\w.-]+\.\w+', page.text)


def test_the_root_is_the_page(http: httpx.Client) -> None:
    reply = http.get('/')
    assert (reply.status_code, reply.headers['content-type']) == (200, 'text/html; charset=utf-8')
    assert "default-src 'self'" in reply.headers['content-security-policy']


def test_openapi_lists_every_route(http: httpx.Client) -> None:
    told = http.get('/openapi.json').json()
    assert told['openapi'].startswith('3.')
    routes = {(method, path) for path, methods in told['paths'].items() for method in methods}
    assert routes >= {
        ('get', '/healthz'),
        ('get', '/readyz'),
        ('get', '/v1/status'),
        ('post', '/v1/search'),
        ('post', '/v1/documents'),
        ('get', '/v1/documents/{id}'),
        ('delete', '/v1/documents/{id}'),
        ('get', '/v1/thumbnails/{id}'),
        ('post', '/post'),
    }
    bodies = told['paths']['/v1/documents']['post']['requestBody']['content']
    assert set(bodies) == {'application/json', 'multipart/form-data', 'application/x-ndjson'}


def test_post_speaks_jinas_protocol(http: httpx.Client) -> None:
    blob = _base64(png())
    data = [{'id': 'p', 'blob': blob, 'tags': {'n': 1}, 'text': None}, {'id': 't', 'text': 'hello', 'chunks': None}]
    stored = http.post('/post', json={'data': data, 'parameters': {}, 'execEndpoint': '/index'}).json()
    assert [doc['id'] for doc in stored['data']] == ['p', 't']
    assert stored['header']['status']['code'] == 0
    header = {'request_id': 'mine', 'exec_endpoint': '/search'}
    body = {'header': header, 'data': [{'id': 'q', 'blob': blob}], 'parameters': {'limit': 1.0}}
    found = http.post('/post', json=body).json()
    assert found['header']['requestId'] == 'mine'
    match = found['data'][0]['matches'][0]
    assert (match['id'], match['tags']) == ('p', {'n': 1})
    assert match['scores']['cosine']['value'] == pytest.approx(1, abs=1e-5)
    parts = {'chunks': [{'text': 'hello'}, {'blob': blob, 'weight': -0.1}]}
    composed = http.post('/post', json={'data': [parts], 'exec_endpoint': '/search'}).json()
    assert composed['data'][0]['matches'][0]['id'] == 't'
    tensor = np.asarray(Image.open(io.BytesIO(png()))).tolist()
    encoded = http.post('/post', json={'data': [{'tensor': tensor}], 'exec_endpoint': '/encode'}).json()
    assert np.linalg.norm(encoded['data'][0]['embedding']) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    'body',
    [
        {'data': [{'id': 'q', 'text': 'x'}], 'exec_endpoint': '/serch'},
        {'data': [{'id': 'q', 'text': 'x'}]},
        {'data': [{'id': 'q', 'text': 5}], 'exec_endpoint': '/encode'},
        {'data': [{'id': 'q', 'tags': 5}], 'exec_endpoint': '/encode'},
        {'data': [{'id': 'q', 'tensor': 'x'}], 'exec_endpoint': '/encode'},
        {'data': [{'id': 'q', 'chunks': 'x'}], 'exec_endpoint': '/encode'},
        {'data': [5], 'exec_endpoint': '/encode'},
        {'data': 5, 'exec_endpoint': '/encode'},
        {'data': [], 'exec_endpoint': '/search', 'parameters': 5},
        {'data': [], 'exec_endpoint': '/search', 'header': 5},
        {'data': [{'text': 'x'}], 'exec_endpoint': '/search', 'parameters': {'limit': 0}},
        {'data': [{'text': '\ud800'}], 'exec_endpoint': '/search'},
    ],
)
def test_a_bad_body_of_jinas_protocol_is_a_client_error_with_a_sentence(http: httpx.Client, body: Any) -> None:
    reply = http.post('/post', content=json.dumps(body), headers={'content-type': 'application/json'})
    assert 400 <= reply.status_code < 500, reply.text
    told = reply.json()
    sentence = told['detail'] if 'detail' in told else told['header']['status']['description']
    assert len(sentence) > 10
    assert 'internal' not in sentence


def test_sixty_four_searches_at_once_all_succeed(fake: Service, http: httpx.Client, album: dict[str, Any]) -> None:
    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=fake.http, timeout=60, limits=limits, trust_env=False) as client:
            calls = [client.post('/v1/search', json={'text': f'text {i}', 'limit': 2}) for i in range(32)]
            pictures = [client.post('/v1/search', json={'image': _base64(png((i, 0, 0)))}) for i in range(32)]
            return await asyncio.gather(*calls, *pictures)

    replies = asyncio.run(ask())
    assert [reply.status_code for reply in replies] == [200] * 64
    assert [len(reply.json()['matches']) for reply in replies] == [2] * 32 + [5] * 32

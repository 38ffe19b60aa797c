"""HTTP that no well-meaning client sends, and pages of other sites that call."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service import Service, png

LIMIT = 64 * 1024 * 1024
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def _store(http: httpx.Client, *documents: dict[str, Any]) -> None:
    assert http.post('/v1/documents', json={'documents': documents}).json()['stored'] == len(documents)


@pytest.mark.parametrize(
    'uri',
    [
        f'data:image/svg+xml,{SVG}',
        f'data:image/svg+xml ,{SVG}',
        f'data:IMAGE/SVG+XML,{SVG}',
        f'data:image/svg+xml\t,{SVG}',
        f'data:text/html,{SVG}',
        'data:image/ä€,x',
        'data:image/x\r\nSet-Cookie: a=b,x',
    ],
)
def test_nothing_that_was_stored_runs_in_the_name_of_the_service(http: httpx.Client, uri: str) -> None:
    _store(http, {'id': 'x', 'text': 'x', 'uri': uri})
    reply = http.get('/v1/originals/x')
    assert (reply.status_code, reply.headers['content-type']) == (200, 'application/octet-stream')
    assert reply.headers['x-content-type-options'] == 'nosniff'
    assert reply.headers['content-security-policy'] == "default-src 'none'; sandbox"
    assert 'set-cookie' not in reply.headers


@pytest.mark.parametrize('site', ['cross-site', 'same-site', None])
@pytest.mark.parametrize('origin', ['https://evil.example', 'http://127.0.0.1:1', 'null'])
def test_a_page_of_another_site_changes_nothing(http: httpx.Client, origin: str, site: str | None) -> None:
    # A browser sends these without asking the service before; only the answer would be kept from the page.
    _store(http, {'id': 'kept', 'text': 'x'})
    headers = {'Origin': origin, **({'Sec-Fetch-Site': site} if site else {})}
    plain = {**headers, 'Content-Type': 'text/plain'}
    clear = http.post('/post', content=b'{"exec_endpoint": "/clear"}', headers=plain)
    form = http.post('/v1/documents', files=[('files', ('a.png', png()))], headers=headers)
    for reply in (clear, form):
        assert (reply.status_code, reply.json()['code']) == (403, 'forbidden')
        assert 'CLIPFLOW_CORS_ORIGINS' in reply.json()['detail']
    assert [doc['id'] for doc in http.get('/v1/documents').json()['documents']] == ['kept']


@pytest.mark.parametrize(
    'name', ['evil.example', 'evil.example:8080', 'localhost.evil.example', '127.0.0.1.evil.example']
)
def test_a_name_that_somebody_let_lead_to_this_machine_reads_nothing(http: httpx.Client, name: str) -> None:
    # The browser takes the page from there for the service's own.
    reply = http.get('/v1/documents', headers={'Host': name, 'Sec-Fetch-Site': 'same-origin'})
    assert (reply.status_code, reply.json()['code']) == (403, 'forbidden')
    assert 'CLIPFLOW_ALLOWED_HOSTS' in reply.json()['detail']


@pytest.mark.parametrize(
    'name', ['localhost', 'LOCALHOST:8080', 'a.localhost', '127.0.0.1:80', '[::1]:8080', '10.0.0.7']
)
def test_names_that_nobody_else_can_own_are_answered(http: httpx.Client, name: str) -> None:
    assert http.get('/v1/documents', headers={'Host': name}).status_code == 200


def test_the_own_page_may_change_things_also_behind_a_proxy(http: httpx.Client) -> None:
    body = {'documents': [{'id': 'a', 'text': 'x'}]}
    own = {'Origin': str(http.base_url).rstrip('/')}
    proxied = {'Origin': 'https://photos.example', 'Sec-Fetch-Site': 'same-origin'}
    assert [http.post('/v1/documents', json=body, headers=h).status_code for h in (own, proxied, {})] == [200] * 3


@pytest.mark.parametrize('field', ['[' * 100_000, '{"a":' * 100_000, 'null', '[1]', '{'])
def test_a_field_of_a_form_that_is_no_object_is_a_problem(http: httpx.Client, field: str) -> None:
    query = http.post('/v1/search', files={'image': png()}, data={'request': field})
    assert (query.status_code, query.json()['code']) == (400, 'invalid-parameter')
    stored = http.post('/v1/documents', files=[('files', ('a.png', png()))], data={'tags': field})
    assert (stored.status_code, stored.json()['code']) == (400, 'invalid-document')


def test_a_form_may_hold_a_thousand_files_with_their_ids_and_a_tag(http: httpx.Client) -> None:
    files = [('files', (f'{n}.png', b'x')) for n in range(1000)]
    ids = [f'id {n}' for n in range(1000)]
    reply = http.post('/v1/documents', files=files, data={'ids': ids, 'tags': '{"album": "x"}'})
    assert [item['id'] for item in reply.json()['documents']] == ids


@pytest.mark.parametrize(
    'body',
    [
        {'exec_endpoint': '/status', 'header': {'request_id': '\ud800'}},
        {'exec_endpoint': '/\ud800'},
        {'exec_endpoint': ['/status']},
        {'exec_endpoint': '/encode', 'data': [{'id': '\ud800', 'text': 5}]},
        {'exec_endpoint': '/', 'data': [{'id': 'x', 'weight': float('nan')}]},
        {'exec_endpoint': '/', 'data': [{'id': 'x', 'weight': 1e300}]},
        {'exec_endpoint': '/', 'data': [{'id': 'x', 'weight': 10**400}]},
        {'exec_endpoint': '/update', 'data': [{'id': 'x', 'embedding': [float('nan')]}]},
        {'exec_endpoint': '/index', 'data': [{'id': 'x', 'text': 'a', 'matches': [{'embedding': [1e39]}]}]},
        {'exec_endpoint': '/encode', 'data': [{'id': 'x', 'tensor': [[[300, 0, 0]]]}]},
        {'exec_endpoint': '/encode', 'data': [{'id': 'x', 'tensor': [[[0, -1, 0]]]}]},
    ],
)
def test_no_body_of_jinas_protocol_is_our_fault(http: httpx.Client, body: dict[str, Any]) -> None:
    reply = http.post('/post', content=json.dumps(body), headers={'Content-Type': 'application/json'})
    assert reply.status_code < 500, reply.text
    if 'data' in body or body['exec_endpoint'] != '/status':
        assert reply.status_code >= 400, reply.text


def test_chunks_in_chunks_are_no_fault_of_ours_however_deep(http: httpx.Client) -> None:
    # At some depth they can still be parsed, but not be made into Documents.
    for depth in (150, 300, *range(440, 500, 3)):
        doc = '{"chunks": [' * depth + '{"text": "x"}' + ']}' * depth
        body = f'{{"exec_endpoint": "/search", "data": [{doc}]}}'
        reply = http.post('/post', content=body, headers={'Content-Type': 'application/json'})
        assert 400 <= reply.status_code < 500, (depth, reply.text)


@pytest.mark.parametrize('host', ['[', '[::1', 'a b', '', '%'])
@pytest.mark.parametrize('path', ['/nothing', '/config.json', '/v1/search/'])
def test_a_host_that_is_none_is_no_fault_of_ours(http: httpx.Client, host: str, path: str) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        connection.sendall(f'GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n'.encode())
        status = int(connection.makefile('rb').readline().split()[1])
    assert status < 500


@pytest.mark.parametrize('path', ['/v1/documents/v1/documents', '/v1/documents/a/v1/documents', '/v1/documents/x'])
def test_only_lines_of_documents_may_be_longer_than_a_request(http: httpx.Client, path: str) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(LIMIT // 2**20 + 1):
            yield b' ' * 2**20

    try:
        reply = http.patch(path, content=body(), headers={'Content-Type': 'application/x-ndjson'})
    except httpx.TransportError:  # it hung up before all was sent
        reply = None
    assert reply is None or (reply.status_code, reply.json()['code']) == (413, 'too-large')


def test_head_is_get_without_the_body(fake: Service, http: httpx.Client) -> None:
    http.post('/v1/documents', files=[('files', ('a.png', png()))]).raise_for_status()
    for path in ('/', '/healthz', '/readyz', '/v1/documents', '/v1/thumbnails/a.png', '/metrics', '/openapi.json'):
        head, get = http.head(path), http.get(path)
        assert (head.status_code, head.content) == (200, b''), path
        assert head.headers['content-type'] == get.headers['content-type']
    assert http.head('/v1/thumbnails/nobody').status_code == 404
    refused = http.head('/v1/search')
    assert (refused.status_code, refused.headers['allow']) == (405, 'POST')
    assert 'POST' in http.get('/v1/search').json()['detail']


@pytest.mark.parametrize('weight', [1e-60, -1e-60, 1e300, -1e300])
def test_a_weight_that_a_document_cannot_hold_is_refused(http: httpx.Client, weight: float) -> None:
    reply = http.post('/v1/search', json={'query': [{'text': 'a', 'weight': weight}, {'text': 'b'}]})
    assert (reply.status_code, reply.json()['code']) == (400, 'invalid-parameter')
    assert 'weight' in reply.json()['detail']

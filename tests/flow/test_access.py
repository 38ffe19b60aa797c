"""Keys, scopes, rate, CORS and TLS on a real service, by gRPC and HTTP."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docarray import Document, DocumentArray
from jina import Client as JinaClient

from clipflow.errors import Forbidden, Unauthorized
from clipflow_client import Client
from service import Service, free_port

READ, WRITE = 'reading-key-1', 'writing-key-1'
ORIGIN = 'https://shop.example'


@pytest.fixture(scope='module')
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {
        'RUNTIME': 'fake',
        'API_KEYS': f'{READ}:read,{WRITE}:write',
        'CORS_ORIGINS': ORIGIN,
        'RATE_LIMIT': '1000',
    }
    with Service(tmp_path_factory.mktemp('guarded'), settings) as running:
        yield running


@pytest.fixture
def web(guarded: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.http, timeout=60, trust_env=False) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {'Authorization': f'Bearer {key}'}


def store(web: httpx.Client, headers: dict[str, str]) -> httpx.Response:
    return web.post('/v1/documents', json={'documents': [{'id': 'a', 'text': 'a text'}]}, headers=headers)


def search(web: httpx.Client, headers: dict[str, str]) -> httpx.Response:
    return web.post('/v1/search', json={'text': 'a'}, headers=headers)


def test_with_keys_it_may_have_any_name(web: httpx.Client) -> None:
    assert search(web, bearer(READ) | {'Host': 'photos.example'}).status_code == 200


def test_http_asks_for_a_key_of_the_right_scope(web: httpx.Client) -> None:
    for headers in ({}, bearer('wrong-key-1'), {'Authorization': 'Basic abc'}):
        reply = search(web, headers)
        assert (reply.status_code, reply.json()['code']) == (401, 'unauthorized')
        assert reply.headers['www-authenticate'] == 'Bearer'
        assert reply.headers['content-type'] == 'application/problem+json'
    assert store(web, bearer(READ)).json()['code'] == 'forbidden'
    assert store(web, bearer(READ)).status_code == 403
    assert store(web, bearer(WRITE)).json()['stored'] == 1
    assert search(web, bearer(READ)).status_code == 200
    assert search(web, {'Authorization': READ}).status_code == 200  # as clip_client sends it
    body = {'exec_endpoint': '/clear', 'data': []}
    assert web.post('/post', json=body, headers=bearer(READ)).status_code == 403


@pytest.mark.parametrize('path', ['/healthz', '/readyz', '/docs', '/openapi.json'])
def test_health_and_description_are_open(web: httpx.Client, path: str) -> None:
    assert web.get(path).status_code == 200


def test_prometheus_needs_a_key_for_reading(web: httpx.Client) -> None:
    assert [web.get('/metrics', headers=headers).status_code for headers in ({}, bearer(READ))] == [401, 200]


def test_the_description_brings_its_scripts_without_a_key(web: httpx.Client) -> None:
    files = re.findall(r'(?:src|href)="(/[^"]+[.](?:js|css))"', web.get('/docs').text)
    assert files
    assert {web.get(name).status_code for name in files} == {200}


def test_what_is_open_opens_nothing_else(web: httpx.Client) -> None:
    for path in ('/page/../v1/status', '/docs/../v1/status', '/v1/status', '//v1/status', '/v1/documents/a'):
        assert web.get(path).status_code in (401, 404), path


def test_grpc_asks_for_a_key_of_the_right_scope(guarded: Service) -> None:
    with Client(guarded.grpc, retries=0) as nobody, pytest.raises(Unauthorized):
        nobody.search('a')
    with Client(guarded.grpc, api_key=READ, retries=0) as reader:
        reader.search('a')
        for write in (lambda: reader.index(['a text']), reader.clear):
            with pytest.raises(Forbidden):
                write()
    with Client(guarded.grpc, api_key=WRITE, retries=0) as writer:
        assert writer.index(['a text'])[0].error is None
    plain = JinaClient(host='127.0.0.1', port=guarded.port)
    found = plain.post('/search', DocumentArray([Document(text='a')]), metadata=(('authorization', READ),))
    assert len(found[0].matches) >= 1
    assert plain.is_flow_ready()


def test_the_commands_send_the_key_of_the_environment(guarded: Service) -> None:
    command = [sys.executable, '-m', 'clipflow.cli.main', 'status', '--json', '--host', guarded.grpc]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (refused.returncode, 'unauthorized' in refused.stderr) == (1, True)
    environment = {**os.environ, 'CLIPFLOW_API_KEY': READ}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert 'indexer' in json.loads(told.stdout)


def test_keys_that_cannot_be_read_stop_the_start_with_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, 'CLIPFLOW_API_KEYS': f'{READ}', 'CLIPFLOW_RUNTIME': 'fake'}
    environment |= {f'CLIPFLOW_{name}_PORT': str(free_port()) for name in ('GRPC', 'HTTP')}
    environment['CLIPFLOW_WORKSPACE'] = str(tmp_path)
    command = [sys.executable, '-m', 'clipflow.cli.main', 'serve']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert 'clipflow: the gateway cannot start: invalid-parameter: API key number 1 is not of the form' in said
    assert 'Traceback' not in said
    assert READ not in said


def test_no_key_is_in_the_log(guarded: Service, web: httpx.Client) -> None:
    search(web, bearer('wrong-key-1'))
    assert not any(key in guarded.log for key in (READ, WRITE, 'wrong-key-1'))


def test_a_page_of_a_named_origin_may_change_things_and_no_other(web: httpx.Client) -> None:
    def from_page(origin: str) -> int:
        headers = bearer(WRITE) | {'Origin': origin, 'Sec-Fetch-Site': 'cross-site'}
        return store(web, headers).status_code

    assert [from_page(origin) for origin in (ORIGIN, 'https://other.example')] == [200, 403]


def test_pages_of_a_named_origin_may_call(web: httpx.Client) -> None:
    asked = {'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization'}
    allowed = web.options('/v1/search', headers={'Origin': ORIGIN, **asked})
    assert (allowed.status_code, allowed.headers['access-control-allow-origin']) == (200, ORIGIN)
    refused = web.options('/v1/search', headers={'Origin': 'https://other.example', **asked})
    assert (refused.status_code, 'access-control-allow-origin' in refused.headers) == (400, False)
    # A refusal can be read by the page too.
    assert search(web, {'Origin': ORIGIN}).headers['access-control-allow-origin'] == ORIGIN


@pytest.mark.parametrize('keys', ['', f'{READ}:read'])
def test_nobody_asks_more_often_by_writing_the_header_in_another_way(tmp_path: Path, keys: str) -> None:
    with (
        Service(tmp_path / 'workspace', {'RUNTIME': 'fake', 'RATE_LIMIT': '0.001', 'API_KEYS': keys}) as running,
        httpx.Client(base_url=running.http, timeout=60, trust_env=False) as web,
    ):
        ways = [bearer(READ), bearer('  ' + READ), {'Authorization': READ}, {'Authorization': f'bearer {READ}'}]
        assert [search(web, headers).status_code for headers in ways] == [200, 429, 429, 429]
        wrong = [search(web, bearer(f'wrong-key-{n}')).status_code for n in range(3)]
        assert wrong == ([401, 429, 429] if keys else [429] * 3)


@pytest.mark.skipif(shutil.which('openssl') is None, reason='openssl makes the certificate, and is not installed')
def test_tls_holds_for_both_protocols_and_the_rate_is_limited(tmp_path: Path) -> None:
    certificate, key = tmp_path / 'cert.pem', tmp_path / 'key.pem'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost']
    command += ['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', str(key), '-out', str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    settings = {'RUNTIME': 'fake', 'TLS_CERTIFICATE': str(certificate), 'TLS_KEY': str(key), 'RATE_LIMIT': '0.5'}
    with Service(tmp_path / 'workspace', settings) as running:
        place = running.http.replace('http://', 'https://')
        with httpx.Client(
            base_url=place, verify=ssl.create_default_context(cafile=certificate), timeout=60, trust_env=False
        ) as web:
            replies = [search(web, {}) for _ in range(10)]
            assert replies[0].status_code == 200
            late = next(reply for reply in replies if reply.status_code == 429)
            assert (late.json()['code'], late.headers['retry-after']) == ('overloaded', '1')
        with httpx.Client(base_url=running.http, trust_env=False) as plain, pytest.raises(httpx.TransportError):
            plain.get('/healthz')
        code = 'import sys; from clipflow_client import Client; print(len(Client(sys.argv[1]).status()))'
        environment = {**os.environ, 'GRPC_DEFAULT_SSL_ROOTS_FILE_PATH': str(certificate)}
        told = subprocess.run(
            [sys.executable, '-c', code, f'grpcs://{running.grpc}'],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert told.stdout.split() == ['4'], told.stderr

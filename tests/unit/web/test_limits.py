"""Bodies that are too large, too slow or too many, at the application without a Flow."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from docarray import DocumentArray

from clipflow.access import Access
from clipflow.metrics import Metrics
from clipflow.settings import GatewaySettings
from clipflow.web.app import create_app

READ = 'reading-key-1'
JSON = {'Content-Type': 'application/json'}
LINES = {'Content-Type': 'application/x-ndjson'}
LIMIT = 1000


async def _flow(_: str, docs: DocumentArray, __: Any) -> DocumentArray:
    return docs


def client(keys: str = '', **settings: Any) -> httpx.AsyncClient:
    given = {'max_request_bytes': LIMIT, **settings}
    app = create_app(_flow, GatewaySettings.load(**given), Access.of(keys, None), Metrics())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://localhost')


def code_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()['code']


async def _endless(gone: asyncio.Event, start: bytes = b'{') -> AsyncIterator[bytes]:
    yield start
    await gone.wait()
    yield b''


def line(number: int) -> bytes:
    return json.dumps({'id': f'l{number}', 'text': 'x' * 100}).encode() + b'\n'


def test_a_body_that_never_ends_is_given_up() -> None:
    async def ask() -> httpx.Response:
        async with client(request_timeout=0.2) as web:
            return await web.post('/v1/search', content=_endless(asyncio.Event()), headers=JSON)

    reply = asyncio.run(asyncio.wait_for(ask(), 30))
    assert code_of(reply) == (504, 'timeout')
    assert reply.headers['connection'] == 'close'


def test_an_answer_may_take_longer_than_its_body() -> None:
    async def slow(_: str, docs: DocumentArray, __: Any) -> DocumentArray:
        await asyncio.sleep(1.5)
        return docs

    async def ask() -> httpx.Response:
        app = create_app(slow, GatewaySettings.load(request_timeout=1), Access({}), Metrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://localhost') as web:
            return await web.post('/v1/documents', json={'documents': [{'id': 'a', 'text': 'x'}]})

    assert asyncio.run(ask()).status_code == 200


def test_lines_may_take_longer_than_a_request() -> None:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(5):
            yield line(number)
            await asyncio.sleep(0.5)

    async def ask() -> httpx.Response:
        async with client(request_timeout=2) as web:
            return await web.post('/v1/documents', content=lines(), headers=LINES)

    assert len(asyncio.run(ask()).text.splitlines()) == 5


def test_many_bodies_at_once_hold_no_more_than_there_is_for_all() -> None:
    async def ask() -> tuple[list[httpx.Response], httpx.Response]:
        gone = asyncio.Event()
        async with client() as web:
            asked = [
                asyncio.ensure_future(web.post('/v1/search', content=_endless(gone, b' ' * LIMIT), headers=JSON))
                for _ in range(17)
            ]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            gone.set()
            return await asyncio.gather(*asked), await web.post('/v1/encode', json={'inputs': [{'text': 'a'}]})

    replies, later = asyncio.run(asyncio.wait_for(ask(), 30))
    assert sorted(map(code_of, replies)) == [(400, 'invalid-parameter')] * 16 + [(429, 'overloaded')]
    assert max(replies, key=lambda reply: reply.status_code).headers['retry-after'] == '1'
    assert later.status_code == 200


@pytest.mark.parametrize(
    'kind', ['application/x-ndjson', 'Application/X-NDJSON', 'application/x-ndjson; charset=utf-8']
)
def test_lines_may_be_longer_together_however_their_type_is_written(kind: str) -> None:
    async def ask() -> httpx.Response:
        async with client() as web:
            content = b''.join(map(line, range(40)))
            return await web.post('/v1/documents', content=content, headers={'Content-Type': kind})

    assert [json.loads(answer)['error'] for answer in asyncio.run(ask()).text.splitlines()] == [None] * 40


def test_a_key_for_reading_stores_no_lines() -> None:
    async def ask() -> httpx.Response:
        async with client(f'{READ}:read') as web:
            return await web.post('/v1/documents', content=line(1), headers={**LINES, 'Authorization': READ})

    assert code_of(asyncio.run(ask())) == (403, 'forbidden')


def test_tags_that_are_too_long_for_so_many_files_are_refused() -> None:
    async def ask(count: int) -> httpx.Response:
        async with client(max_request_bytes=10_000) as web:
            files = [('files', (f'{n}.png', b'x')) for n in range(count)]
            return await web.post('/v1/documents', files=files, data={'tags': json.dumps({'a': 'x' * 3000})})

    assert asyncio.run(ask(3)).status_code == 200
    assert code_of(asyncio.run(ask(4))) == (413, 'too-large')

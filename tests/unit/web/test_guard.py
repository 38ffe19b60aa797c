"""Under which names the service answers."""

import asyncio

import httpx
import pytest
from docarray import DocumentArray

from clipflow.access import Access
from clipflow.metrics import Metrics
from clipflow.settings import GatewaySettings
from clipflow.web.app import create_app
from clipflow.web.guard import is_local


async def _flow(*_: object) -> DocumentArray:
    return DocumentArray()


def answered(host: str, allowed: str, *, local: bool = True) -> int:
    app = create_app(_flow, GatewaySettings.load(allowed_hosts=allowed), Access({}), Metrics(), local=local)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://localhost') as client:
            return (await client.get('/v1/documents', headers={'Host': host})).status_code

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ('host', 'allowed', 'expected'),
    [
        ('photos.example', '', 403),
        ('photos.example', 'photos.example', 200),
        ('photos.example:8080', 'other.example, Photos.example', 200),
        ('evil.example', 'photos.example', 403),
        ('evil.example', '*', 200),
    ],
)
def test_names_can_be_allowed(host: str, allowed: str, expected: int) -> None:
    assert answered(host, allowed) == expected


def test_what_the_network_reaches_may_have_any_name_unless_some_are_given() -> None:
    assert answered('photos.example', '', local=False) == 200
    found = [answered(host, 'localhost', local=False) for host in ('photos.example', 'localhost:8080')]
    assert found == [403, 200]


@pytest.mark.parametrize(
    ('host', 'expected'),
    [
        ('127.0.0.1', True),
        ('127.1.2.3', True),
        ('localhost', True),
        ('::1', True),
        ('0.0.0.0', False),
        ('gateway', False),
    ],
)
def test_where_only_this_machine_reaches_it(host: str, expected: bool) -> None:
    assert is_local(host) == expected

"""What the door lets in when it is full."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from docarray import DocumentArray
from jina.types.request.data import DataRequest

from clipflow import access
from clipflow.access import Access
from clipflow.border.door import Door
from clipflow.errors import Overloaded
from clipflow.settings import GatewaySettings


async def _answered(request: DataRequest, deadline: float) -> DataRequest:
    return request


def full() -> Door:
    handler: Any = SimpleNamespace(streamer=SimpleNamespace(_streamer=SimpleNamespace()), executor=None)
    route: Any = SimpleNamespace(send=_answered)
    door = Door(handler, route, GatewaySettings(max_in_flight=1), Access({}), 32)
    door.inside = 1
    return door


def test_a_full_service_says_how_it_is_and_nobody_else_gets_in_by_that_endpoint() -> None:
    async def ask() -> None:
        door = full()
        with pytest.raises(Overloaded):
            await door.call('/status', DocumentArray(), {})
        access.probing.set(True)
        assert not await door.call('/status', DocumentArray(), {})
        assert door.inside == 1

    asyncio.run(ask())

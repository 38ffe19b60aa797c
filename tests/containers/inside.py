"""What runs in a process of its own inside the network namespace: probes, and load on the service."""

import asyncio
import itertools
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clipflow.errors import ClipflowError
from clipflow_client import AsyncClient

from .engine import enter

T = TypeVar('T')
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def serving(address: str, service: str, timeout: float) -> bool:
    """A gRPC probe, as the kubelet does it."""
    with grpc.insecure_channel(address, [('grpc.enable_http_proxy', 0)]) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=service)
            reply = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def answers(url: str, timeout: float) -> bool:
    """An HTTP probe, as the kubelet does it."""
    try:
        with _OPENER.open(url, timeout=timeout) as reply:
            return 200 <= int(reply.status) < 400
    except (OSError, urllib.error.HTTPError):
        return False


@dataclass(frozen=True)
class Search:
    """What became of one search: when it began, on the clock that all processes share; how long it took; its error."""

    at: float
    seconds: float
    error: str = ''
    partial: bool = False


class Load:
    """Searches at a steady rate, whether or not the earlier ones have been answered, until `stop`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._searches: list[Search] = []
        self._thread = threading.Thread()

    def start(self, address: str, rate: float, retries: int) -> None:
        """Begin to search at `address`, `rate` times a second, each sent again up to `retries` times."""
        self._stop.clear()
        self._searches = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(address, rate, retries)))
        self._thread.start()

    def so_far(self) -> list[Search]:
        """Those that have ended."""
        return list(self._searches)

    def stop(self) -> list[Search]:
        """Wait for the last answers; all searches."""
        self._stop.set()
        self._thread.join()
        return self._searches

    async def _run(self, address: str, rate: float, retries: int) -> None:
        async with AsyncClient(address, timeout=60, retries=retries) as client:
            begun, running = time.monotonic(), set[asyncio.Task[None]]()
            for number in itertools.count():
                if self._stop.is_set():
                    break
                running.add(task := asyncio.create_task(self._search(client, number)))
                task.add_done_callback(running.discard)
                await asyncio.sleep(max(0.0, begun + (number + 1) / rate - time.monotonic()))
            await asyncio.gather(*running)

    async def _search(self, client: AsyncClient, number: int) -> None:
        at, error, partial = time.monotonic(), '', False
        try:
            partial = (await client.search(f'query {number} at {at}', limit=3)).partial
        except ClipflowError as failure:
            error = f'{failure!r}'
        self._searches.append(Search(at, time.monotonic() - at, error, partial))


class _Caller:
    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Inside(BaseManager):
    """The process; a thread of its own serves each thread that calls."""

    Caller: Callable[[], Any]
    Load: Callable[[], Load]

    @classmethod
    def of(cls, namespace: str) -> 'Inside':
        """Start it."""
        manager = cls(ctx=get_context('spawn'))
        manager.start(enter, (namespace,))
        manager.caller = manager.Caller()
        return manager

    caller: Any

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of a module there."""
        found: T = self.caller.call(function, *arguments)
        return found


Inside.register('Caller', _Caller)
Inside.register('Load', Load)

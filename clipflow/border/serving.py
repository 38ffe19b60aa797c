"""How a process answers on its port: whether it can work, how long connections last, and how it ends.

Jina says SERVING as soon as a port is open, and at SIGTERM cancels what is inside. Here the health service
(`grpc.health.v1`) tells the truth, and a process that is told to stop first says so, then answers what it has taken.
"""

import asyncio
import atexit
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from grpc_health.v1 import health, health_pb2
from jina.serve.runtimes.servers.grpc import GRPCServer

LIVENESS = 'liveness'
"""Service name for which health is SERVING as long as the process answers; the name '' tells whether it can work."""
OPTIONS: dict[str, Any] = {
    # Connections end now and then, so that callers look for new replicas: gRPC asks DNS again only when one breaks.
    'grpc.max_connection_age_ms': 30_000,
    # After that, what is inside may take as long as any request.
    'grpc.max_connection_age_grace_ms': 660_000,
    # Callers ask every few seconds whether a silent connection still lives; gRPC takes that for an attack otherwise.
    'grpc.http2.min_recv_ping_interval_without_data_ms': 1000,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc.http2.max_ping_strikes': 0,
}
_FINISH_SECONDS = 660.0
"""For what is inside at the end; whoever supervises the process may have less patience."""
_WORKS_SECONDS = 3.0

Works = Callable[[], Awaitable[bool]]


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Answers what it is asked at that moment.

    Args:
        works: whether the process can do its work; it is given up after three seconds.
    """

    def __init__(self, works: Works) -> None:
        super().__init__()
        self._works = works
        self.draining = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        """See `grpc.health.v1`."""
        if request.service == LIVENESS:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        if request.service == '' and not await self.ready():
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return await super().Check(request, context)

    async def ready(self) -> bool:
        """Whether new requests should come here."""
        if self.draining:
            return False
        try:
            return await asyncio.wait_for(self._works(), _WORKS_SECONDS)
        except TimeoutError:
            return False


def prepare(server: GRPCServer, works: Works) -> Health:
    """Give Jina's gRPC server our options and our health service; to be called before it is set up."""
    server.grpc_server_options = {**OPTIONS, **(server.grpc_server_options or {})}
    server.health_servicer = own = Health(works)
    return own


async def finish(server: GRPCServer) -> None:
    """Take nothing new, and wait until what is inside has been answered."""
    await server.server.stop(_FINISH_SECONDS)


def install(works: Works, seconds: float) -> None:
    """Let the gRPC server that Jina makes of a stage serve our way; to be called before it opens its port.

    Args:
        works: see `Health`.
        seconds: for which it still takes requests when it is told to stop, and says that it is not ready.
    """
    set_up, shut_down = GRPCServer.setup_server, GRPCServer.shutdown

    async def setup_server(self: GRPCServer) -> None:
        prepare(self, works)
        await set_up(self)

    async def shutdown(self: GRPCServer) -> None:
        if self.health_servicer.draining:  # Jina calls this twice
            return
        self.health_servicer.draining = True
        await asyncio.sleep(seconds)
        await finish(self)
        await shut_down(self)
        atexit.register(_leave)

    GRPCServer.setup_server, GRPCServer.shutdown = setup_server, shutdown


def _leave() -> None:
    """End a process of which everything has been closed: gRPC's threads may fault while Python takes itself apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

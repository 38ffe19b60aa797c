"""The gateway: gRPC for any jina.Client, and our HTTP application. See README.md beside this file."""

import asyncio
import logging
import sys
from typing import Any

from fastapi import FastAPI
from jina.enums import ProtocolType
from jina.excepts import InternalNetworkError
from jina.serve.runtimes.gateway.gateway import BaseGateway
from jina.serve.runtimes.gateway.grpc import GRPCGateway
from jina.serve.runtimes.gateway.http.fastapi import FastAPIBaseGateway
from jina.serve.runtimes.servers.composite import CompositeBaseServer

from clipflow import logs, tracing
from clipflow.access import Access, check_certificate
from clipflow.border import serving
from clipflow.border.control import listen_to_launcher
from clipflow.border.door import Door
from clipflow.border.process import prepare_process
from clipflow.border.route import Route
from clipflow.border.stage import CHANNEL_OPTIONS
from clipflow.errors import ClipflowError
from clipflow.settings import GatewaySettings
from clipflow.web.app import create_app
from clipflow.web.guard import is_local

_KEEP_ALIVE_SECONDS = 75
"""For which an idle HTTP connection stays: longer than proxies keep theirs, or they send into a closed one."""


class ClipflowGrpc(GRPCGateway):  # type: ignore[misc]
    """Serves the door by gRPC."""

    health: serving.Health

    async def setup_server(self) -> None:
        """Open the port."""
        self.health = serving.prepare(self, _always)
        await super().setup_server()

    async def finish(self) -> None:
        """Take nothing new, and answer what is inside."""
        await serving.finish(self)


async def _always() -> bool:
    return True


class ClipflowHttp(FastAPIBaseGateway):  # type: ignore[misc]
    """Serves our FastAPI application; Jina starts and stops uvicorn."""

    clipflow_app: FastAPI

    @property
    def app(self) -> FastAPI:
        """The application, read once at the start."""
        # Jina warns about every application that has a page of its own at "/".
        self.logger.logger.setLevel('ERROR')
        return self.clipflow_app

    async def finish(self) -> None:
        """Take nothing new, and answer what is inside."""
        self.server.should_exit = True
        await self.server.shutdown()


class ClipflowGateway(CompositeBaseServer, BaseGateway):  # type: ignore[misc]
    """One door, two servers."""

    def __init__(self, **given: Any) -> None:
        given['runtime_args']['grpc_channel_options'] = CHANNEL_OPTIONS
        super().__init__(**given)
        prepare_process()
        try:
            settings = GatewaySettings.load()
            log = logs.configure(settings.log_format, 'gateway')
            route = Route.of(self.runtime_args, settings.shard_timeout)
            access = Access.of(settings.api_keys, settings.api_keys_file)
            if settings.tls_certificate is not None and settings.tls_key is not None:
                check_certificate(settings.tls_certificate, settings.tls_key)
        except ClipflowError as error:
            print(f'clipflow: the gateway cannot start: {error!r}', file=sys.stderr, flush=True)
            logging.disable(logging.CRITICAL)  # the cause is said; Jina would add traces of its own
            raise
        door = Door(self._request_handler, route, settings, access, int(self.runtime_args.prefetch or 32))
        tracing.start(settings.otlp_endpoint, 'gateway')
        app = create_app(door.call, settings, access, door.metrics, local=is_local(str(self.runtime_args.host)))
        self.servers = []
        for arguments in self._server_kwargs:
            arguments['req_handler'] = door
            if settings.tls_certificate is not None:
                arguments |= {'ssl_certfile': str(settings.tls_certificate), 'ssl_keyfile': str(settings.tls_key)}
            if arguments['runtime_args']['protocol'] == ProtocolType.HTTP:
                server = ClipflowHttp(**arguments, uvicorn_kwargs={'timeout_keep_alive': _KEEP_ALIVE_SECONDS})
                server.clipflow_app = app
            else:
                server = ClipflowGrpc(**arguments)
            self.servers.append(server)
        self.gateways = self.servers
        self._log, self._door, self._route = log, door, route
        self._app, self._drain_seconds = app, settings.drain_seconds

    async def setup_server(self) -> None:
        """Start both servers."""
        asyncio.get_running_loop().set_exception_handler(self._report)
        self._control = await listen_to_launcher(self._door.gate, self._route, self._door.probe)
        await super().setup_server()

    async def shutdown(self) -> None:
        """Say so, take requests for as long as callers need to learn of it, answer what is inside, and end."""
        if getattr(self._app.state, 'draining', False):  # Jina calls this twice
            return
        self._app.state.draining = True
        for server in self.servers:
            if isinstance(server, ClipflowGrpc):
                server.health.draining = True
        await asyncio.sleep(self._drain_seconds)
        await asyncio.gather(*(server.finish() for server in self.servers))
        # Only now: this closes the channels to the stages.
        await super().shutdown()

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Jina asks the stages for their endpoints in a task of its own; that one was away is one line, no trace."""
        if isinstance(context.get('exception'), InternalNetworkError):
            self._log.warning('a stage cannot be reached yet')
        else:
            loop.default_exception_handler(context)

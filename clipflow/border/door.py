"""The door of the Flow: every request, by gRPC or HTTP, is checked here and gets its deadline.

Jina's own gateway would pass unknown endpoints silently, raise network errors out of a stream, and send traces to
clients. The door replaces its request function and stands before its gRPC services; what it lets in goes by `route`.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Protocol

from docarray import Document, DocumentArray
from google.protobuf.json_format import Error as JsonError
from google.protobuf.message import DecodeError
from jina import __version__ as jina_version
from jina.proto import jina_pb2
from jina.serve.executors import __dry_run_endpoint__
from jina.serve.runtimes.gateway.request_handling import GatewayRequestHandler
from jina.types.request.data import DataRequest

from clipflow import __version__, access, errors, logs, tracing, wire
from clipflow.access import Access
from clipflow.border.gate import Gate
from clipflow.border.heads import Heads
from clipflow.border.route import Route
from clipflow.border.together import Together
from clipflow.errors import (
    ClipflowError,
    Internal,
    InvalidDocument,
    InvalidParameter,
    Overloaded,
    TooLarge,
)
from clipflow.metrics import Metrics
from clipflow.settings import GatewaySettings

_OWNER = '_clipflow_stream_tasks'
_IDENTITY = '_clipflow_identity'
_NOT_FROM_CLIENTS = ('__results__', wire.MODEL_NAME, wire.TRACE, wire.CANDIDATES, wire.HEAD)


class _Call(Protocol):
    """What of gRPC's servicer context is used."""

    def invocation_metadata(self) -> Any: ...

    def time_remaining(self) -> float | None: ...


class _Identity:
    """Who asks by gRPC."""

    def __init__(self, access: Access, metadata: dict[str, Any]) -> None:
        self._access, self._key = access, str(metadata.get('authorization', ''))
        self.trace = str(metadata.get('traceparent', ''))

    def check(self, endpoint: str) -> None:
        """Raises Unauthorized or Forbidden."""
        access.check(self._access.scope(self._key), endpoint)


class Door:
    """Stands in for Jina's request handler in the gateway's servers.

    Args:
        handler: Jina's own, for what it offers beside requests.
        route: the way through the stages.
        settings: limits of the gateway.
        access: who may ask.
        prefetch: requests of one stream that are inside at once; a client may ask for less, not for more.
    """

    def __init__(
        self,
        handler: GatewayRequestHandler,
        route: Route,
        settings: GatewaySettings,
        access: Access,
        prefetch: int,
    ) -> None:
        self._handler = handler
        self._route = route
        self._settings = settings
        self._access = access
        self._prefetch = prefetch
        self._log = logging.getLogger('clipflow.gateway')
        self.streamer = handler.streamer
        self.executor = handler.executor
        self.inside = 0
        self.gate = Gate()
        self._heads = Heads(route.send)
        self._together = Together(self._heads.send)
        self.metrics = Metrics()
        self.metrics.in_flight.set_function(lambda: self.inside)
        self.streamer._streamer._request_handler = self._admit
        self.Call = self.stream

    # -- gRPC services ------------------------------------------------------------------------------------------------

    async def stream(self, request_iterator: AsyncIterator[DataRequest], context: _Call) -> AsyncIterator[DataRequest]:
        """JinaRPC: requests of one client, `prefetch` of them inside at once. When the client goes, so do they."""
        metadata = dict(context.invocation_metadata() or ())
        identity = _Identity(self._access, metadata)
        asked = metadata.get('__prefetch__', '')
        tasks: set[asyncio.Future[DataRequest]] = set()

        async def arriving() -> AsyncIterator[DataRequest]:
            async for request in request_iterator:
                self._limit_time(request, context)
                setattr(request, _OWNER, tasks)
                setattr(request, _IDENTITY, identity)
                yield request

        try:
            async for reply in self.streamer._streamer.stream(
                arriving(),
                results_in_order=metadata.get('__results_in_order__') == 'true',
                prefetch=min(self._prefetch, int(asked)) if str(asked).isdigit() and int(asked) else self._prefetch,
            ):
                yield reply
        finally:
            for task in tasks:
                task.cancel()

    async def process_single_data(self, request: DataRequest, context: _Call | None = None) -> DataRequest:
        """JinaSingleDataRequestRPC: one request, one reply."""
        if context is not None:
            self._limit_time(request, context)
            setattr(request, _IDENTITY, _Identity(self._access, dict(context.invocation_metadata() or ())))
        return await self._answer(request)

    async def dry_run(self, empty: Any, context: Any) -> Any:
        """`Client.is_flow_ready()`: whether an empty request passes through every stage."""
        request = DataRequest()
        request.header.exec_endpoint = __dry_run_endpoint__
        request.data.docs = DocumentArray([Document()])
        return (await self._answer(request)).proto.header.status

    async def probe(self) -> None:
        """Raises ClipflowError unless an empty request passes through every stage."""
        status = await self.dry_run(None, None)
        if status.code == jina_pb2.StatusProto.ERROR:
            raise errors.from_description(status.description)

    async def endpoint_discovery(self, empty: Any, context: Any) -> Any:
        """What the Flow answers."""
        return jina_pb2.EndpointsProto(endpoints=list(wire.ENDPOINTS))

    async def _status(self, empty: Any, context: Any) -> jina_pb2.JinaInfoProto:
        """Versions only; Jina would send the environment."""
        return jina_pb2.JinaInfoProto(jina={'jina': jina_version, 'clipflow': __version__})

    async def close(self) -> None:
        """Let what is inside finish."""
        await self._handler.close()
        await self._route.close()

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def call(self, endpoint: str, docs: DocumentArray, parameters: dict[str, Any]) -> DocumentArray:
        """One request from our own HTTP application.

        Raises:
            ClipflowError: what the Flow answered.
        """
        request = DataRequest()
        request.header.request_id = logs.request_id.get() or uuid.uuid4().hex
        request.header.exec_endpoint = endpoint
        request.parameters = parameters
        request.data.docs = docs
        reply = await self.process_single_data(request)
        if reply.status.code == jina_pb2.StatusProto.ERROR:
            raise errors.from_description(reply.status.description)
        return reply.docs

    # -- every request ------------------------------------------------------------------------------------------------

    def _limit_time(self, request: DataRequest, context: _Call) -> None:
        remaining = context.time_remaining()
        if remaining is not None and wire.DEADLINE not in request.proto_wo_data.parameters:
            request.proto_wo_data.parameters[wire.DEADLINE] = time.time() + remaining

    def _admit(self, request: DataRequest, return_type: Any = None) -> tuple['asyncio.Future[DataRequest]', None]:
        task = asyncio.ensure_future(self._answer(request))
        tasks: set[asyncio.Future[DataRequest]] | None = getattr(request, _OWNER, None)
        if tasks is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task, None

    async def _answer(self, request: DataRequest) -> DataRequest:
        """Answer, and count what became of it."""
        begun = time.perf_counter()
        # A request that has been looked into has no bytes of its own any more.
        reply = await self._reply(request, len(request.buffer) if request.buffer else request.proto.ByteSize())
        seconds = time.perf_counter() - begun
        endpoint = request.header.exec_endpoint
        endpoint = endpoint if endpoint in wire.ENDPOINTS else 'unknown'
        failed = reply.status.code == jina_pb2.StatusProto.ERROR
        code = errors.from_description(reply.status.description).code if failed else 'ok'
        stages = [(r.executor, (r.end_time.ToNanoseconds() - r.start_time.ToNanoseconds()) / 1e9) for r in reply.routes]
        self.metrics.request(endpoint, code, seconds, stages[1:])
        if self._settings.log_requests:
            spent = ', '.join(f'{name} {taken * 1000:.1f}' for name, taken in stages[1:])
            identifier = {'request': request.header.request_id}
            self._log.info('%s %s in %.1f ms (%s)', endpoint, code, seconds * 1000, spent, extra=identifier)
        return reply

    async def _reply(self, request: DataRequest, size: int) -> DataRequest:
        try:
            deadline = self._check(request, size)
            # That a service is full has to be seen.
            places = 0 if access.probing.get() else 1
            if places and self.inside >= self._settings.max_in_flight:
                raise Overloaded(f'{self.inside} requests are being served; try again a little later')
            self.inside += places
            try:
                reply = await self._send(request, deadline)
            finally:
                self.inside -= places
            if reply.status.code != jina_pb2.StatusProto.ERROR:
                return reply
            raise self._executor_error(reply)
        except ClipflowError as error:
            return _refusal(request, error)
        except Exception:
            self._log.exception('request %s failed in the gateway', request.header.request_id)
            return _refusal(request, Internal(f'the gateway failed; see its log under {request.header.request_id}'))

    async def _send(self, request: DataRequest, deadline: float) -> DataRequest:
        header, identity = request.header, getattr(request, _IDENTITY, None)
        caller = identity.trace if identity is not None else tracing.parent.get()
        with tracing.span(header.exec_endpoint, caller, request_id=header.request_id) as trace:
            if trace:
                request.proto_wo_data.parameters[wire.TRACE] = trace
            if header.exec_endpoint not in wire.WRITES:
                return await self._together.send(request, deadline)
            async with self.gate.passed(deadline):
                return await self._heads.send(request, deadline)

    def _check(self, request: DataRequest, size: int) -> float:
        """Refuse what cannot be served, before any work; returns the deadline in seconds since the epoch."""
        if size > self._settings.max_request_bytes:
            limit = self._settings.max_request_bytes
            raise TooLarge(f'the request has {size:,} bytes, more than the {limit:,} allowed; send less at once')
        try:
            header, struct = request.header, request.proto_wo_data.parameters
            given = request.parameters
        except (DecodeError, JsonError, ValueError):
            raise InvalidParameter('the request cannot be read (numbers not finite, nested too deeply?)') from None
        identity: _Identity | None = getattr(request, _IDENTITY, None)
        if header.exec_endpoint == __dry_run_endpoint__:
            return time.time() + self._settings.request_timeout
        for name in [name for name in struct if name in _NOT_FROM_CLIENTS]:
            del struct[name]
        header.exec_endpoint, model = wire.parse_endpoint(header.exec_endpoint)
        if identity is not None:  # HTTP has been checked before
            identity.check(header.exec_endpoint)
        parameters = wire.ENDPOINTS[header.exec_endpoint].parse(given)
        parameters.check_deadline()
        deadline = parameters.deadline or time.time() + self._settings.request_timeout
        struct[wire.DEADLINE] = deadline
        struct[wire.REQUEST_ID] = header.request_id
        if model:
            struct[wire.MODEL_NAME] = model
        return deadline

    def _executor_error(self, reply: DataRequest) -> ClipflowError:
        status = reply.status
        error = errors.from_description(status.description)
        if status.exception.name == type(error).__name__:
            return error
        # It arose in Jina before our code had it; a message that protobuf refuses is the only known cause.
        trace = ''.join(status.exception.stacks)
        self._log.error('request %s: %s\n%s', reply.header.request_id, status.description, trace)
        if status.exception.name == 'DecodeError':
            return InvalidDocument('the request holds a document that cannot be read (nested too deeply?)')
        return Internal(f'a stage failed; see its log under {reply.header.request_id}')


def _refusal(request: DataRequest, error: ClipflowError) -> DataRequest:
    """A reply without documents: `code: sentence`, no trace."""
    reply = DataRequest()
    reply.header.CopyFrom(request.header)
    reply.routes.extend(request.routes)
    status = reply.header.status
    status.code = jina_pb2.StatusProto.ERROR
    status.description = repr(error)
    status.exception.name = type(error).__name__
    return reply

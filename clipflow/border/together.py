"""Queries of several callers as one request: what arrives while others are on their way waits, and goes on together.

A call of a stage costs as much for one short text as for ten, so that 32 callers at once are answered several times
faster. Alone, a query waits for nobody.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from jina.proto.jina_pb2 import DataRequestProto
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.errors import Timeout

FLIGHTS = 2
"""Requests of one kind that are on their way at once: while one is searched, the next is encoded."""
LATE_SECONDS = 0.5
"""After that one does not count any more: it may hang at a replica that is frozen, while another one is free."""
MOST = 32
_LARGEST = 64 * 1024
_OWN = (wire.DEADLINE, wire.REQUEST_ID)

Send = Callable[[DataRequest, float], Awaitable[DataRequest]]


@dataclass
class _Query:
    request: DataRequest
    deadline: float
    answer: 'asyncio.Future[DataRequest]'


@dataclass
class _Line:
    """Queries with the same parameters."""

    waiting: deque[_Query] = field(default_factory=deque)
    flights: dict[int, float] = field(default_factory=dict)
    """When each request that is on its way began it, monotonic seconds."""


class Together:
    """See the module.

    Args:
        send: passes a request through the stages; its deadline is in seconds since the epoch.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lines: dict[bytes, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        """As `send`, with others' or alone.

        Raises:
            ClipflowError: what the stages answered, or the deadline has passed.
        """
        kind = _kind(request)
        if kind is None:
            return await self._send(request, deadline)
        line = self._lines.setdefault(kind, _Line())
        query = _Query(request, deadline, asyncio.get_running_loop().create_future())
        line.waiting.append(query)
        late = time.monotonic() - LATE_SECONDS
        if sum(begun > late for begun in line.flights.values()) < FLIGHTS:
            self._take_off(kind, line)
        try:
            return await asyncio.wait_for(query.answer, max(0.001, deadline - time.time()))
        except TimeoutError:
            raise Timeout('the query was not answered in time; ask for less or allow more time') from None

    def _take_off(self, kind: bytes, line: _Line) -> None:
        number = next(self._numbers)
        line.flights[number] = time.monotonic()
        task = asyncio.create_task(self._fly(kind, line, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, kind: bytes, line: _Line, number: int) -> None:
        try:
            while queries := _next(line.waiting):
                line.flights[number] = time.monotonic()
                await self._answer(queries)
        finally:
            del line.flights[number]
            if not line.flights:
                self._lines.pop(kind, None)

    async def _answer(self, queries: list[_Query]) -> None:
        try:
            if len(queries) == 1:
                replies = [await self._send(queries[0].request, queries[0].deadline)]
            else:
                deadline = max(query.deadline for query in queries)
                replies = _parted(await self._send(_joined(queries, deadline), deadline), queries)
        except Exception as error:
            for query in queries:
                if not query.answer.done():
                    query.answer.set_exception(error)
            return
        for query, reply in zip(queries, replies, strict=True):
            if not query.answer.done():
                query.answer.set_result(reply)


def _kind(request: DataRequest) -> bytes | None:
    """What queries have in common that may go together; None for what goes alone."""
    if request.header.exec_endpoint != '/search' or request.header.target_executor:
        return None
    if request.proto.ByteSize() > _LARGEST:
        return None
    message = request.proto_with_data
    if wire.TRACE in message.parameters or len(message.data.docs.docs) != 1:
        return None
    parameters = type(message.parameters)()
    parameters.CopyFrom(message.parameters)
    for name in _OWN:
        if name in parameters:
            del parameters[name]
    return bytes(parameters.SerializeToString(deterministic=True))


def _next(waiting: deque[_Query]) -> list[_Query]:
    """The oldest whose callers have not gone."""
    found: list[_Query] = []
    while waiting and len(found) < MOST:
        query = waiting.popleft()
        if not query.answer.done():
            found.append(query)
    return found


def _joined(queries: list[_Query], deadline: float) -> DataRequest:
    message = DataRequestProto()
    message.CopyFrom(queries[0].request.proto_with_data)
    message.parameters[wire.DEADLINE] = deadline
    message.parameters[wire.REQUEST_ID] = ' '.join(query.request.header.request_id for query in queries)
    for query in queries[1:]:
        message.data.docs.docs.extend(query.request.proto_with_data.data.docs.docs)
    return DataRequest(message)


def _parted(reply: DataRequest, queries: list[_Query]) -> list[DataRequest]:
    message = reply.proto_with_data
    docs = message.data.docs.docs
    if len(docs) != len(queries):  # an answer that concerns all: an error
        return [DataRequest(message)] * len(queries)
    replies = []
    for query, doc in zip(queries, docs, strict=True):
        own = DataRequestProto(header=message.header, routes=message.routes)
        own.header.request_id = query.request.header.request_id
        own.data.docs.docs.append(doc)
        replies.append(DataRequest(own))
    return replies

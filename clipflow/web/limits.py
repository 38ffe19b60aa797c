"""Around the application: how large a body may be, how long somebody waits, and how a request is known elsewhere."""

import asyncio
import json
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipflow import logs, tracing
from clipflow.errors import TooLarge
from clipflow.metrics import Metrics
from clipflow.web.bodies import LINES
from clipflow.web.problems import MEDIA_TYPE, problem

_REQUEST_ID = re.compile(r'[\w.:-]{1,128}', re.ASCII)


class BodyLimit:
    """Answers 413 as soon as a body is known to be too large, by its header or by what has arrived."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        headers = dict(scope['headers'])
        lines = headers.get(b'content-type', b'').startswith(LINES.encode())
        path = scope['path'].removeprefix(scope.get('root_path', ''))
        if lines and (scope['method'], path) == ('POST', '/v1/documents'):
            return await self._app(scope, receive, send)  # read line by line; each has the limit
        declared = headers.get(b'content-length', b'0')
        if int(declared) > self._limit if declared.isdigit() else False:
            return await self._refuse(send)
        arrived = 0
        answered = False

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get('body', b''))
            if arrived > self._limit:
                raise _Exceeded
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = answered or message['type'] == 'http.response.start'
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _Exceeded:
            if not answered:
                await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        error = TooLarge(f'the body is larger than {self._limit:,} bytes; send fewer documents at once')
        headers = [(b'content-type', MEDIA_TYPE.encode()), (b'connection', b'close')]
        await send({'type': 'http.response.start', 'status': error.status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': json.dumps(problem(error)).encode()})


class _Exceeded(BaseException):
    """Passes every handler between the body and the middleware."""


class AnswersHead:
    """Answers HEAD as GET; uvicorn leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] == 'http' and scope['method'] == 'HEAD':
            scope = {**scope, 'method': 'GET'}
        await self._app(scope, receive, send)


class CancelOnDisconnect:
    """Stops the work on a request whose client has gone; what waits in a stage's queue is then never computed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        arrived: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        work = asyncio.ensure_future(self._app(scope, arrived.get, send))

        async def listen() -> None:
            while True:
                message = await receive()
                if message['type'] == 'http.disconnect':
                    work.cancel()
                    return
                await arrived.put(message)

        listener = asyncio.ensure_future(listen())
        try:
            await work
        except asyncio.CancelledError:
            if not listener.done():
                raise  # not the client, the server stops
        finally:
            listener.cancel()


class Traceable:
    """Takes over the caller's request id and trace, or gives an id, and tells it with the answer, which it counts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        headers = dict(scope['headers'])
        given = headers.get(b'x-request-id', b'').decode('latin-1')
        identifier = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        tokens = (
            logs.request_id.set(identifier),
            tracing.parent.set(headers.get(b'traceparent', b'').decode('latin-1')),
        )

        async def named(message: Message) -> None:
            if message['type'] == 'http.response.start':
                self._metrics.http_answer(message['status'])
                message['headers'] = [*message.get('headers', []), (b'x-request-id', identifier.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            logs.request_id.reset(tokens[0])
            tracing.parent.reset(tokens[1])

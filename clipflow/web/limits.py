"""Around the application: how large a body may be, how long somebody waits, and how a request is known elsewhere."""

import asyncio
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipflow import logs, tracing
from clipflow.errors import ClipflowError, Overloaded, Timeout, TooLarge
from clipflow.metrics import Metrics
from clipflow.web.bodies import LINES, media_type
from clipflow.web.problems import respond

_SLOWEST = 10_000
"""Bytes a second: so slow may a body arrive for as long as it takes."""
_BODIES = 16
"""As many bytes as so many of the largest requests have are inside at once."""
_REQUEST_ID = re.compile(r'[\w.:-]{1,128}', re.ASCII)


class BodyLimit:
    """Refuses a body as soon as it is known to be too large or too slow, or while others fill what there is for all.

    JSON lines of documents are read one by one: each has the limits, and not the whole.

    Args:
        app: what is guarded.
        limit: of one body, in bytes.
        seconds: in which it has to arrive, beside what the slowest connection takes.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit, self._seconds = limit, seconds
        self._held = 0  # bytes of all requests that are inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        headers = dict(scope['headers'])
        path = scope['path'].removeprefix(scope.get('root_path', ''))
        kind = media_type(headers.get(b'content-type', b'').decode('latin-1'))
        lines = (scope['method'], path, kind) == ('POST', '/v1/documents', LINES)
        declared = headers.get(b'content-length', b'0')
        if not lines and declared.isdigit() and int(declared) > self._limit:
            return await respond(self._too_large(), connection='close')(scope, receive, send)
        clock = asyncio.get_running_loop().time
        begun = clock()
        arrived = 0
        complete = answered = False

        async def counted() -> Message:
            nonlocal arrived, complete
            since = clock() if lines else begun + arrived / _SLOWEST
            try:
                async with asyncio.timeout_at(None if complete else since + self._seconds):
                    message = await receive()
            except TimeoutError:
                raise _Stopped(Timeout('the body did not arrive in time; send less at once')) from None
            complete = not message.get('more_body')
            size = 0 if lines else len(message.get('body', b''))
            arrived += size
            self._held += size
            if arrived > self._limit:
                raise _Stopped(self._too_large())
            if self._held > _BODIES * self._limit:
                raise _Stopped(Overloaded('too many large requests arrive at once; try again a little later'))
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = answered or message['type'] == 'http.response.start'
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _Stopped as stopped:
            if not answered:
                await respond(stopped.error, connection='close')(scope, receive, send)
        finally:
            self._held -= arrived

    def _too_large(self) -> TooLarge:
        return TooLarge(f'the body is larger than {self._limit:,} bytes; send fewer documents at once')


class _Stopped(BaseException):
    """Passes every handler between the body and the middleware."""

    def __init__(self, error: ClipflowError) -> None:
        super().__init__(error)
        self.error = error


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

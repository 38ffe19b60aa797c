"""Before the application: whose request it is, what they may do, and whether they have asked too often."""

import json

from starlette.types import ASGIApp, Receive, Scope, Send

from clipflow import access
from clipflow.access import Access, RateLimit
from clipflow.errors import ClipflowError, Unauthorized
from clipflow.web.problems import MEDIA_TYPE, problem, retry_header

_OPEN = ('/healthz', '/readyz', '/openapi.json', '/favicon.ico', '/')
_OPEN_BELOW = ('/docs', '/page/', '/static-offline-docs/')


class Guard:
    """Answers 401 and 429 itself; what it lets in has its scope in `access.current`.

    Args:
        app: what is guarded.
        access: the keys.
        limit: requests a second.
    """

    def __init__(self, app: ASGIApp, access: Access, limit: RateLimit) -> None:
        self._app, self._access, self._limit = app, access, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http' or _is_open(scope):
            return await self._app(scope, receive, send)
        key = _key(scope)
        try:
            found = self._access.scope(key)
            self._limit.take(key or str((scope.get('client') or ('',))[0]))
        except ClipflowError as error:
            return await _refuse(send, error)
        token = access.current.set(found)
        try:
            await self._app(scope, receive, send)
        finally:
            access.current.reset(token)


def _is_open(scope: Scope) -> bool:
    path = scope['path'].removeprefix(scope.get('root_path', ''))
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def _key(scope: Scope) -> str | None:
    given = dict(scope['headers']).get(b'authorization')
    return None if given is None else str(given.decode('latin-1'))


async def _refuse(send: Send, error: ClipflowError) -> None:
    headers = [(b'content-type', MEDIA_TYPE.encode())]
    if isinstance(error, Unauthorized):
        headers.append((b'www-authenticate', b'Bearer'))
    headers += [(name.lower().encode(), value.encode()) for name, value in retry_header(error).items()]
    await send({'type': 'http.response.start', 'status': error.status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': json.dumps(problem(error)).encode()})

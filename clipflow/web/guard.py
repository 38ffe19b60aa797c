"""Before the application: whose request it is, what they may do, and whether they have asked too often."""

import ipaddress
from collections.abc import Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from clipflow import access
from clipflow.access import Access, RateLimit, key_of
from clipflow.errors import ClipflowError, Forbidden, Unauthorized
from clipflow.web.problems import respond

_OPEN = ('/healthz', '/readyz', '/openapi.json', '/favicon.ico', '/')
_OPEN_BELOW = ('/docs', '/page/', '/static-offline-docs/')
_HARMLESS = ('GET', 'HEAD', 'OPTIONS')


class Guard:
    """Answers 401, 403 and 429 itself; what it lets in has its scope in `access.current`.

    Args:
        app: what is guarded.
        access: the keys.
        limit: requests a second.
        origins: of the pages elsewhere that may call; `*` is all of them.
        hosts: names that may be asked for beside addresses and `localhost`; `*` is all of them, and so is None.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limit: RateLimit,
        *,
        origins: Collection[str],
        hosts: Collection[str] | None,
    ) -> None:
        self._app, self._access, self._limit = app, access, limit
        self._origins, self._hosts = origins, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope['type'] != 'http' or _is_open(scope):
            return await self._app(scope, receive, send)
        try:
            found = self._admit(scope)
        except ClipflowError as error:
            challenge = {'WWW-Authenticate': 'Bearer'} if isinstance(error, Unauthorized) else {}
            return await respond(error, **challenge)(scope, receive, send)
        token = access.current.set(found)
        try:
            await self._app(scope, receive, send)
        finally:
            access.current.reset(token)

    def _admit(self, scope: Scope) -> access.Scope:
        headers = {name: value.decode('latin-1') for name, value in scope['headers']}
        key, caller = headers.get(b'authorization'), str((scope.get('client') or ('',))[0])
        try:
            found = self._access.scope(key)
            if key and self._access.asks:
                caller = key_of(key)
        finally:
            self._limit.take(caller)  # wrong keys count for the address that tries them
        if self._hosts is not None and (name := _rebound(headers, self._hosts)):
            raise Forbidden(
                f'this service answers to localhost and to addresses, not to {name!r}; if it is its own name, set '
                'CLIPFLOW_ALLOWED_HOSTS'
            )
        if scope['method'] not in _HARMLESS and _is_foreign(headers, self._origins):
            raise Forbidden('a page of another site asks for this; if it may, name its origin in CLIPFLOW_CORS_ORIGINS')
        return found


def _is_foreign(headers: Mapping[bytes, str], origins: Collection[str]) -> bool:
    """Whether a browser sends this for a page of another site, which the browser does without asking us before.

    Such a page cannot read the answer, but what it has changed here is changed.
    """
    origin, site = headers.get(b'origin'), headers.get(b'sec-fetch-site')
    if origin is None or '*' in origins or origin in origins:
        return False
    if site is not None:
        return site not in ('same-origin', 'none')
    return origin.partition('://')[2] != headers.get(b'host')


def _rebound(headers: Mapping[bytes, str], hosts: Collection[str]) -> str:
    """The name that was asked for, unless it is known; empty if it is.

    Whoever owns a name can let it lead to this machine. A page that was loaded from there before is then of the same
    site, and reads what only this machine may (DNS rebinding).
    """
    host = headers.get(b'host', 'localhost').lower()
    name = host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0].rstrip('.')
    known = name == 'localhost' or name.endswith('.localhost') or name in hosts or '*' in hosts
    return '' if known or _address(name) else name


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = _address(host)
    return host == 'localhost' or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_open(scope: Scope) -> bool:
    path = scope['path'].removeprefix(scope.get('root_path', ''))
    return path in _OPEN or path.startswith(_OPEN_BELOW)

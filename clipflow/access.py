"""Who may ask for what: API keys with a scope, and how often.

Without keys everything is open, as on a laptop. A key comes in the `Authorization` header (over gRPC: metadata), as
`Bearer KEY` or alone, which is how clip_client sends it.
"""

import hashlib
import hmac
import ssl
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path

from clipflow import wire
from clipflow.errors import Forbidden, InvalidParameter, Overloaded, Unauthorized

_REMEMBERED = 10_000
_SHORTEST_KEY = 8


class Scope(IntEnum):
    """What a key is good for; `write` can do everything."""

    READ = 1
    WRITE = 2


current: ContextVar[Scope] = ContextVar('scope', default=Scope.WRITE)
"""Of the HTTP request that is being answered."""
probing: ContextVar[bool] = ContextVar('probing', default=False)
"""Whether our own HTTP application asks for itself how the stages are."""


class Access:
    """See the module.

    Args:
        keys: what each key is good for; none: no key is needed.
    """

    def __init__(self, keys: Mapping[str, Scope]) -> None:
        # Digests of one length: a comparison takes as long for a wrong key as for a right one.
        self._digests = [(_digest(key), scope) for key, scope in keys.items()]

    @classmethod
    def of(cls, keys: str, file: Path | None) -> 'Access':
        """From the settings: `key:scope` separated by commas, or one a line in a file (`#` begins a comment).

        Raises:
            InvalidParameter: what stands there is not that; the message holds no key.
        """
        found = [part.strip() for part in keys.split(',')]
        if file is not None:
            try:
                lines = file.read_text(encoding='utf-8').splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidParameter(f'CLIPFLOW_API_KEYS_FILE={str(file)!r} cannot be read: {error}') from None
            found += [line.partition('#')[0].strip() for line in lines]
        return cls(dict(_parsed(number, text) for number, text in enumerate(found, 1) if text))

    @property
    def asks(self) -> bool:
        """Whether a key is needed."""
        return bool(self._digests)

    def scope(self, header: str | None) -> Scope:
        """What the `Authorization` header of a request is good for.

        Raises:
            Unauthorized: a key is needed, and this is none.
        """
        if not self._digests:
            return Scope.WRITE
        if not header:
            raise Unauthorized('this service needs an API key; send it as `Authorization: Bearer KEY`')
        given = _digest(key_of(header))
        best = [scope for digest, scope in self._digests if hmac.compare_digest(digest, given)]
        if not best:
            raise Unauthorized('this API key is not known; ask the operator of the service for one')
        return max(best)


def key_of(header: str) -> str:
    """The key in an `Authorization` header."""
    scheme, _, rest = header.strip().partition(' ')
    return rest.strip() if scheme.lower() == 'bearer' else header.strip()


def check(scope: Scope, endpoint: str) -> None:
    """Raises Forbidden if a key of this scope may not ask for an endpoint of the Flow."""
    if endpoint in wire.WRITES | wire.PRIVATE and scope < Scope.WRITE:
        raise Forbidden(
            'this API key is for reading; what changes the service, or tells who clicked what, needs one for writing'
        )


def check_certificate(certificate: Path, key: Path) -> None:
    """Raises InvalidParameter if nobody can be served by TLS with these PEM files."""
    try:
        # An empty password, so that nobody is asked for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password='')
    except OSError as error:  # those of ssl, too
        raise InvalidParameter(
            f'CLIPFLOW_TLS_CERTIFICATE={str(certificate)!r} and CLIPFLOW_TLS_KEY={str(key)!r} cannot be used: '
            f'{error.strerror or error}'
        ) from None


class RateLimit:
    """So many requests a second for each client, with a second's worth at once (a token bucket).

    Args:
        rate: requests a second; 0: any number.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float | None = None) -> None:
        """One request of `client`.

        Args:
            client: a key or an address; only its digest is kept.
            now: seconds of a monotonic clock.

        Raises:
            Overloaded: it has had too many.
        """
        if not self._rate:
            return
        now = time.monotonic() if now is None else now
        name = _digest(client).hex()
        most = max(1.0, self._rate)
        tokens, since = self._buckets.pop(name, (most, now))
        tokens = min(most, tokens + (now - since) * self._rate)
        self._buckets[name] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise Overloaded(f'more than {self._rate:g} requests a second; try again a little later')


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()


def _parsed(number: int, text: str) -> tuple[str, Scope]:
    key, _, scope = text.rpartition(':')
    if not key or scope not in ('read', 'write'):
        raise InvalidParameter(f'API key number {number} is not of the form KEY:read or KEY:write')
    if len(key) < _SHORTEST_KEY:
        raise InvalidParameter(f'API key number {number} is shorter than {_SHORTEST_KEY} characters')
    if not (key.isascii() and key.isprintable()):
        raise InvalidParameter(f'API key number {number} holds characters that a header cannot carry; use ASCII')
    return key, Scope[scope.upper()]

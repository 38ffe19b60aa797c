"""Bytes behind a URI: `data:` always, files below configured roots only, `http(s):` only when switched on.

A URI comes from outside, so nothing is read that the operator has not opened: symbolic links are resolved before the
roots are compared, and a fetched host must have public addresses only; the connection goes to the checked address.
"""

import base64
import binascii
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

from clipflow.addresses import is_public
from clipflow.errors import ForbiddenSource, InvalidDocument, NotFound, Timeout, TooLarge, Unavailable

MAX_REDIRECTS = 3
_IN_TARGETS = "%/:=&?~#+!$,;'@()*[]"


class Sources:
    """Reads URIs within the limits of the operator.

    Args:
        file_roots: directories below which files may be read.
        allow_http: whether `http:` and `https:` are fetched.
        max_bytes: largest content.
        timeout: seconds for a whole fetch.
    """

    def __init__(self, file_roots: Sequence[Path], allow_http: bool, max_bytes: int, timeout: float) -> None:
        self._roots = [root.expanduser().resolve() for root in file_roots]
        self._allow_http = allow_http
        self._max_bytes = max_bytes
        self._timeout = timeout

    def read(self, uri: str) -> bytes:
        """The content behind `uri`.

        Raises:
            ForbiddenSource: a scheme, file or host that this service does not read.
            InvalidDocument: a URI that cannot be parsed, or without content.
            NotFound, TooLarge, Timeout, Unavailable: as their names say.
        """
        try:
            content = self._content(uri)
        except ValueError:  # from urllib: brackets, ports and letters that no URI has
            raise InvalidDocument(f'{uri[:80]!r} is not a valid URI') from None
        if not content:
            raise InvalidDocument(f'there is no content behind the URI {uri[:80]!r}')
        return content

    def _content(self, uri: str) -> bytes:
        scheme = uri.split(':', 1)[0].lower() if ':' in uri else ''
        if scheme == 'data':
            return self._data(uri)
        if scheme in ('http', 'https'):
            return self._fetch(uri)
        if scheme in ('', 'file') or len(scheme) == 1:
            return self._file(unquote(urlsplit(uri).path) if scheme == 'file' else uri)
        raise ForbiddenSource(f'URIs of the scheme {scheme!r} are not read; send the content in `blob`')

    def _data(self, uri: str) -> bytes:
        head, comma, body = uri.partition(',')
        if not comma:
            raise InvalidDocument('a data: URI needs a comma before its content')
        if len(body) > self._max_bytes * 3:
            raise TooLarge(f'the data: URI is longer than {self._max_bytes} bytes allow')
        try:
            content = (
                base64.b64decode(unquote(body), validate=True) if head.endswith(';base64') else unquote_to_bytes(body)
            )
        except (binascii.Error, ValueError):
            raise InvalidDocument('the data: URI is not valid base64') from None
        return self._within(content)

    def _within(self, content: bytes) -> bytes:
        if len(content) > self._max_bytes:
            raise TooLarge(f'the content is larger than {self._max_bytes} bytes')
        return content

    def _file(self, name: str) -> bytes:
        if not self._roots:
            raise ForbiddenSource(
                f'this service reads no files ({name[:80]!r}); send the content in `blob`, or set CLIPFLOW_FILE_ROOTS'
            )
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            path = None
        # A file outside the roots and one that does not exist get the same answer: nothing is given away.
        if path is None or not any(path.is_relative_to(root) for root in self._roots) or not path.is_file():
            raise ForbiddenSource(f'{name[:80]!r} is no file below the directories that may be read')
        try:
            with path.open('rb') as file:
                return self._within(file.read(self._max_bytes + 1))
        except OSError as error:
            raise NotFound(f'the file {name[:80]!r} cannot be read: {error.strerror}') from None

    def _fetch(self, uri: str) -> bytes:
        if not self._allow_http:
            raise ForbiddenSource(
                'this service fetches no URLs; send the content in `blob`, or set CLIPFLOW_ALLOW_HTTP'
            )
        until = time.monotonic() + self._timeout
        for _ in range(MAX_REDIRECTS + 1):
            content, location = self._request(uri, until)
            if location is None:
                return content
            uri = urljoin(uri, location)
        raise ForbiddenSource(f'the URL redirects more than {MAX_REDIRECTS} times')

    def _request(self, uri: str, until: float) -> tuple[bytes, str | None]:
        parts = urlsplit(uri)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ForbiddenSource(f'{uri[:80]!r} is not an http: or https: URL')
        secure = parts.scheme == 'https'
        port = parts.port or (443 if secure else 80)
        address = self._public_address(parts.hostname, port)
        target = quote(f'{parts.path or "/"}?{parts.query}' if parts.query else parts.path or '/', safe=_IN_TARGETS)
        headers = {'Host': parts.netloc.rpartition('@')[2], 'User-Agent': 'clipflow'}
        connection = http.client.HTTPConnection(parts.hostname, port)
        try:
            with _connected(address, port, parts.hostname if secure else None, until) as connection.sock:
                connection.request('GET', target, headers=headers)
                reply = connection.getresponse()
                if reply.status in (301, 302, 303, 307, 308) and reply.headers.get('Location'):
                    return b'', str(reply.headers['Location'])
                if reply.status != 200:
                    raise NotFound(f'the URL {uri[:80]!r} answers with status {reply.status}')
                content = bytearray()
                while block := reply.read(65536):
                    content += block
                    if len(content) > self._max_bytes:
                        raise TooLarge(f'the content of {uri[:80]!r} is larger than {self._max_bytes} bytes')
            if time.monotonic() > until:  # then it may have been cut off, which looks like its end
                raise TimeoutError
            if reply.length:
                raise http.client.IncompleteRead(bytes(content), reply.length)
            return bytes(content), None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or time.monotonic() > until:
                raise Timeout(f'the URL {uri[:80]!r} took longer than {self._timeout} s') from None
            raise Unavailable(f'the URL {uri[:80]!r} cannot be fetched: {type(error).__name__}') from None

    def _public_address(self, host: str, port: int) -> str:
        try:
            found = {str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError):
            raise Unavailable(f'the host {host!r} cannot be found') from None
        if not found or not all(map(is_public, found)):
            raise ForbiddenSource(f'the host {host!r} has no public address; it is not fetched')
        return sorted(found)[0]


@contextlib.contextmanager
def _connected(address: str, port: int, tls_name: str | None, until: float) -> Iterator[socket.socket]:
    """A connection that is cut off at `until`: the timeout of a socket is that of one read, and a server that sends a
    byte now and then would be listened to for hours.
    """

    def left() -> float:
        return max(0.01, until - time.monotonic())

    def cut() -> None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    with socket.create_connection((address, port), left()) as plain:
        secure = None
        if tls_name is not None:
            context = ssl.create_default_context()
            secure = context.wrap_socket(plain, server_hostname=tls_name, do_handshake_on_connect=False)
        with secure or plain as connected:
            watch = threading.Timer(left(), cut)
            watch.start()
            try:
                if secure is not None:
                    secure.do_handshake()
                yield connected
            finally:
                watch.cancel()

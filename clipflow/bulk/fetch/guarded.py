"""img2dataset, held to limits that it has not itself; runs as a program, perhaps in an environment without clipflow.

    python guarded.py LIMITS OPTIONS

Both are JSON objects. LIMITS: `seconds` and `bytes` of one fetch with its redirects, `private` (whether addresses that
are not public may be fetched), and `ticks`, a file that grows by a byte with each URL that is through. OPTIONS are for
img2dataset. Its processes are spawned and import this file again, so that the limits hold in each of them.
"""

import functools
import http.client
import json
import os
import runpy
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LIMITS: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
_here = threading.local()
_getaddrinfo = socket.getaddrinfo
_create_connection = socket.create_connection
_readinto = socket.SocketIO.readinto
# By its file, because clipflow itself may not be there.
_is_public: Callable[[str], bool] = runpy.run_path(str(Path(__file__).parents[2] / 'addresses.py'))['is_public']
_proxies = {urlsplit(url).hostname for url in urllib.request.getproxies().values()}


class Opener(urllib.request.OpenerDirector):
    """HTTP and HTTPS only: the usual one also reads files, FTP and data: URLs."""

    def __init__(self) -> None:
        super().__init__()
        for kind in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.UnknownHandler,
        ):
            self.add_handler(kind())

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        """Begin a fetch; what it reads on this thread from now on counts, redirects too, which come here again."""
        first = not getattr(_here, 'open', False)
        if first:
            _here.until, _here.left = time.monotonic() + LIMITS['seconds'], LIMITS['bytes']
        _here.open = True
        try:
            reply = super().open(fullurl, data, timeout)
        finally:
            _here.open = not first
        if isinstance(reply, http.client.HTTPResponse) and (reply.length or 0) > LIMITS['bytes']:
            reply.close()
            raise OSError(_too_large())
        return reply


def _too_large() -> str:
    return f'larger than {LIMITS["bytes"]} bytes'


def readinto(self: socket.SocketIO, buffer: Any) -> int | None:
    """As the socket's own, for as long and as much as one fetch may take."""
    until = getattr(_here, 'until', None)
    if until is None:
        return _readinto(self, buffer)
    if time.monotonic() > until:
        raise TimeoutError(f'took longer than {LIMITS["seconds"]} s')
    count = _readinto(self, buffer)
    _here.left -= count or 0
    if _here.left < 0:
        raise OSError(_too_large())
    return count


def create_connection(address: Any, timeout: Any = None, *args: Any, **given: Any) -> Any:
    """As the library's own, which gives each address of a host all the time that one fetch has."""
    until = getattr(_here, 'until', None)
    if until is None:
        return _create_connection(address, timeout, *args, **given)
    host, port = address
    failed: OSError = TimeoutError(f'took longer than {LIMITS["seconds"]} s')
    for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if (left := until - time.monotonic()) <= 0:
            break
        try:
            return _create_connection((str(found[0]), port), left, *args, **given)
        except OSError as error:
            failed = error
    raise failed


def getaddrinfo(host: Any, *args: Any, **given: Any) -> Any:
    """As the library's own, but of public addresses; a proxy may be anywhere, for it decides itself."""
    found = _getaddrinfo(host, *args, **given)
    if LIMITS['private'] or host in _proxies:
        return found
    if not all(_is_public(str(address[0])) for *_, address in found):
        raise OSError(f'{host} has no public address')
    return found


def _counted(fetch: Any) -> Any:
    @functools.wraps(fetch)
    def wrapper(*args: Any, **given: Any) -> Any:
        try:
            return fetch(*args, **given)
        finally:
            with open(LIMITS['ticks'], 'ab', buffering=0) as file:
                file.write(b'.')

    return wrapper


def _follow(parent: int) -> None:
    """End when the process that has started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def guard() -> None:
    """Put the limits in force in this process."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    socket.getaddrinfo = getaddrinfo
    socket.create_connection = create_connection
    socket.SocketIO.readinto = readinto  # type: ignore[assignment, method-assign]
    urllib.request.install_opener(Opener())


if __name__ in ('__main__', '__mp_main__'):
    guard()
    downloader: Any = import_module('img2dataset.downloader')
    downloader.download_image_with_retry = _counted(downloader.download_image_with_retry)
if __name__ == '__main__':
    import_module('img2dataset.main').download(**json.loads(sys.argv[2]))

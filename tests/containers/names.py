"""A small DNS server: names of Services to the addresses that they have at that moment, as in a cluster."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from .engine import HOST, enter

DOMAIN = 'clipflow.svc.cluster.local'
_A, _NO_SUCH_NAME = 1, 3
_SECONDS = 5
"""For which an answer may be kept; what CoreDNS says by default."""


class Names:
    """Answers on port 53 of a network namespace until it is closed.

    Args:
        namespace: its name.
        lookup: IPv4 addresses of a Service by its name; None if there is no such Service, or if it has none.
    """

    def __init__(self, namespace: str, lookup: Callable[[str], list[str] | None]) -> None:
        self._lookup = lookup
        self._socket: socket.socket | None = None
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(namespace,), name='names', daemon=True)
        self._thread.start()
        self._bound.wait()

    def close(self) -> None:
        """Answer no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # there is no connection; it wakes the thread all the same
                self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()

    def _serve(self, namespace: str) -> None:
        try:
            enter(namespace)
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND: the bridge comes with the first container
            self._socket.bind((HOST, 53))
        finally:
            self._bound.set()
        with self._socket:
            while True:
                try:
                    question, asker = self._socket.recvfrom(512)
                except OSError:
                    return
                if not question:
                    return
                self._socket.sendto(answer(question, self._lookup), asker)


def answer(question: bytes, lookup: Callable[[str], list[str] | None]) -> bytes:
    """The reply to one question (RFC 1035, section 4)."""
    labels, position = [], 12
    while size := question[position]:
        labels.append(question[position + 1 : position + 1 + size].decode())
        position += 1 + size
    end = position + 5
    (kind,) = struct.unpack('!H', question[position + 1 : position + 3])
    name, _, domain = '.'.join(labels).partition('.')
    found = lookup(name) if domain == DOMAIN else None
    addresses = found if found is not None and kind == _A else []
    flags = 0x8580 | (_NO_SUCH_NAME if found is None else 0)  # an answer, with authority, recursion as asked
    head = question[:2] + struct.pack('!HHHHH', flags, 1, len(addresses), 0, 0)
    records = [
        b'\xc0\x0c' + struct.pack('!HHIH', _A, 1, _SECONDS, 4) + socket.inet_aton(address) for address in addresses
    ]
    return head + question[12:end] + b''.join(records)

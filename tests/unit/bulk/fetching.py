"""A server on this machine with pictures, and with what can be wrong behind a URL."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What it serves, and what it was asked for.

    Args:
        files: paths and contents; besides, there are `/redirect` (to the query), `/around` (the same, and 4,000 bytes),
            `/drip`, `/endless` and `/huge`.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.asked = Counter[str]()
        self.waits: dict[str, threading.Event] = {}
        """Paths that are answered when their event is set."""
        self.url = ''


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Site]:
    """The site, on a port of its own."""
    site = Site(files)
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path, _, query = self.path.partition('?')
            site.asked[path] += 1
            if path in site.waits:
                site.waits[path].wait(60)
            with suppress(OSError):  # who asked has gone
                self._answer(path, query)

        def _answer(self, path: str, query: str) -> None:
            if path in ('/redirect', '/around'):
                content = b'x' * (4000 if path == '/around' else 0)
                self.send_response(302)
                self.send_header('Location', query)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            elif path in ('/drip', '/endless'):
                self.send_response(200)
                self.end_headers()
                until = time.monotonic() + 20
                while time.monotonic() < until and not stop.wait(0.1 if path == '/drip' else 0):
                    self.wfile.write(b'x' * (1 if path == '/drip' else 65536))
            elif path == '/huge' or path in site.files:
                content = site.files.get(path, b'')
                self.send_response(200)
                self.send_header('Content-Length', str(len(content) or 10**13))
                self.end_headers()
                self.wfile.write(content)
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    site.url = f'http://127.0.0.1:{server.server_address[1]}'
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        stop.set()
        for event in site.waits.values():
            event.set()
        server.shutdown()
        thread.join()
        server.server_close()

"""A real service for the tests, whose stages can be killed, and what the tests send it."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import yaml
from docarray import Document, DocumentArray
from jina import Client
from jina.types.request.data import DataRequest
from PIL import Image

from clipflow import ROOT, errors, wire
from clipflow.errors import ClipflowError
from local_service import LocalService, free_port

__all__ = [
    'Lives',
    'Service',
    'error_codes',
    'error_of',
    'flow_with',
    'free_port',
    'picture',
    'png',
    'spied_on',
    'until',
]

T = TypeVar('T')
_SPY = """
import os, socket
def noted(call):
    def wrapper(host, *args, **kwargs):
        name = host[0] if isinstance(host, tuple) else host
        if isinstance(name, bytes):
            name = name.decode()
        if name not in (None, '', 'localhost', '0.0.0.0', '::1') and not str(name).startswith('127.'):
            with open(os.environ['CONTACTS'], 'a') as file:
                print(name, file=file)
        return call(host, *args, **kwargs)
    return wrapper
socket.getaddrinfo = noted(socket.getaddrinfo)
socket.gethostbyname = noted(socket.gethostbyname)
"""


class Service(LocalService):
    """See `LocalService`. As a context it waits for the line that it serves, and stops at the end."""

    @property
    def log(self) -> str:
        """What the service has said so far."""
        return ''.join(self.lines)

    @property
    def port(self) -> int:
        """Of gRPC."""
        return int(self.grpc.rpartition(':')[2])

    def post(self, endpoint: str, docs: Any = None, parameters: dict[str, Any] | None = None) -> DocumentArray:
        """One request by plain `jina.Client`; the Documents of the reply, or its ClipflowError raised."""
        reply = self.request(endpoint, docs, parameters)
        if reply.header.status.code == reply.header.status.ERROR:
            raise errors.from_description(reply.header.status.description)
        return reply.docs

    def request(self, endpoint: str, docs: Any = None, parameters: dict[str, Any] | None = None) -> DataRequest:
        """As `post`, but the whole reply, failed or not."""
        replies: list[DataRequest] = []
        inputs = DocumentArray(docs) if isinstance(docs, Document | list) else docs
        Client(host='127.0.0.1', port=self.port).post(
            endpoint,
            inputs,
            parameters=parameters or {},
            request_size=1_000_000,
            on_done=replies.append,
            on_error=replies.append,
        )
        assert len(replies) == 1, f'{len(replies)} replies to one request'
        return replies[0]

    def one(self, endpoint: str, doc: Document, parameters: dict[str, Any] | None = None) -> Document:
        """`post` with one Document, and the one that comes back."""
        reply = self.post(endpoint, doc, parameters)
        assert len(reply) == 1, f'{len(reply)} documents instead of one'
        return reply[0]

    def matches(self, query: Document | str, **parameters: Any) -> DocumentArray:
        """`/search` with one query."""
        doc = Document(text=query) if isinstance(query, str) else query
        return self.one('/search', doc, parameters).matches

    def stored_ids(self) -> set[str]:
        """Ids of all stored documents (at most 10,000)."""
        return {doc.id for doc in self.post('/get', None, {'limit': 10_000})}

    def kill(self, stage: str) -> None:
        """SIGKILL to the process of a stage."""
        os.kill(self.pids[stage], signal.SIGKILL)

    def wait_until_ready_again(self, stage: str, seconds: float = 120.0) -> None:
        """After `kill`: the launcher has seen it, and the stage has started again."""
        self.wait_for(f'clipflow: {stage} died', seconds)
        self.wait_for(f'clipflow: {stage} is ready', seconds)

    def terminate(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send the launcher a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=seconds)

    def wait_until_ended(self, seconds: float = 120.0) -> int:
        """For a service that stops by itself: its exit code, after its last line."""
        code = self.process.wait(timeout=seconds)
        while self._said.get(timeout=seconds) is not None:
            pass
        return code

    def processes(self) -> set[int]:
        """All processes of this service that run, orphans too: known by the workspace in their environment."""
        mark = f'CLIPFLOW_WORKSPACE={self.workspace}'.encode()
        return {int(path.name) for path in Path('/proc').glob('[0-9]*') if mark in _environment(path)}

    def wait_until_gone(self, seconds: float) -> None:
        """No process of this service is left."""
        until(lambda: not self.processes(), seconds, f'all processes of {self.workspace} have ended')


class Lives:
    """One workspace with `RUNTIME=fake`, and a service over it that the tests of a module share and may end."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._last: Service | None = None

    def service(self) -> Service:
        """The one that runs; started again if it has ended."""
        if self._last is None or self._last.process.poll() is not None:
            self._last = Service(self._workspace, {'RUNTIME': 'fake'})
            self._last.wait_for('clipflow: serving')
        return self._last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None and self._last.process.poll() is None:
            self._last.stop()


def _environment(process: Path) -> list[bytes]:
    try:
        if b') Z ' in process.joinpath('stat').read_bytes():
            return []  # it has ended, and nobody has asked how
        return process.joinpath('environ').read_bytes().split(b'\0')
    except OSError:
        return []


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of `condition`, asked again and again; AssertionError if it takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f'not within {seconds} s: {what}'
        time.sleep(0.02)


def flow_with(directory: Path, settings: dict[str, dict[str, Any]]) -> Path:
    """A copy of flow.yml in `directory` with more settings for some of its Executors, by their name."""
    flow = yaml.safe_load((ROOT / 'flow.yml').read_text())
    for part in [flow['gateway'], *flow['executors']]:
        part['uses'] = str(ROOT / part['uses'])
        part.update(settings.get(part.get('name', 'gateway'), {}))
    path = directory / 'flow.yml'
    path.write_text(yaml.safe_dump(flow, sort_keys=False))
    return path


def picture(colour: str | tuple[int, int, int] = 'red', size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of one colour with a black corner."""
    image = Image.new('RGB', size, colour)
    image.paste('black', (0, 0, size[0] // 4, size[1] // 4))
    return image


def png(colour: str | tuple[int, int, int] = 'red', size: tuple[int, int] = (64, 48), form: str = 'PNG') -> bytes:
    """`picture`, encoded."""
    out = io.BytesIO()
    picture(colour, size).save(out, form)
    return out.getvalue()


def error_of(doc: Document) -> ClipflowError:
    """The error that a Document came back with; AssertionError if it has none."""
    error = wire.error_of(doc)
    assert error is not None, f'{doc.id[:40]!r} has no error'
    return error


def error_codes(docs: Iterable[Document]) -> dict[str, str | None]:
    """What became of each Document of a reply: its id, and the code of its error or None."""
    found = {doc.id: wire.error_of(doc) for doc in docs}
    return {name: error.code if error else None for name, error in found.items()}


def spied_on(patch: pytest.MonkeyPatch, site: Path, contacts: Path) -> None:
    """Let services that are started now write the foreign hosts that they look up to `contacts`."""
    site.mkdir()
    (site / 'sitecustomize.py').write_text(_SPY)
    patch.setenv('CONTACTS', str(contacts))
    patch.delenv('JINA_OPTOUT_TELEMETRY', raising=False)
    patch.delenv('NO_VERSION_CHECK', raising=False)
    patch.setenv('PYTHONPATH', str(site), prepend=':')

"""How a command, the launcher and the gateway speak about a switch: JSON lines over sockets that only this user sees.

`hold`, `route` and `probe` are for the gateway; `hold` and `switch` for the launcher. What was held is released when
the connection ends, however it ends.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from clipflow.border.gate import Gate
from clipflow.errors import ClipflowError, Unavailable, from_description

if TYPE_CHECKING:  # the launcher sets how Jina behaves before it is imported
    from clipflow.border.route import Route

GATEWAY_SOCKET = '_CLIPFLOW_GATEWAY_SOCKET'
"""The launcher's word to the gateway, in its environment."""
ADDRESS_FILE = 'service'
"""In the workspace: where the launcher of the running service listens."""


class Caller:
    """One end of such a connection.

    Raises (on opening):
        Unavailable: nobody listens there.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f'nobody listens at {path} ({error.strerror})') from None
        self._file = self._socket.makefile('rw', encoding='utf-8')

    def ask(self, what: str, **more: Any) -> None:
        """Wait until it is done.

        Raises:
            ClipflowError: it could not be done.
            Unavailable: the other end has gone.
        """
        try:
            self._file.write(json.dumps({'do': what, **more}) + '\n')
            self._file.flush()
            line = self._file.readline()
        except OSError:
            line = ''
        if not line:
            raise Unavailable('the service has stopped meanwhile')
        if error := json.loads(line)['error']:
            raise from_description(error)

    def close(self) -> None:
        """End the connection, which releases what is held."""
        # Stages that were started meanwhile are forks, and hold the socket too: closing it here would end nothing.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def service_in(workspace: Path) -> Caller | None:
    """The service that serves a workspace, if it runs under `clipflow serve` on this host."""
    try:
        return Caller(Path((workspace / ADDRESS_FILE).read_text(encoding='utf-8').strip()))
    except (OSError, Unavailable):
        return None


def reply_to(error: ClipflowError | None) -> str:
    """One line."""
    return json.dumps({'error': repr(error) if error is not None else ''}) + '\n'


async def listen_to_launcher(gate: Gate, route: 'Route', probe: Callable[[], Awaitable[None]]) -> asyncio.Server | None:
    """The gateway's end; None where no launcher started it.

    Args:
        gate: where writes are held.
        route: the way through the stages.
        probe: passes if a request passes through every stage, else raises ClipflowError.
    """
    path = os.environ.get(GATEWAY_SOCKET)
    if not path:
        return None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        holding = False
        try:
            while line := await reader.readline():
                asked = json.loads(line)
                error: ClipflowError | None = None
                if asked['do'] == 'hold':
                    holding = True
                    await gate.hold()
                elif asked['do'] == 'route':
                    await route.replace(asked['graph'], asked['addresses'])
                elif asked['do'] == 'probe':
                    try:
                        await probe()
                    except ClipflowError as failure:
                        error = failure
                writer.write(reply_to(error).encode())
                await writer.drain()
        finally:
            if holding:
                gate.release()
            writer.close()

    Path(path).unlink(missing_ok=True)
    return await asyncio.start_unix_server(serve, path)

"""A service of one's own for the demo, the benchmarks and the tests: free ports, a workspace, started and stopped."""

import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_READY = re.compile(r'clipflow: (\S+) is ready \(pid (\d+)\)')


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def held_port() -> socket.socket:
    """As `free_port`, bound until it is closed; on Linux a server with SO_REUSEADDR may bind it too, nobody else."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(('127.0.0.1', 0))
    return held


class LocalService:
    """`clipflow serve` in a process of its own.

    Args:
        workspace: where the documents are.
        settings: further `CLIPFLOW_*` variables, without the prefix.
        flow: a YAML other than flow.yml.
        echo: whether to show what the service says.
        command: of clipflow, that ends in a service.
    """

    def __init__(
        self,
        workspace: Path,
        settings: Mapping[str, str] | None = None,
        flow: Path | None = None,
        echo: bool = False,
        command: Sequence[str] = ('serve',),
    ) -> None:
        self.workspace = workspace
        self._held = [held_port() for _ in range(2)]
        grpc_port, http_port = (str(held.getsockname()[1]) for held in self._held)
        if sys.platform != 'linux':
            self._release()
        self.grpc, self.http = f'127.0.0.1:{grpc_port}', f'http://127.0.0.1:{http_port}'
        self.lines: list[str] = []
        self._said: queue.Queue[str | None] = queue.Queue()
        self._echo = echo
        environment = {
            **os.environ,
            'CLIPFLOW_WORKSPACE': str(workspace),
            'CLIPFLOW_GRPC_PORT': grpc_port,
            'CLIPFLOW_HTTP_PORT': http_port,
            **{f'CLIPFLOW_{name}': value for name, value in (settings or {}).items()},
        }
        call = [sys.executable, '-m', 'clipflow.cli.main', *command, *(['--flow', str(flow)] if flow else [])]
        self.process = subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if self._echo:
                print('   ', line, end='', flush=True)
            self._said.put(line)
        self._release()
        self._said.put(None)

    def _release(self) -> None:
        for held in self._held:
            held.close()

    def wait_for(self, text: str, seconds: float = 200.0) -> str:
        """The next line with `text`; RuntimeError if the service stops before, TimeoutError if it takes longer."""
        try:
            while (line := self._said.get(timeout=seconds)) is not None:
                if text in line:
                    return line
        except queue.Empty:
            said = ''.join(self.lines[-20:])
            raise TimeoutError(f'the service did not say {text!r} in {seconds:.0f} s; it said:\n{said}') from None
        raise RuntimeError(f'the service stopped with exit code {self.process.wait()}:\n{"".join(self.lines[-20:])}')

    @property
    def pids(self) -> dict[str, int]:
        """The process of each stage, as last started."""
        found = (_READY.search(line) for line in self.lines)
        return {match[1]: int(match[2]) for match in found if match}

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        try:
            self.wait_for('clipflow: serving')
        except BaseException:
            self.process.terminate()  # nobody would end it
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.stop()

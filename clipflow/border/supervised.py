"""One process of a Flow, as the launcher sees it: started, watched, started again, stopped."""

import contextlib
import signal
import socket
import sys
import time
from argparse import Namespace
from collections import deque
from typing import Any

from clipflow.errors import Unavailable

_MAX_RESTARTS = 5
_RESTART_WINDOW_SECONDS = 60.0


class StageFailed(Unavailable):
    """A stage did not start, or died too often; the service stops."""


class Stage:
    """One process of the Flow."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.name = str(args.name)
        self.restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)
        self.ready = False
        self._starts_in_vain = 0
        self._pod: Any = None
        self._held = [] if self.is_gateway or sys.platform != 'linux' else [_held(int(port)) for port in args.port]

    def start(self) -> None:
        """Start the process; it becomes ready later."""
        from jina.orchestrate.pods.factory import PodFactory

        self.args.noblock_on_start = True
        self.ready = False
        self._pod = PodFactory.build_pod(self.args)
        self._pod.worker._target = _run_stage
        self._pod.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self._pod.worker.pid)

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return bool(self._pod.worker.is_alive())

    def has_become_ready(self) -> bool:
        """True once after each start."""
        if not self.ready and self._pod.is_ready.is_set():
            self.ready = True
            return True
        return False

    def failed_to_start(self) -> bool:
        """Whether it gave up before it was ready."""
        return not self.ready and bool(self._pod.is_shutdown.is_set())

    def end(self) -> str:
        """How the process ended, for people."""
        code = self._pod.worker.exitcode
        return f'signal {signal.Signals(-code).name}' if code is not None and code < 0 else f'exit code {code}'

    def start_again(self) -> None:
        """After its death.

        Raises:
            StageFailed: it has died too often within a minute, or in as many starts one after the other, however long
                these took.
        """
        self._starts_in_vain = 0 if self.ready else self._starts_in_vain + 1
        if self._starts_in_vain == _MAX_RESTARTS:
            raise StageFailed(
                f'the stage {self.name} did not start, {_MAX_RESTARTS} times in a row; its own message stands above'
            )
        now = time.monotonic()
        if len(self.restarts) == _MAX_RESTARTS and now - self.restarts[0] < _RESTART_WINDOW_SECONDS:
            raise StageFailed(f'the stage {self.name} died {_MAX_RESTARTS + 1} times within a minute')
        self.restarts.append(now)
        say(f'{self.name} died ({self.end()}); starting it again')
        self.start()

    @property
    def is_gateway(self) -> bool:
        """Whether it is the gateway."""
        return self.name.startswith('gateway')

    @property
    def started(self) -> bool:
        """Whether there was a process."""
        return self._pod is not None and bool(self._pod.worker.pid)

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.is_alive():
            self._pod.worker.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end; what is still there at `until` (monotonic seconds) is killed."""
        self._pod.worker.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            say(f'{self.name} does not stop; killing it')
            self._pod.worker.kill()
            self._pod.worker.join()
        for held in self._held:
            held.close()


def _held(port: int) -> socket.socket:
    """A port that Jina has chosen, so that nobody else gets it before the stage listens there, or between two starts.

    On Linux a stage may bind it too, for both say SO_REUSEADDR and this one does not listen. Of a port that is taken
    already the stage tells.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):
        held.bind(('', port))
    return held


def _run_stage(**given: Any) -> None:
    """The process of a stage: Jina's own, on the faster event loop that its command line would choose."""
    import uvloop
    from jina.serve.executors.run import run

    uvloop.install()
    run(**given)


def say(sentence: str) -> None:
    """One line for people, on standard error. Where nobody listens any more, the work goes on."""
    with contextlib.suppress(OSError):
        print(f'clipflow: {sentence}', file=sys.stderr, flush=True)

"""Another generation of the documents, under another model, takes the place of the one that is served.

`clipflow reindex` asks for it: all stages but the gateway are started a second time, with the new model and on the new
generation, while the old ones go on. When all are ready, the gateway turns to them between two requests, and the old
ones stop. What fails before that leaves everything as it was.
"""

import contextlib
import json
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from clipflow.border.control import ADDRESS_FILE, GATEWAY_SOCKET, Caller, reply_to
from clipflow.border.supervised import Stage, say
from clipflow.errors import ClipflowError, InvalidParameter, Unavailable
from clipflow.store import generations

_MODEL = 'CLIPFLOW_MODEL'
_STOP_SECONDS = 30.0


class Switching:
    """See the module. Used by the launcher's loop; a thread of its own hears what is asked.

    Args:
        stages: of the Flow; changed in place by a switch.
        build: makes stages for the Flow anew, with the environment as it is then.
        workspace: where the documents are; None: there is nothing to switch.
    """

    def __init__(self, stages: list[Stage], build: Callable[[], list[Stage]], workspace: Path | None) -> None:
        self._stages, self._build, self._workspace = stages, build, workspace
        # systemd names a directory that other processes see too, which they may not see of its /tmp.
        self._folder = Path(tempfile.mkdtemp(prefix='clipflow-', dir=os.environ.get('RUNTIME_DIRECTORY')))
        os.environ[GATEWAY_SOCKET] = str(self._folder / 'gateway')
        self._asked: queue.Queue[tuple[str, Path, queue.Queue[ClipflowError | None]]] = queue.Queue()
        self._answer: queue.Queue[ClipflowError | None] = queue.Queue()
        self._before: tuple[str | None, Path] = (None, Path())
        self._built: list[Stage] = []
        self.coming: list[Stage] = []

    def answers(self) -> bool:
        """Whether a request passes through every stage: the gateway may still be looking for one that came up late."""
        address = self._folder / 'gateway'
        if not address.exists():
            return True  # ours listens before it is ready, so this one is Jina's or the user's own, and cannot be asked
        try:
            with Caller(address) as gateway:
                gateway.ask('probe')
        except ClipflowError:
            return False
        return True

    def listen(self) -> None:
        """From now on a switch may be asked for."""
        if self._workspace is None:
            return
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / 'launcher'))
        listener.listen()
        threading.Thread(target=self._hear, args=(listener,), name='switching', daemon=True).start()
        try:
            (self._workspace / ADDRESS_FILE).write_text(f'{self._folder / "launcher"}\n', encoding='utf-8')
        except OSError as error:
            say(f'warning: `clipflow reindex` cannot switch this service while it runs: {error.strerror}')

    def _hear(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with (
                connection,
                connection.makefile('rw', encoding='utf-8') as file,
                contextlib.suppress(OSError),
                contextlib.ExitStack() as held,
            ):
                for line in file:
                    file.write(reply_to(self._answered(json.loads(line), held)))
                    file.flush()

    def _answered(self, asked: dict[str, str], held: contextlib.ExitStack) -> ClipflowError | None:
        """Do what is asked; what is held is held until `held` is left."""
        try:
            if asked['do'] == 'hold':
                held.enter_context(Caller(self._folder / 'gateway')).ask('hold')
                return None
            answer: queue.Queue[ClipflowError | None] = queue.Queue()
            self._asked.put((asked['model'], Path(asked['folder']), answer))
            return answer.get()
        except ClipflowError as error:
            return error

    def replaces(self, stage: Stage) -> bool:
        """Whether a stage is about to be replaced, so that it is not started again."""
        return bool(self.coming) and not stage.is_gateway

    def step(self) -> None:
        """What there is to do now; called again and again."""
        if self.coming:
            failed = next((stage for stage in self.coming if stage.failed_to_start() or not stage.is_alive()), None)
            if failed is not None:
                self._give_up(Unavailable(f'the {failed.name} does not start under the new model; see the log'))
            elif all(stage.has_become_ready() or stage.ready for stage in self.coming):
                self._complete()
            return
        with contextlib.suppress(queue.Empty):
            self._begin(*self._asked.get_nowait())

    def _begin(self, model: str, folder: Path, answer: 'queue.Queue[ClipflowError | None]') -> None:
        assert self._workspace is not None
        self._answer = answer
        if folder.parent != self._workspace:
            answer.put(InvalidParameter(f'this service has the workspace {self._workspace}, not {folder.parent}'))
            return
        say(f'starting the stages with the model {model}')
        self._before = (os.environ.get(_MODEL), generations.current(self._workspace))
        try:
            generations.switch(self._workspace, folder)
            os.environ[_MODEL] = model
            self._built = self._build()
            self.coming = [stage for stage in self._built if not stage.is_gateway]
            for stage in self.coming:
                stage.start()
        except ClipflowError as error:
            self._give_up(error)

    def _complete(self) -> None:
        gateway = next(stage for stage in self._stages if stage.is_gateway)
        told = next(stage for stage in self._built if stage.is_gateway).args
        try:
            with Caller(self._folder / 'gateway') as caller:
                caller.ask('route', graph=told.graph_description, addresses=told.deployments_addresses)
        except ClipflowError as error:
            self._give_up(error)
            return
        # A gateway that dies is started again with these.
        gateway.args.graph_description = told.graph_description
        gateway.args.deployments_addresses = told.deployments_addresses
        old = [stage for stage in self._stages if not stage.is_gateway]
        self._stages[:] = [gateway, *self.coming]
        self.coming = []
        assert self._workspace is not None
        try:
            # Whoever asked deletes the old documents; if that was killed, whoever comes next.
            generations.switch(self._workspace, generations.current(self._workspace), gone=self._before[1])
        except ClipflowError as error:
            say(f'warning: {self._before[1]} counts no more, and stays: {error.message}')
        _end(old)
        for stage in self._stages:
            say(f'{stage.name} is ready (pid {stage.pid})')
        say('serving with the new model')
        self._answer.put(None)

    def _give_up(self, error: ClipflowError) -> None:
        say(f'the stages before go on: {error.message}')
        model, folder = self._before
        os.environ.pop(_MODEL, None)
        if model is not None:
            os.environ[_MODEL] = model
        assert self._workspace is not None
        started, self.coming = [stage for stage in self.coming if stage.started], []
        _end(started)
        generations.switch(self._workspace, folder)
        self._answer.put(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workspace is not None:
            with contextlib.suppress(OSError):
                address = self._workspace / ADDRESS_FILE
                if address.read_text(encoding='utf-8').strip() == str(self._folder / 'launcher'):
                    address.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)


def _end(stages: list[Stage]) -> None:
    for stage in stages:
        stage.terminate()
    until = time.monotonic() + _STOP_SECONDS
    for stage in stages:
        stage.wait(until)

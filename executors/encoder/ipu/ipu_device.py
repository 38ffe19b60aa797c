"""The towers on IPUs: compile, pad, run, recover, and one thread that does all of it behind a bounded queue.

PopTorch's call holds the interpreter while the IPU computes, and an executor takes one caller at a time: so one thread
calls it, and whatever waits, waits in the queue.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from ipu_protocol import Refused

MEMORY_PROPORTION = 0.1
"""Of each IPU's memory, for the temporary data of one operation; the value of the vendor's CLIP example."""


_NO_IPU = 'Failed to acquire'
"""What PopTorch says; there is no class for it."""


class Fatal(Exception):
    """This process cannot go on; its supervisor is to start another."""


def import_poptorch() -> Any:
    """The vendor's package, imported only now.

    Raises:
        Fatal: it is not here or not for this torch; says what to do.
    """
    try:
        return import_module('poptorch')
    except (ImportError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Fatal(f'poptorch cannot be imported ({reason}); run in the image of ipu/Dockerfile') from None


class Shape:
    """How a call is laid out: rows of one step, steps of one call, and copies of the model beside each other."""

    def __init__(self, batch: int, iterations: int, replicas: int, cache: str) -> None:
        self.batch = batch
        self.iterations = iterations
        self.replicas = replicas
        self.cache = cache
        """Directory of compiled executables; empty: none is kept."""

    @property
    def rows(self) -> int:
        """Of one call."""
        return self.batch * self.iterations * self.replicas


class CompiledTower:
    """One tower as a PopTorch executor, whose inputs always have the same shapes. One caller at a time.

    Args:
        poptorch: the package, or a double of it.
        tower: in the precision to compute in.
        example: its inputs, each of one row.
        dimension: D of the vectors.
        shape: see there.
    """

    def __init__(self, poptorch: Any, tower: Any, example: Sequence[np.ndarray], dimension: int, shape: Shape) -> None:
        self._poptorch = poptorch
        self._tower = tower
        self._example = example
        self._dimension = dimension
        self._shape = shape
        self._executor: Any = None

    def start(self) -> None:
        """Compile (minutes, unless the executable is kept), attach, upload the weights, and run once.

        Raises:
            poptorch.Error: it does not compile, or no IPU is free.
        """
        if self._executor is None:
            # One object each: PopTorch freezes it.
            self._executor = self._poptorch.inferenceModel(self._tower, self._options())
        full = [np.repeat(array, self._shape.rows, axis=0) for array in self._example]
        self._executor.compile(*(torch.from_numpy(array) for array in full))
        if not np.isfinite(self._call(full)).all():
            raise RuntimeError('the IPU gave numbers that are not finite')

    def run(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """At most `rows` items to vectors [N, D] float32; rows that are missing are filled and cut away again.

        A row that is not finite is for the caller to see, so that it fails alone.

        Raises:
            poptorch.Error: of the kinds that PopTorch has.
        """
        count = len(inputs[0])
        full = [
            np.concatenate([array, np.repeat(filler, self._shape.rows - count, axis=0)])
            for array, filler in zip(inputs, self._example)  # noqa: B905 - strict= is not in Python 3.8
        ]
        return self._call(full)[:count]

    def pieces(self, inputs: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        """The inputs in lots of `rows`."""
        for start in range(0, len(inputs[0]), self._shape.rows):
            yield [array[start : start + self._shape.rows] for array in inputs]

    @property
    def replicas(self) -> int:
        """Copies of the tower, each on an IPU of its own."""
        return self._shape.replicas

    def restart(self) -> None:
        """Give the IPU back, and start again from the beginning: that resets it."""
        self._executor.destroy()
        self.start()

    def close(self) -> None:
        """Give the IPU back."""
        if self._executor is not None:
            if self._executor.isAttachedToDevice():
                self._executor.detachFromDevice()
            self._executor.destroy()
            self._executor = None

    def _call(self, full: Sequence[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            vectors: np.ndarray = self._executor(*(torch.from_numpy(array) for array in full)).numpy()
        # Not an assert: python -O drops those, and another output mode would lose rows without a word.
        if vectors.shape != (self._shape.rows, self._dimension):
            raise RuntimeError(f'the IPU gave vectors of shape {vectors.shape}')
        return vectors

    def _options(self) -> Any:
        options = self._poptorch.Options()
        options.deviceIterations(self._shape.iterations)
        options.replicationFactor(self._shape.replicas)
        options.outputMode(self._poptorch.OutputMode.All)
        options.setAvailableMemoryProportion({'IPU0': MEMORY_PROPORTION})
        options.showCompilationProgressBar(False)
        if self._shape.cache:
            options.enableExecutableCaching(self._shape.cache)
        return options


class Job:
    """One request on its way: the caller waits for `done`, then takes `vectors` or `error`."""

    def __init__(self, model: str, inputs: Sequence[np.ndarray], seconds: float | None) -> None:
        self.model = model
        self.inputs = inputs
        self.done = threading.Event()
        self.vectors: np.ndarray | None = None
        self.error: Refused | None = None
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._given_up = False

    def give_up(self) -> None:
        """The caller does not want it any more."""
        self._given_up = True
        self.done.set()

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self._given_up and (self._deadline is None or time.monotonic() < self._deadline)

    def finish(self, vectors: np.ndarray | None, error: Refused | None = None) -> None:
        """Let the caller go on."""
        self.vectors, self.error = vectors, error
        self.done.set()


class Runner(threading.Thread):
    """The one thread that calls the IPU.

    Args:
        poptorch: the package, or a double of it.
        towers: by the name of the model.
        limit: how many jobs may wait.
        on_ready: called when all towers are compiled.
        on_failure: called when this process cannot go on; `failure` says why.
    """

    def __init__(
        self,
        poptorch: Any,
        towers: dict[str, CompiledTower],
        limit: int,
        on_ready: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        super().__init__(name='ipu', daemon=True)
        self._poptorch = poptorch
        self._towers = towers
        self._on_ready, self._on_failure = on_ready, on_failure
        self._places = threading.BoundedSemaphore(limit)
        self._jobs: Any = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = False
        """Whether jobs are taken; changed under the lock, so that none is put behind the end of the queue."""
        self._stopping = False
        self._reason = 'the worker is still compiling; wait until it is ready'
        self.ready = False
        self.failure = ''

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Refused: UNAVAILABLE or RESOURCE_EXHAUSTED.
        """
        with self._lock:
            if not self._open:
                raise Refused('UNAVAILABLE', self._reason)
            if not self._places.acquire(blocking=False):
                raise Refused('RESOURCE_EXHAUSTED', 'the queue of the IPU is full; try again later')
            self._jobs.put(job)

    def stop(self) -> None:
        """Take no more jobs, finish those that wait, and give the IPUs back. Join to wait for it."""
        self._stopping = True
        self._shut('the worker is stopping')
        self._jobs.put(None)

    def run(self) -> None:
        """Of the thread: compile, then answer until the end."""
        try:
            for tower in self._towers.values():
                tower.start()
            with self._lock:
                self.ready = self._open = not self._stopping
            if self.ready:
                self._on_ready()
            while True:
                job = self._jobs.get()
                if job is None:
                    break
                self._places.release()
                self._answer(job)
        except Exception as error:  # PopTorch raises its own kinds and AssertionError; none may end the thread unseen
            self._fail(_first_line(error) + self._hint(error))
        self._close()

    def _answer(self, job: Job) -> None:
        try:
            job.finish(self._vectors(job))
        except Refused as error:
            job.finish(None, error)
        except Fatal:
            job.finish(None, Refused('UNAVAILABLE', 'the IPU has failed and the worker ends; try again elsewhere'))
            raise
        except Exception as error:
            job.finish(None, Refused('INTERNAL', f'the IPU could not run this: {_first_line(error)}'))

    def _vectors(self, job: Job) -> np.ndarray:
        tower = self._towers[job.model]
        found = []
        for piece in tower.pieces(job.inputs):
            if not job.wanted:
                raise Refused('DEADLINE_EXCEEDED', 'the caller had given up before this was run')
            found.append(self._run(tower, piece))
        return np.concatenate(found)

    def _run(self, tower: CompiledTower, piece: Sequence[np.ndarray]) -> np.ndarray:
        """One call; after a recoverable error once more, from a new start.

        Raises:
            Fatal: it cannot be recovered from within.
        """
        try:
            return tower.run(piece)
        except self._poptorch.UnrecoverableError as error:
            raise Fatal(f'the IPU reports an error that cannot be recovered: {_first_line(error)}') from None
        except self._poptorch.RecoverableError as error:
            # Read at once: PopTorch keeps it on the class.
            action, reason = str(getattr(error, 'recovery_action', '')), _first_line(error)
        if action != 'IPU_RESET':
            raise Fatal(f'the IPU needs a {action} from outside before it can go on: {reason}')
        say(f'the IPU reports a recoverable error and is started again: {reason}')
        self.ready = False
        try:
            tower.restart()
        except Exception as again:  # whatever it is, this tower is not there any more
            raise Fatal(f'the IPU failed again in a new start: {_first_line(again)}') from None
        self.ready = self._open
        try:
            return tower.run(piece)
        except self._poptorch.Error as again:
            raise Fatal(f'the IPU failed again after a new start: {_first_line(again)}') from None

    def _hint(self, error: Exception) -> str:
        if _NO_IPU not in str(error):
            return ''
        replicas = next(iter(self._towers.values())).replicas
        return f'; both towers together take twice NUM_AVAILABLE_IPU, which is {replicas}'

    def _shut(self, reason: str) -> None:
        with self._lock:
            self.ready = self._open = False
            self._reason = reason

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._shut(f'the IPU has failed: {reason}')
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.finish(None, Refused('UNAVAILABLE', self._reason))
        self._on_failure()

    def _close(self) -> None:
        for tower in self._towers.values():
            try:
                tower.close()
            except self._poptorch.Error as error:
                # The process ends anyway, and with it its hold on the device.
                say(f'an IPU could not be given back: {_first_line(error)}')


def say(sentence: str) -> None:
    """One line to the log."""
    print(f'ipu_worker: {sentence}', file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

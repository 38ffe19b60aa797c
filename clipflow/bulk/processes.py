"""The same task for several parts, in processes that tell how far they are and end with the one that started them."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from clipflow.errors import Unavailable

T = TypeVar('T')
_SECONDS = 0.2
_AT_ONCE = 1000

Told = Callable[[str, int], None]
_HERE: dict[str, Any] = {}
"""In a process of the pool: where it tells, and whether it is to stop."""


class _Stopped(Exception):
    """The work is given up because another part failed, or at Ctrl-C."""


def each(parts: Sequence[T], task: Callable[[T, Told], None], workers: int, told: Told) -> None:
    """Do `task(part, told)` for every part, in `workers` processes; in this one if one is enough.

    Args:
        parts: can be pickled.
        task: a function of a module; calls `told` often, which ends it when the work is given up.
        workers: how many run at once.
        told: hears what all of them tell.

    Raises:
        ClipflowError: that of the first part that failed.
        Unavailable: a process was killed.
    """
    if workers == 1:
        for part in parts:
            task(part, told)
        return
    # Spawned: FAISS's and SQLite's threads and locks do not survive a fork.
    context = multiprocessing.get_context('spawn')
    # A flag without a lock: a process that is killed while it has one would keep it for ever.
    messages, stop = context.SimpleQueue(), context.RawValue('b', 0)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(messages, stop)) as pool:
        with deaf():
            waiting: set[Future[None]] = {pool.submit(_do, task, part) for part in parts}
            # The pool does not watch a process that it started since it last woke up; this wakes it.
            pool.submit(int)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_SECONDS)
                _hear(messages, told)
                for future in done:
                    future.result()
            while not messages.empty():
                _hear(messages, told)
        except BrokenProcessPool:
            stop.value = 1
            raise Unavailable(
                'a process of this command was killed, perhaps for lack of memory; the same command goes on where '
                'this one stopped'
            ) from None
        except BaseException:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    messages.close()


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started meanwhile never hear Ctrl-C, which reaches all of a terminal: this one decides."""
    resource_tracker.ensure_running()  # the first process would start it, after which this would be undone
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear(messages: Any, told: Told) -> None:
    for _ in range(_AT_ONCE):
        if messages.empty():
            return
        told(*messages.get())


def _begin(messages: Any, stop: Any) -> None:
    _HERE.update(messages=messages, stop=stop)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name='parent-watch', daemon=True).start()


def _do(task: Callable[[Any, Told], None], part: Any) -> None:
    # What the task has imported may have taken the signal by which a broken pool ends its other processes.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unheard: dict[str, int] = {}
    heard = time.monotonic()

    def told(phase: str, count: int) -> None:
        nonlocal heard
        if _HERE['stop'].value:
            raise _Stopped
        unheard[phase] = unheard.get(phase, 0) + count
        # Seldom: whoever fills the pipe waits for a reader, who may have given up.
        if time.monotonic() - heard > _SECONDS:
            tell()
            heard = time.monotonic()

    def tell() -> None:
        for phase, count in unheard.items():
            _HERE['messages'].put((phase, count))
        unheard.clear()

    task(part, told)
    tell()

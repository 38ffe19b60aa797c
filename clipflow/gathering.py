"""Calls that arrive while another one runs are run together: a batch across requests, without waiting for one.

A lone call starts at once. Under load the time that the model takes is the time in which the next batch gathers, so
there is no window to choose and no delay for a single query. Jina's own batching waits a full window for each call,
keeps one queue for every set of parameters, and lets one bad document fail all that are with it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from clipflow.errors import ClipflowError, Internal
from clipflow.wire import Parameters
from clipflow.work import WorkQueue

Job = TypeVar('Job')


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Job]):
    parameters: Parameters
    job: Job
    size: int
    done: asyncio.Future[None]


class Gathering(Generic[Job]):
    """Runs jobs of several callers in one call.

    Args:
        work: the thread that runs them, and the bound on what may wait.
        call: runs some jobs; what is wrong with one of them it writes into that one.
        most: items in one call; one job may have more.
    """

    def __init__(self, work: WorkQueue, call: Callable[[list[Job]], None], most: int) -> None:
        self._work = work
        self._call = call
        self._most = most
        self._waiting: deque[_Waiting[Job]] = deque()
        self._draining: asyncio.Task[None] | None = None
        self.calls = 0
        self.items = 0
        self._sizes: dict[int, int] = {}
        self.failed = False
        """Whether a call as a whole has failed; who has seen the model answer again sets it back."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """How many calls had at most so many items (a power of two), and more than the power below."""
        return sorted(self._sizes.items())

    async def run(self, parameters: Parameters, job: Job, size: int) -> None:
        """Run `job`, which has `size` items, together with what else is waiting.

        Raises:
            Overloaded: the queue is full.
            Timeout: the caller's deadline passed while it waited.
        """
        async with self._work.place():
            waiting = _Waiting(parameters, job, size, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            if self._draining is None:
                self._draining = asyncio.create_task(self._drain())
            try:
                await waiting.done
            finally:
                if waiting in self._waiting:  # its caller has gone, and its pixels need not stay
                    self._waiting.remove(waiting)

    async def _drain(self) -> None:
        try:
            while batch := self._next():
                self.calls += 1
                size = sum(waiting.size for waiting in batch)
                self.items += size
                most = 1 << max(0, size - 1).bit_length()
                self._sizes[most] = self._sizes.get(most, 0) + 1
                try:
                    await self._work.in_turn(self._call, [waiting.job for waiting in batch])
                except Exception as error:
                    self.failed = True
                    await self._fail(batch, error)
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_result(None)
        finally:
            self._draining = None

    def _next(self) -> list[_Waiting[Job]]:
        """What is run now: the oldest, and as many behind it as fit. Who has given up is left out."""
        batch: list[_Waiting[Job]] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].size <= self._most):
            waiting = self._waiting.popleft()
            if waiting.done.done():
                continue  # its caller has gone
            try:
                waiting.parameters.check_deadline()
            except ClipflowError as error:
                waiting.done.set_exception(error)
                continue
            batch.append(waiting)
            size += waiting.size
        return batch

    async def _fail(self, batch: list[_Waiting[Job]], error: Exception) -> None:
        """A server that is away concerns all; what one job may have caused is looked for, so that it fails alone."""
        common = isinstance(error, ClipflowError) and not isinstance(error, Internal)
        if len(batch) == 1 or common:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            return
        for waiting in batch:
            try:
                await self._work.in_turn(self._call, [waiting.job])
            except Exception as own:
                if not waiting.done.done():
                    waiting.done.set_exception(own)

"""A bounded queue in front of worker threads: what a stage computes runs here, off the event loop."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from clipflow.errors import Overloaded
from clipflow.wire import Parameters

P = ParamSpec('P')
T = TypeVar('T')
Item = TypeVar('Item')
_GROUPS = Path('/sys/fs/cgroup')


def cores() -> int:
    """Those that this process may use: by its affinity, where the system has one, and by the quota of its group."""
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux has it, macOS has not
    there = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([there, *_quotas()]))


def _quotas() -> list[int]:
    """Cores that control groups (version 2, then 1) leave to this container, rounded up."""
    found: list[int] = []
    for names in (('cpu.max',), ('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us')):
        try:
            quota, period = map(int, ' '.join((_GROUPS / name).read_text() for name in names).split())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if quota > 0 and period > 0:  # -1: no limit
            found.append(math.ceil(quota / period))
    return found


def share_of_cores(threads: int, replicas: int) -> int:
    """Threads for one of `replicas` processes on this host; a setting other than 0 is taken as it is."""
    return threads or max(1, cores() // max(1, replicas))


class WorkQueue:
    """Runs functions on `threads` threads; at most `limit` calls may wait or run.

    Args:
        name: of the stage, for messages and thread names.
        threads: how many calls run at once.
        limit: how many calls are taken in.
    """

    def __init__(self, name: str, threads: int, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.taken = 0

    async def run(self, parameters: Parameters, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` in turn and return its result.

        Raises:
            Overloaded: the queue is full.
            Timeout: the caller's deadline passed while it waited; the call was not made.
        """
        async with self.place():
            return await self._checked(parameters, call, *args, **kwargs)

    async def map(self, parameters: Parameters, call: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Run `call` on every item, as many at once as there are threads; the request takes one place.

        Raises:
            Overloaded, Timeout: as `run`.
        """
        if items:
            async with self.place():
                await asyncio.gather(*(self._checked(parameters, call, item) for item in items))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One place in the queue; raises Overloaded if there is none."""
        if self.taken >= self._limit:
            raise Overloaded(f'the {self._name} has {self._limit} requests waiting; try again a little later')
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def _checked(self, parameters: Parameters, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def checked() -> T:
            parameters.check_deadline()
            return call(*args, **kwargs)

        return await self.in_turn(checked)

    async def in_turn(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on one of the threads; the caller has a place."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*args, **kwargs))

    def do(self, call: Callable[[], T]) -> T:
        """Run `call` on one of the threads and wait for it, before there is an event loop."""
        return self._pool.submit(call).result()

    def close(self) -> None:
        """Wait for what runs and stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

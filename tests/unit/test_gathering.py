"""Calls that wait together run together; a lone one does not wait, and a bad one fails alone."""

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import dataclass, field

import pytest

from clipflow.errors import ClipflowError, Internal, Overloaded, Timeout, Unavailable
from clipflow.gathering import Gathering
from clipflow.wire import Parameters
from clipflow.work import WorkQueue

NO_DEADLINE = Parameters.parse({})


@dataclass
class Recorder:
    """Runs jobs, slowly if it is told to, and remembers which ran together."""

    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[list[str]] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: ValueError('a bad job'))

    def __call__(self, jobs: list[str]) -> None:
        self.calls.append(list(jobs))
        if not self.gate.wait(10):
            raise AssertionError('the gate stayed closed')
        if 'bad' in jobs:
            raise self.error


def gathering(call: Recorder, most: int = 4, limit: int = 100) -> Gathering[str]:
    return Gathering(WorkQueue('encoder', 1, limit), call, most)


async def started(call: Recorder, calls: int = 1) -> None:
    while len(call.calls) < calls:
        await asyncio.sleep(0.001)


def test_a_lone_call_starts_at_once_and_those_behind_it_run_together() -> None:
    async def scene() -> None:
        call = Recorder()
        group = gathering(call)
        first = asyncio.create_task(group.run(NO_DEADLINE, 'a', 1))
        await started(call)
        others = [asyncio.create_task(group.run(NO_DEADLINE, name, 1)) for name in 'bcdef']
        await asyncio.sleep(0)
        call.gate.set()
        await asyncio.gather(first, *others)
        assert call.calls == [['a'], ['b', 'c', 'd', 'e'], ['f']]
        assert (group.calls, group.items) == (3, 6)

    asyncio.run(scene())


def test_a_job_that_is_larger_than_a_batch_runs_alone() -> None:
    async def scene() -> None:
        call = Recorder()
        group = gathering(call)
        tasks = [asyncio.create_task(group.run(NO_DEADLINE, 'a', 1))]
        await started(call)
        tasks += [asyncio.create_task(group.run(NO_DEADLINE, name, size)) for name, size in (('large', 9), ('b', 1))]
        await asyncio.sleep(0)
        call.gate.set()
        await asyncio.gather(*tasks)
        assert call.calls == [['a'], ['large'], ['b']]

    asyncio.run(scene())


async def three_together(group: Gathering[str], call: Recorder) -> list[BaseException | None]:
    """What becomes of three jobs that have come while another ran, of which one is bad."""
    first = asyncio.create_task(group.run(NO_DEADLINE, 'a', 1))
    await started(call)
    tasks = [asyncio.create_task(group.run(NO_DEADLINE, name, 1)) for name in ('good', 'bad', 'other')]
    await asyncio.sleep(0)
    call.gate.set()
    await first
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def test_a_job_that_raises_fails_alone() -> None:
    async def scene() -> None:
        call = Recorder()
        group = gathering(call)
        found = await three_together(group, call)
        assert [type(one) for one in found] == [type(None), ValueError, type(None)]
        await group.run(NO_DEADLINE, 'again', 1)

    asyncio.run(scene())


def test_who_has_given_up_is_not_run() -> None:
    async def scene() -> None:
        call = Recorder()
        group = gathering(call)
        first = asyncio.create_task(group.run(NO_DEADLINE, 'a', 1))
        await started(call)
        late = Parameters.parse({'__deadline': time.time() + 0.05})
        gone = asyncio.create_task(group.run(NO_DEADLINE, 'gone', 1))
        tasks = [asyncio.create_task(group.run(late, 'late', 1)), asyncio.create_task(group.run(NO_DEADLINE, 'b', 1))]
        await asyncio.sleep(0.06)
        gone.cancel()
        call.gate.set()
        await first
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found] == [Timeout, type(None)]
        assert call.calls == [['a'], ['b']]

    asyncio.run(scene())


def test_who_has_given_up_leaves_nothing_behind_while_another_call_runs() -> None:
    class Pixels(str):
        pass

    async def scene() -> None:
        call = Recorder()
        group = gathering(call)
        first = asyncio.create_task(group.run(NO_DEADLINE, 'a', 1))
        await started(call)
        pixels = Pixels('b')
        kept = weakref.ref(pixels)
        gone = asyncio.create_task(group.run(NO_DEADLINE, pixels, 1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        del pixels, gone
        gc.collect()
        assert kept() is None
        call.gate.set()
        await first

    asyncio.run(scene())


@pytest.mark.parametrize(('error', 'calls'), [(Internal('no'), 4), (Unavailable('no'), 1), (Timeout('no'), 1)])
def test_what_a_server_refuses_is_looked_for_and_a_server_that_is_away_is_not_asked_again(
    error: ClipflowError, calls: int
) -> None:
    async def scene() -> None:
        call = Recorder(error=error)
        group = gathering(call)
        found = await three_together(group, call)
        alone = isinstance(error, Internal)
        assert [one is error for one in found] == [not alone, True, not alone]
        assert len(call.calls) == 1 + calls
        assert group.failed

    asyncio.run(scene())


def test_what_may_wait_is_bounded() -> None:
    async def scene() -> None:
        call = Recorder()
        group = gathering(call, limit=2)
        tasks = [asyncio.create_task(group.run(NO_DEADLINE, name, 1)) for name in 'ab']
        await started(call)
        with pytest.raises(Overloaded, match='encoder'):
            await group.run(NO_DEADLINE, 'c', 1)
        call.gate.set()
        await asyncio.gather(*tasks)
        await group.run(NO_DEADLINE, 'd', 1)

    asyncio.run(scene())

"""The bounded queue in front of worker threads."""

import asyncio
import os
import threading
import time

import pytest

from clipflow import wire
from clipflow.errors import Overloaded, Timeout
from clipflow.wire import Parameters
from clipflow.work import WorkQueue, share_of_cores

NO_DEADLINE = Parameters.parse({})


def test_a_call_runs_on_a_thread_of_the_queue_and_its_result_comes_back() -> None:
    queue = WorkQueue('encoder', 1, 4)
    found = asyncio.run(queue.run(NO_DEADLINE, lambda word: (word, threading.current_thread().name), 'cat'))
    queue.close()
    assert found[0] == 'cat'
    assert found[1].startswith('encoder')


def test_what_a_call_raises_comes_out_and_frees_the_place() -> None:
    queue = WorkQueue('encoder', 1, 1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(queue.run(NO_DEADLINE, lambda: 1 // 0))
    assert asyncio.run(queue.run(NO_DEADLINE, lambda: 'free')) == 'free'
    queue.close()


def test_a_full_queue_refuses_one_more_and_takes_it_when_there_is_room() -> None:
    gate = threading.Event()

    async def scene() -> None:
        queue = WorkQueue('indexer', 1, 2)
        taken = [asyncio.create_task(queue.run(NO_DEADLINE, gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match='indexer'):
            await queue.run(NO_DEADLINE, gate.wait)
        gate.set()
        await asyncio.gather(*taken)
        assert await queue.run(NO_DEADLINE, lambda: 'room') == 'room'
        assert queue.taken == 0
        queue.close()

    asyncio.run(scene())


def test_a_call_whose_deadline_passes_while_it_waits_is_not_made() -> None:
    gate, called = threading.Event(), []

    async def scene() -> None:
        queue = WorkQueue('indexer', 1, 4)
        first = asyncio.create_task(queue.run(NO_DEADLINE, gate.wait))
        late = Parameters.parse({wire.DEADLINE: time.time() - 1})
        second = asyncio.create_task(queue.run(late, called.append, 1))
        await asyncio.sleep(0)
        gate.set()
        await first
        with pytest.raises(Timeout):
            await second
        queue.close()

    asyncio.run(scene())
    assert called == []


def test_a_request_with_many_items_takes_one_place() -> None:
    done: list[int] = []

    async def scene() -> None:
        queue = WorkQueue('preprocessor', 2, 1)
        await queue.map(NO_DEADLINE, done.append, range(50))
        await queue.map(NO_DEADLINE, done.append, [])
        queue.close()

    asyncio.run(scene())
    assert sorted(done) == list(range(50))


def test_replicas_share_the_cores_and_a_setting_is_taken_as_it_is() -> None:
    cores = len(os.sched_getaffinity(0))
    assert share_of_cores(0, 1) == cores
    assert share_of_cores(0, 10 * cores) == 1
    assert share_of_cores(3, 10 * cores) == 3

"""The bounded queue in front of worker threads."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from clipflow import wire, work
from clipflow.errors import Overloaded, Timeout
from clipflow.wire import Parameters
from clipflow.work import WorkQueue, cores, share_of_cores

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


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups that limits nothing, on a machine of eight cores."""
    monkeypatch.setattr(work, '_GROUPS', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    return tmp_path


@pytest.mark.usefixtures('groups')
def test_replicas_share_the_cores_and_a_setting_is_taken_as_it_is() -> None:
    assert cores() == 8
    assert share_of_cores(0, 1) == 8
    assert share_of_cores(0, 3) == 2
    assert share_of_cores(0, 80) == 1
    assert share_of_cores(3, 80) == 3


@pytest.mark.usefixtures('groups')
def test_a_system_without_affinity_has_the_cores_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, 'sched_getaffinity')  # macOS
    monkeypatch.setattr(os, 'cpu_count', lambda: 5)
    assert cores() == 5
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        ('max 100000\n', 8),
        ('200000 100000\n', 2),
        ('150000 100000\n', 2),
        ('10000 100000\n', 1),
        ('1600000 100000\n', 8),
        ('', 8),
        ('0 0', 8),
    ],
)
def test_the_quota_of_a_container_counts_rounded_up(groups: Path, content: str, expected: int) -> None:
    (groups / 'cpu.max').write_text(content)
    assert cores() == expected


@pytest.mark.parametrize(('quota', 'expected'), [('-1\n', 8), ('250000\n', 3), ('5000\n', 1)])
def test_the_quota_of_the_older_control_groups_counts_too(groups: Path, quota: str, expected: int) -> None:
    (groups / 'cpu').mkdir()
    (groups / 'cpu' / 'cpu.cfs_quota_us').write_text(quota)
    (groups / 'cpu' / 'cpu.cfs_period_us').write_text('100000\n')
    assert cores() == expected

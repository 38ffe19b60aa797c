"""Writes wait at the gate while it is held, for as long as their deadlines allow."""

import asyncio
import time

import pytest

from clipflow.border.gate import Gate
from clipflow.errors import Timeout


def test_a_held_gate_lets_a_write_in_when_it_is_released() -> None:
    async def run() -> list[str]:
        gate, seen = Gate(), []

        async def write() -> None:
            async with gate.passed(time.time() + 10):
                seen.append('written')

        await gate.hold()
        waiting = asyncio.create_task(write())
        await asyncio.sleep(0)
        seen.append('released')
        gate.release()
        await waiting
        return seen

    assert asyncio.run(run()) == ['released', 'written']


def test_holding_waits_for_the_writes_inside() -> None:
    async def run() -> list[str]:
        gate, seen = Gate(), []
        inside, go = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with gate.passed(time.time() + 10):
                inside.set()
                await go.wait()
                seen.append('written')

        writing = asyncio.create_task(write())
        await inside.wait()
        holding = asyncio.create_task(gate.hold())
        await asyncio.sleep(0)
        go.set()
        await holding
        seen.append('held')
        await writing
        return seen

    assert asyncio.run(run()) == ['written', 'held']


def test_a_write_whose_deadline_passes_at_the_gate_is_told_so() -> None:
    async def run() -> None:
        gate = Gate()
        await gate.hold()
        async with gate.passed(time.time() + 0.02):
            raise AssertionError('was let in')

    with pytest.raises(Timeout, match='writes wait'):
        asyncio.run(run())

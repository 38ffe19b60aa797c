"""Stages are killed, stopped and frozen at random under load; the long form of this is benchmarks/chaos.py."""

import asyncio
from pathlib import Path

import chaos
from forms import LONG
from service import Service

SECONDS = 120 if LONG else 15


def test_what_is_acknowledged_is_kept_and_failures_are_typed_and_may_pass(tmp_path: Path) -> None:
    with Service(tmp_path / 'workspace', {'RUNTIME': 'fake'}, chaos.flow(tmp_path)) as service:
        load, disturbances = asyncio.run(chaos.run(service, SECONDS, seed=1))
        broken, count = asyncio.run(load.broken())
    assert disturbances.done.total() >= 3
    assert count > 20
    assert not broken
    assert not load.callers.faults
    assert not load.probe.faults
    assert load.callers.success >= chaos.WANTED, load.callers.failures

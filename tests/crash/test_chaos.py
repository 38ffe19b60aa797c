"""Stages are killed, stopped and frozen at random under load; the long form of this is benchmarks/chaos.py."""

import asyncio
from pathlib import Path

import chaos
from forms import LONG
from service import Service

SECONDS = 120 if LONG else 15


def test_what_is_acknowledged_is_kept_and_failures_are_typed_and_may_pass(tmp_path: Path) -> None:
    with Service(tmp_path / 'workspace', {'RUNTIME': 'fake'}, chaos.flow(tmp_path)) as service:
        done = documents = 0
        for seed in range(1, 6):
            service.post('/clear')
            load, disturbances = asyncio.run(chaos.run(service, SECONDS, seed))
            broken, count = asyncio.run(load.broken())
            assert not broken
            assert not load.callers.faults
            assert not load.probe.faults
            assert load.callers.success >= chaos.WANTED, load.callers.failures
            done, documents = done + disturbances.done.total(), documents + count
            if done >= 3 and documents > 20:  # else the stages took most of the time to start again: then once more
                break
        assert done >= 3
        assert documents > 20

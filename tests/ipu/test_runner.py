"""The thread of the worker, with towers that fail as they are told to."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from .process import FOLDER, SECONDS


class PopTorch:
    """Its errors."""

    class Error(Exception):
        pass

    class RecoverableError(Error):
        recovery_action = 'IPU_RESET'

    class UnrecoverableError(Error):
        pass


class Tower:
    """Raises one error after the other, and nothing where there is none."""

    def __init__(self, *runs: Exception | None, restarts: Exception | None = None) -> None:
        self._runs, self._restart = iter(runs), restarts

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def restart(self) -> None:
        if self._restart:
            raise self._restart

    def pieces(self, inputs: Any) -> Iterator[Any]:
        yield inputs

    def run(self, piece: Any) -> Any:
        if error := next(self._runs, None):
            raise error
        return np.zeros((1, 3), np.float32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the worker does."""
    monkeypatch.syspath_prepend(Path(FOLDER))
    import ipu_device

    return ipu_device


@pytest.fixture
def started(device: Any) -> Iterator[Callable[[Tower], Any]]:
    """A runner that is ready."""
    running = []

    def start(tower: Tower) -> Any:
        ready = threading.Event()
        runner = device.Runner(PopTorch, {'clip_image': tower}, 4, ready.set, lambda: None)
        runner.start()
        running.append(runner)
        assert ready.wait(SECONDS)
        return runner

    yield start
    for runner in running:
        runner.stop()
        runner.join(SECONDS)


def error_of(device: Any, runner: Any) -> Any:
    job = device.Job('clip_image', [np.zeros((1, 3))], None)
    runner.submit(job)
    assert job.done.wait(SECONDS)
    return job.error


def test_after_a_new_start_it_is_ready_whatever_becomes_of_the_call(device: Any, started: Any) -> None:
    runner = started(Tower(PopTorch.RecoverableError(), RuntimeError('a bad call')))
    assert error_of(device, runner).code == 'INTERNAL'
    assert runner.ready
    assert error_of(device, runner) is None
    assert runner.failure == ''


@pytest.mark.parametrize('error', [RuntimeError('the shape'), AssertionError('offline'), PopTorch.Error('no IPU')])
def test_a_start_that_fails_ends_it(device: Any, started: Any, error: Exception) -> None:
    runner = started(Tower(PopTorch.RecoverableError(), restarts=error))
    assert error_of(device, runner).code == 'UNAVAILABLE'
    runner.join(SECONDS)
    assert not runner.ready
    assert str(error) in runner.failure


def test_numbers_that_are_not_finite_stop_a_start_and_later_only_their_own_row(device: Any) -> None:
    poptorch = MagicMock()
    executor = poptorch.inferenceModel.return_value
    example, row = [np.ones((1, 3), np.float32)], np.full((1, 3), np.nan, np.float32)
    tower = device.CompiledTower(poptorch, None, example, 3, device.Shape(2, 1, 1, ''))
    executor.side_effect = lambda rows: rows * torch.nan
    with pytest.raises(RuntimeError, match='not finite'):
        tower.start()
    executor.side_effect = lambda rows: rows
    tower.start()
    found = tower.run([np.concatenate([example[0], row])])
    assert np.isfinite(found).tolist() == [[True] * 3, [False] * 3]
    executor.side_effect = lambda rows: rows[:1]
    with pytest.raises(RuntimeError, match='shape'):
        tower.run(example)

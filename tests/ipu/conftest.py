"""A tiny checkpoint, a worker that serves it, and the reference."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipflow.sessions.base import Options
from clipflow.sessions.torch import TorchSession, load
from clipflow.weights import load_spec
from unit import checkpoints

from .process import Worker


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the family clip."""
    return checkpoints.build('clip', tmp_path_factory.mktemp('clip') / 'model')


@pytest.fixture(scope='session')
def reference(checkpoint: Path) -> TorchSession:
    """float32 on the CPU."""
    return load(load_spec(str(checkpoint)), Options('cpu', 'float32', 1, True, Path()))


@pytest.fixture(scope='session')
def _worker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp('worker')
    flags = ('--batch=2', '--device-iterations=2', '--largest=40', '--queue=2', '--fingerprint=0123abcd')
    with Worker(checkpoint, folder, *flags, NUM_AVAILABLE_IPU='2') as running:
        yield running.ready()


@pytest.fixture
def worker(_worker: Worker) -> Worker:
    """Ready, with two replicas and two iterations: eight rows a call."""
    assert _worker.is_ready()
    return _worker


@pytest.fixture(scope='session')
def random() -> np.random.Generator:
    """Always the same."""
    return np.random.default_rng(3)

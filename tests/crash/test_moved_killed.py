"""kill -9 of `clipflow reshard` and `clipflow reindex` at random points: every document is there, under one model."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from clipflow import ROOT
from clipflow.bulk import workspace
from clipflow.sharding import shard_of
from clipflow.store import generations, layout
from clipflow.store.reading import Documents, Record
from clipflow.weights import load_spec
from forms import LONG

KILLS, WANTED = (40, 40) if LONG else (20, 1)
"""At most so many, and until so many came before the end of the work."""
COUNT = 2000
SEED = 20261201
MINI = ROOT / 'models' / 'clip-mini'


@pytest.fixture(scope='module')
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with another fingerprint; the runtime `fake` reads no weights."""
    folder = tmp_path_factory.mktemp('models') / 'other'
    shutil.copytree(MINI, folder)
    path = folder / 'preprocessor_config.json'
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, 'image_mean': [0.5, 0.5, 0.4]}))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rows = np.random.default_rng(SEED).normal(size=(COUNT, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with workspace.opened(generations.current(tmp_path), load_spec(str(MINI)), 2) as stores:
        workspace.put(stores, [Record(f'{n}', f'text {n}', '', '{}', row) for n, row in enumerate(rows)])
    return tmp_path


def command(home: Path, *given: str, model: Path = MINI) -> 'subprocess.Popen[str]':
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(home), 'CLIPFLOW_MODEL': str(model)}
    line = [sys.executable, '-m', 'clipflow.cli.main', *given]
    environment['CLIPFLOW_RUNTIME'] = 'fake'
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def directories(home: Path) -> set[Path]:
    return {path for path in home.iterdir() if path.is_dir()}


def files(home: Path) -> set[tuple[str, int]]:
    """Everything there, and when it was written last."""
    found = set()
    for path in home.rglob('*'):
        with suppress(FileNotFoundError):  # gone since
            found.add((str(path), path.stat().st_mtime_ns))
    return found


class Run:
    """A command that works in a home; `start` is called when that is as it was before."""

    def __init__(self, home: Path, start: 'Callable[[], subprocess.Popen[str]]') -> None:
        self._home, self._before = home, files(home)
        self._process = start()

    def _begin(self) -> None:
        """Wait for the first trace of it."""
        latest = time.monotonic() + 120
        while files(self._home) == self._before and self._process.poll() is None:
            assert time.monotonic() < latest
            time.sleep(0.001)

    def end(self) -> float:
        """For how many seconds it worked after its first trace."""
        self._begin()
        begun = time.monotonic()
        _, complained = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, complained
        return time.monotonic() - begun

    def kill(self, after: float) -> None:
        """So many seconds after its first trace, if it works for so long."""
        self._begin()
        try:
            self._process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=120)


def moments(took: float) -> Iterator[float]:
    """After how many seconds of its work a run is killed."""
    chosen = random.Random(SEED)
    return (chosen.uniform(0, took) for _ in range(KILLS))


def state(home: Path) -> tuple[int, str]:
    """Shards and fingerprint of the documents that count; every one is there once, and in its place."""
    folder = generations.current(home)
    names: list[str] = []
    shards, models = workspace.shards_in(folder), set()
    for number, path in layout.shards(folder).items():
        store = Documents(path)
        found = store.ids()
        assert {shard_of(name, shards) for name in found} <= {number}
        names += found
        models.add(store.model()[0])
        store.close()
    assert sorted(names) == sorted(f'{n}' for n in range(COUNT))
    (model,) = models
    return shards, model


def test_documents_survive_a_move_that_is_killed(home: Path) -> None:
    def move() -> 'subprocess.Popen[str]':
        return command(home, 'reshard', '--to', '2' if before == 3 else '3')

    before, _ = state(home)
    took = Run(home, move).end()
    interrupted = 0
    for moment in moments(took):
        before, _ = state(home)
        Run(home, move).kill(moment)
        after, _ = state(home)
        assert after in (2, 3)
        interrupted += after == before
        if interrupted >= WANTED:
            break
    assert interrupted
    before, _ = state(home)
    Run(home, move).end()
    assert state(home)[0] == 5 - before
    assert directories(home) == {generations.current(home)}


def test_documents_survive_a_change_of_model_that_is_killed(home: Path, other: Path) -> None:
    models = {load_spec(str(path)).fingerprint: path for path in (MINI, other)}

    def change() -> 'subprocess.Popen[str]':
        return command(home, 'reindex', str(next(path for known, path in models.items() if known != before[1])))

    before = state(home)
    took = Run(home, change).end()
    interrupted = 0
    for moment in moments(took):
        before = state(home)
        Run(home, change).kill(moment)
        interrupted += state(home) == before
        if interrupted >= WANTED:
            break
    assert interrupted
    before = state(home)
    Run(home, change).end()
    assert state(home)[0] == 2
    assert directories(home) == {generations.current(home)}

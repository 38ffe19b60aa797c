"""kill -9 of `clipflow reshard` and `clipflow reindex` at random points: every document is there, under one model."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
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

KILLS = 40 if LONG else 1
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


def done(run: 'subprocess.Popen[str]', home: Path) -> tuple[float, float]:
    """After how many seconds there was a first trace of it, and after how many it had ended."""
    begun, before = time.monotonic(), directories(home)
    while directories(home) == before and run.poll() is None:
        assert time.monotonic() < begun + 60
        time.sleep(0.001)
    trace = time.monotonic() - begun
    _, complained = run.communicate(timeout=120)
    assert run.returncode == 0, complained
    return trace, time.monotonic() - begun


def moments(trace: float, end: float) -> list[float]:
    """After how many seconds a run is killed; the first is before its end."""
    chosen = random.Random(SEED)
    return [trace, *(chosen.uniform(trace, end) for _ in range(KILLS - 1))]


def killed(run: 'subprocess.Popen[str]', after: float) -> None:
    try:
        run.wait(timeout=after)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
    run.communicate(timeout=120)


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
    work = done(command(home, 'reshard', '--to', '3'), home)
    interrupted = 0
    for moment in moments(*work):
        before, _ = state(home)
        killed(command(home, 'reshard', '--to', str(5 - before)), moment)
        after, _ = state(home)
        assert after in (before, 5 - before)
        interrupted += after == before
    assert interrupted
    before, _ = state(home)
    done(command(home, 'reshard', '--to', str(5 - before)), home)
    assert state(home)[0] == 5 - before
    assert directories(home) == {generations.current(home)}


def test_documents_survive_a_change_of_model_that_is_killed(home: Path, other: Path) -> None:
    models = {load_spec(str(path)).fingerprint: path for path in (MINI, other)}

    def next_model() -> Path:
        _, fingerprint = state(home)
        return next(path for known, path in models.items() if known != fingerprint)

    work = done(command(home, 'reindex', str(next_model())), home)
    interrupted = 0
    for moment in moments(*work):
        before = state(home)
        killed(command(home, 'reindex', str(next_model())), moment)
        interrupted += state(home) == before
    assert interrupted
    done(command(home, 'reindex', str(next_model())), home)
    assert state(home)[0] == 2
    assert directories(home) == {generations.current(home)}

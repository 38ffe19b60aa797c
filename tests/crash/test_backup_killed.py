"""kill -9 of `clipflow backup` and `clipflow restore` at random points: what counts is whole, what is there stays."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clipflow import ROOT
from clipflow.backup.restore import found, restore
from clipflow.backup.target import Target
from clipflow.store import generations, layout
from clipflow.weights import load_spec
from forms import LONG
from unit.backup.places import everything, fill, listed, unnoticed

KILLS = 60 if LONG else 6
MOST_KILLS = 10 * KILLS
"""Where most come too late, because the run after which their moments are chosen was slower than the others."""
SEED = 20261129
FINGERPRINT = load_spec(str(ROOT / 'models' / 'clip-mini')).fingerprint


def filled(workspace: Path, seed: int) -> Path:
    """Large enough that a kill hits the copying."""
    fill(workspace, 5000, seed, fingerprint=FINGERPRINT)
    (workspace / layout.RANKER / 'large').write_text(str(seed) * 40_000_000)
    return workspace


def command(*given: str, workspace: Path) -> 'subprocess.Popen[str]':
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(workspace)}
    line = [sys.executable, '-m', 'clipflow.cli.main', *given]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def waited(run: 'subprocess.Popen[str]', condition: Callable[[], object]) -> float:
    """The moment from which on a condition holds, or at which the command has ended; looked at every millisecond."""
    deadline = time.monotonic() + 120
    while not condition() and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return time.monotonic()


def seconds_at_work(run: 'subprocess.Popen[str]', begun: Callable[[], object], done: Callable[[], object]) -> float:
    """From its first trace to its result."""
    seconds = -waited(run, begun) + waited(run, done)
    _, complained = run.communicate(timeout=120)
    assert run.returncode == 0, complained
    return seconds


def killed(run: 'subprocess.Popen[str]', begun: Callable[[], object], after: float) -> None:
    """So many seconds after its first trace."""
    waited(run, begun)
    time.sleep(after)
    run.send_signal(signal.SIGKILL)
    run.communicate()


def test_a_backup_that_is_killed_counts_for_nothing_and_the_next_one_is_whole(tmp_path: Path) -> None:
    workspace = filled(tmp_path / 'workspace', 1)
    target = Target(str(tmp_path / 'backups'))
    moments = random.Random(SEED)
    first = command('backup', target.address, workspace=workspace)
    whole = seconds_at_work(first, target.names, lambda: listed(target))
    kills = interrupted = 0
    while kills < KILLS or (interrupted <= KILLS // 4 and kills < MOST_KILLS):
        kills += 1
        before, there = listed(target), set(target.names())
        run = command('backup', target.address, workspace=workspace)
        killed(run, lambda there=there: set(target.names()) - there, moments.random() * whole)
        after = listed(target)
        interrupted += len(after) == len(before)
        assert after[: len(before)] == before
        for backup in after:
            for name, file in backup.manifest.files.items():
                assert target.at(backup.name).size(name) == file.bytes
    assert interrupted > KILLS // 4
    last = command('backup', target.address, '--keep', '1', workspace=workspace)
    _, complained = last.communicate(timeout=120)
    assert last.returncode == 0, complained
    assert [backup.name for backup in listed(target)] == target.names()
    backup, told = found(target.address)
    restore(tmp_path / 'other', backup, told, FINGERPRINT, unnoticed)
    assert everything(tmp_path / 'other')[0] == everything(workspace)[0]


@pytest.fixture(scope='module')
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of documents with the seed 1."""
    folder = tmp_path_factory.mktemp('kept')
    done = command('backup', str(folder / 'backups'), workspace=filled(folder / 'workspace', 1))
    assert done.wait(timeout=120) == 0
    return folder


def test_a_workspace_is_the_old_or_the_new_one_after_a_restore_was_killed(kept: Path, tmp_path: Path) -> None:
    new, old = tmp_path / 'new', filled(tmp_path / 'old', 2)
    source = str(kept / 'backups')
    staging = generations.staging(new)
    first = command('restore', source, workspace=new)
    whole = seconds_at_work(first, staging.exists, (new / layout.GENERATION).exists)
    states = {'old': everything(old), 'new': everything(new)}
    moments, seen = random.Random(SEED), []
    while len(seen) < KILLS or (seen.count('old') <= KILLS // 4 and len(seen) < MOST_KILLS):
        number = len(seen)
        place = tmp_path / str(number)
        shutil.copytree(old, place)
        run = command('restore', source, '--force', workspace=place)
        killed(run, generations.staging(place).exists, moments.random() * whole)
        state = everything(place)
        seen.append(next((name for name, known in states.items() if known == state), 'neither'))
        if number == 0:
            again = command('restore', source, '--force', workspace=place)
            _, complained = again.communicate(timeout=120)
            assert again.returncode == 0, complained
            assert everything(place) == states['new']
            assert {path.name for path in place.iterdir()} == {
                *(layout.GENERATION, layout.FEEDBACK, layout.RANKER, generations.current(place).name)
            }
        shutil.rmtree(place)
    assert set(seen) <= {'old', 'new'}
    assert seen.count('old') > KILLS // 4

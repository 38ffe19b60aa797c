"""The benchmark of the index in a short form: every section runs to its end and says what it reached."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow import ROOT

SECTIONS = ('recall', 'flat', 'kinds', 'graph', 'filter', 'writes', 'restart', 'memory', 'mixed', 'blocked')
DIMENSION = 64


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, dtype=np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory in which vectors are kept already, in place of those of 15,000 photographs."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, DIMENSION))
    near = {
        name: unit(centres[rng.integers(0, 40, count)] + 0.5 * rng.normal(size=(count, DIMENSION)))
        for name, count in (('photographs', 1500), ('captions', 600))
    }
    kept = tmp_path / '.cache' / 'clipflow' / 'benchmarks'
    kept.mkdir(parents=True)
    np.savez(kept / 'clip-mini.npz', photographs=near['photographs'], captions=near['captions'])
    return tmp_path


def test_every_section_runs(home: Path) -> None:
    command = [sys.executable, 'benchmarks/index.py', '--size', '2000', '--large', '12000', '--rounds', '1']
    command += ['--dimension', str(DIMENSION + 16)]
    env = os.environ | {'HOME': str(home)}
    done = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(part.split(',', 1) for part in done.stdout.split('\n### ')[1:])
    assert tuple(found) == SECTIONS
    for name, section in found.items():
        assert '\n|---' in section, f'{name} has a table'
        assert name == 'kinds' or 'To reach: ' in section, f'{name} says what was to be reached'
    assert 'Reached: 1.0000. Met.' in found['recall'], 'flat finds all'
    assert 'results are the same' in found['flat']

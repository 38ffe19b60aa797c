"""The benchmark of a GPU in a short form, on the CPU: it runs to its end, and its figures are of one kind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipflow import ROOT
from unit import checkpoints

COMMAND = [sys.executable, 'benchmarks/gpu.py', '--device', 'cpu', '--rounds', '2', '--seconds', '0.1']


def run(model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, '--model', str(model), '--batches', '2,8', *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_it_measures_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    model = checkpoints.build('clip', tmp_path / 'model')
    done = run(model, '--ways', 'torch float32,tensorrt float16', '--cache', str(tmp_path / 'cache'))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('tensorrt float16: ') == 2, 'once in each round, why it is left out'
    rows = {row.split(' | ')[0].removeprefix('| '): row for row in done.stdout.splitlines() if row.startswith('| ')}
    rates = {
        name: [float(rate.replace(',', '')) for rate in re.findall(r'\| ([\d,]+) \(', rows[name])]
        for name in ('torch float32, bare', 'torch float32, session')
    }
    assert [len(found) for found in rates.values()] == [2, 2], rows
    assert min(min(found) for found in rates.values()) > 0
    (files,) = (row for name, row in rows.items() if name in ('torch float32, 2', 'torch float32, 8'))
    decoding, both = (float(rate.replace(',', '')) for rate in re.findall(r'\| ([\d,]+) \(', files)[:2])
    assert min(decoding, both) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a card')
def test_without_a_card_it_says_so_at_once() -> None:
    done = run(ROOT / 'models' / 'clip-mini', '--device', 'cuda')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'PyTorch sees no CUDA device; is there a driver, and is it the CUDA build of torch?\n'


def test_where_nothing_runs_it_says_so(tmp_path: Path) -> None:
    model = checkpoints.build('clip', tmp_path / 'model')
    done = run(model, '--ways', 'tensorrt float16')
    assert done.returncode == 1
    assert 'nothing ran on cpu' in done.stderr

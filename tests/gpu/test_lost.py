"""What CUDA is like in a process after an error; in a process of its own, which is of no use any more then."""

import subprocess
import sys

import pytest
import torch

from clipflow import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch sees no CUDA device here')

_SCRIPT = """
from types import SimpleNamespace
import torch
from clipflow.sessions.cuda import is_lost

session = SimpleNamespace(description={'device': 'cuda'})
numbers = torch.zeros(3, device='cuda')
for fail in (lambda: torch.empty(1 << 50, device='cuda'), lambda: numbers @ torch.zeros(4, device='cuda')):
    try:
        fail()
    except RuntimeError:
        print(is_lost(session))
try:
    numbers[torch.tensor([7], device='cuda')].cpu()
except RuntimeError:
    print(is_lost(session))
"""


def test_only_an_error_of_a_kernel_loses_the_gpu() -> None:
    done = subprocess.run(
        [sys.executable, '-c', _SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.split() == ['False', 'False', 'True'], done.stderr

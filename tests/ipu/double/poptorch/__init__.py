"""A double of PopTorch for tests: it holds its caller to the contract, and computes on the CPU. It is NOT PopTorch.

The numbers in the comments are those of the rules that the contract lists; "own" marks what is stricter than the
original. What it computes proves shapes and the flow of control, never the numbers or the speed of an IPU. The
environment steers it:

- POPLAR_SDK_ENABLED must be set, as the vendor's script does;
- POPTORCH_DOUBLE_TORCH: the beginning of the version of torch that it was "built" for;
- POPTORCH_DOUBLE_IPUS: how many IPUs there are (4);
- POPTORCH_DOUBLE_FAIL: faults by number, like `call:3:recoverable:IPU_RESET,compile:1:error`;
- POPTORCH_DOUBLE_LOG: a file to which each event is added as a line;
- POPTORCH_DOUBLE_GATE: a folder; where it holds the pipes `call.enter` and `call.leave` (or `compile.`), that event
  waits between them.
"""

# ruff: noqa: E402 - what is asked first must come before the rest is imported

import os

import torch

# 1: no SDK, no import; and only with the torch that it was built for.
if 'POPLAR_SDK_ENABLED' not in os.environ:
    raise ImportError('Unable to import PopTorch without an active Poplar SDK (this is the double)')
assert torch.__version__.startswith(os.environ.get('POPTORCH_DOUBLE_TORCH', '')), 'built for another torch'

from ._errors import Error, RecoverableError, UnrecoverableError
from ._executor import PoplarExecutor, inferenceModel
from ._options import ConnectionType, Options, OutputMode, PipelinedExecution, ShardedExecution

__version__ = '3.3.0+double'
__all__ = [
    'ConnectionType',
    'Error',
    'Options',
    'OutputMode',
    'PipelinedExecution',
    'PoplarExecutor',
    'RecoverableError',
    'ShardedExecution',
    'UnrecoverableError',
    'inferenceModel',
]

"""What this machine has to run a model with."""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from clipflow.errors import first_line

_PACKAGES = {'onnx': ('onnx', 'onnxruntime'), 'openvino': ('onnx', 'openvino'), 'tensorrt': ('onnx', 'tensorrt')}
_NVIDIA = '/dev/nvidiactl'
"""What NVIDIA's driver leaves in Linux."""
_WINDOWS = '/dev/dxg'
"""What any GPU leaves in Linux on Windows."""
_BFLOAT16_FLAGS = {'amx_bf16', 'avx512_bf16'}


@dataclass(frozen=True)
class Machine:
    """What this process can compute with."""

    cuda: bool
    """Whether PyTorch can use an NVIDIA GPU."""
    bfloat16: bool
    """Whether the CPU multiplies in bfloat16; without it, that is slower than float32."""
    packages: frozenset[str]
    """Runtimes beside torch whose packages can be imported."""
    mps: bool = False
    """Whether PyTorch can use the GPU of a Mac."""
    onnx_cuda: bool = False
    """Whether ONNX Runtime was built for CUDA."""
    broken: tuple[str, ...] = ()
    """A sentence for each package that is installed but cannot be imported."""
    idle: str = ''
    """Why PyTorch cannot use an NVIDIA GPU although its driver is here and nobody has hidden it."""


def this_machine() -> Machine:
    """Look around; a package that is there but broken counts as missing."""
    names = {name for packages in _PACKAGES.values() for name in packages}
    faults = {name: fault for name in sorted(names) if (fault := _import_fault(name)) is not None}
    packages = frozenset(runtime for runtime, needed in _PACKAGES.items() if not faults.keys() & set(needed))
    try:
        flags = set(Path('/proc/cpuinfo').read_text(encoding='utf-8').partition('flags')[2].partition('\n')[0].split())
    except OSError:
        flags = set()
    cuda, idle = _cuda()
    return Machine(
        cuda,
        bool(flags & _BFLOAT16_FLAGS),
        packages,
        _has_mps(),
        cuda and 'onnx' in packages and _onnx_has_cuda(),
        tuple(fault for fault in faults.values() if fault),
        idle,
    )


def _cuda() -> tuple[bool, str]:
    """Whether PyTorch can use a GPU, and why not; without a driver it is not imported, which saves a second."""
    is_nvidia = Path(_NVIDIA).exists()
    if not is_nvidia and not Path(_WINDOWS).exists():
        return False, ''
    import torch

    if torch.cuda.is_available():
        return True, ''
    if not is_nvidia or os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return False, ''
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # an AssertionError of a build for CPUs, and what the driver says
        return False, first_line(error)
    return False, 'it finds none'


def _has_mps() -> bool:
    if sys.platform != 'darwin':
        return False
    import torch

    return torch.backends.mps.is_available()


def _onnx_has_cuda() -> bool:
    import onnxruntime

    return 'CUDAExecutionProvider' in onnxruntime.get_available_providers()


def _import_fault(name: str) -> str | None:
    """None if a package can be imported, '' if it is not installed, else a sentence about what is wrong with it."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        return '' if error.name == name else _broken(name, error)
    except Exception as error:  # one that was built for another version of its neighbours raises anything
        return _broken(name, error)
    return None


def _broken(name: str, error: Exception) -> str:
    return f'the package {name} is installed, but cannot be imported: {first_line(error)}'

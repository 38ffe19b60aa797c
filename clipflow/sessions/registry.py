"""Which runtime a model runs on: what the settings ask for, or the fastest that is here and as good as float32.

A new runtime is a module beside this one, a line in `_RUNTIMES`, and its place in `candidates`.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from clipflow.errors import ClipflowError, InvalidParameter
from clipflow.sessions.base import Options, Session
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec

_RUNTIMES = {
    'torch': 'clipflow.sessions.torch',
    'onnx': 'clipflow.sessions.onnx',
    'openvino': 'clipflow.sessions.openvino',
    'tensorrt': 'clipflow.sessions.tensorrt',
    'kserve': 'clipflow.sessions.kserve',
    'fake': 'clipflow.sessions.fake',
}
_EXTRAS = {'kserve': 'triton'}
_PACKAGES = {'onnx': ('onnx', 'onnxruntime'), 'openvino': ('onnx', 'openvino'), 'tensorrt': ('onnx', 'tensorrt')}
_ELSEWHERE = ('fake', 'kserve')
"""Runtimes that do not compute in this process; what this machine has does not matter to them."""
_DRIVERS = ('/dev/nvidiactl', '/dev/dxg')
"""What NVIDIA's driver leaves in Linux, and in Linux on Windows."""
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


@dataclass(frozen=True)
class Choice:
    """One way to run a model, and the reason for it."""

    runtime: str
    device: str
    precision: str
    why: str


@dataclass(frozen=True)
class Opened:
    """A session, why it is this one, and what a person should know about it."""

    session: Session
    why: str
    warnings: tuple[str, ...]


def this_machine() -> Machine:
    """Look around; a package that is there but broken counts as missing."""
    packages = frozenset(runtime for runtime, names in _PACKAGES.items() if all(_importable(name) for name in names))
    try:
        flags = set(Path('/proc/cpuinfo').read_text(encoding='utf-8').partition('flags')[2].partition('\n')[0].split())
    except OSError:
        flags = set()
    cuda = _has_cuda()
    return Machine(
        cuda, bool(flags & _BFLOAT16_FLAGS), packages, _has_mps(), cuda and 'onnx' in packages and _onnx_has_cuda()
    )


def _has_cuda() -> bool:
    """Whether PyTorch can use a GPU; without a driver it is not even imported, which saves memory and a second."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def _has_mps() -> bool:
    if sys.platform != 'darwin':
        return False
    import torch

    return torch.backends.mps.is_available()


def _onnx_has_cuda() -> bool:
    import onnxruntime

    return 'CUDAExecutionProvider' in onnxruntime.get_available_providers()


def _importable(name: str) -> bool:
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def candidates(settings: EncoderSettings, machine: Machine) -> list[Choice]:
    """Ways to run a model, best first. int8 is never chosen by itself: its vectors are not those of float32."""
    if settings.runtime in _ELSEWHERE:
        return [Choice(settings.runtime, 'cpu', 'float32', 'asked for')]
    device = _device(settings, machine)
    precisions = [settings.precision]
    if settings.precision == 'auto' and device == 'cuda':
        precisions = ['float16']
    elif settings.precision == 'auto' and device == 'mps':
        precisions = ['float32']
    elif settings.precision == 'auto':
        precisions = ['bfloat16', 'float32'] if machine.bfloat16 else ['float32']
    found = []
    for precision in precisions:
        for runtime in _order(device, precision):
            if settings.runtime == 'auto' and _installed(runtime, device, machine):
                found.append(Choice(runtime, device, precision, _reason(runtime, device, precision)))
            elif settings.runtime == runtime:
                found.append(Choice(runtime, device, precision, 'asked for'))
    if not found:
        raise InvalidParameter(
            f'CLIPFLOW_RUNTIME={settings.runtime} cannot compute in {settings.precision} on {device} here'
            + ('; int8 needs the extra "onnx": pip install "clipflow[onnx]"' if settings.precision == 'int8' else '')
        )
    return found


def _device(settings: EncoderSettings, machine: Machine) -> str:
    """cpu, cuda or mps; raises InvalidParameter if it is not there."""
    cuda = {
        'auto': machine.cuda,
        'torch': machine.cuda,
        'onnx': machine.cuda and machine.onnx_cuda,
        'openvino': False,
        'tensorrt': True,
    }
    device = settings.device if settings.device != 'auto' else 'cuda' if cuda[settings.runtime] else 'cpu'
    if device == 'cuda' and not machine.cuda:
        asked = 'CLIPFLOW_DEVICE is cuda' if settings.device == 'cuda' else 'tensorrt needs an NVIDIA GPU'
        raise InvalidParameter(
            f'{asked}, but PyTorch finds no CUDA device; is there a driver, and is it the CUDA build?'
        )
    if device == 'mps' and not machine.mps:
        raise InvalidParameter('CLIPFLOW_DEVICE is mps, but PyTorch finds no such device; it is the GPU of a Mac')
    return device


def _installed(runtime: str, device: str, machine: Machine) -> bool:
    if runtime == 'onnx' and device == 'cuda':
        return machine.onnx_cuda
    return runtime == 'torch' or runtime in machine.packages


_ORDER = {
    ('cpu', 'bfloat16'): ('openvino', 'torch'),
    ('cpu', 'float32'): ('openvino', 'onnx', 'torch'),
    ('cpu', 'float16'): ('torch', 'onnx'),
    ('cpu', 'int8'): ('onnx',),
    ('cuda', 'float16'): ('tensorrt', 'onnx', 'torch'),
    ('cuda', 'float32'): ('tensorrt', 'onnx', 'torch'),
    ('cuda', 'bfloat16'): ('torch',),
    ('mps', 'float32'): ('torch',),
    ('mps', 'float16'): ('torch',),
}
"""Runtimes by device and precision, the fastest first (for CPUs, benchmarks/README.md has the figures)."""


def _order(device: str, precision: str) -> tuple[str, ...]:
    return _ORDER.get((device, precision), ())


def _reason(runtime: str, device: str, precision: str) -> str:
    if device != 'cpu':
        return f'there is a GPU ({device}), and {runtime} is the first choice for it that is installed'
    return f'the CPU computes well in {precision}, and {runtime} is the fastest for it that is installed'


def open_session(
    spec: ModelSpec, settings: EncoderSettings, threads: int, *, shared: bool, machine: Machine | None = None
) -> Opened:
    """Load `spec` in the thread that will run it.

    Args:
        spec: of the model.
        settings: runtime, device, precision and cache.
        threads: for the model.
        shared: whether other replicas compute on this host.
        machine: what there is; looked up by default.

    Raises:
        ClipflowError: the model cannot be loaded on what was asked for.
    """
    if machine is None:
        nothing = Machine(False, False, frozenset())
        machine = nothing if settings.runtime in _ELSEWHERE else this_machine()
    warnings: list[str] = []
    choices = candidates(settings, machine)
    for choice in choices:
        options = Options(
            choice.device,
            choice.precision,
            threads,
            shared,
            settings.cache,
            settings.kserve_url,
            settings.kserve_model,
            settings.kserve_timeout,
            settings.compile,
        )
        try:
            session = load(choice.runtime, spec, options)
            return Opened(session, choice.why, (*warnings, *faster(settings, choice, machine)))
        except ClipflowError as error:
            if choice == choices[-1]:
                raise
            warnings.append(f'{choice.runtime} was to be used, but: {error}')
    raise AssertionError('unreachable')


def load(runtime: str, spec: ModelSpec, options: Options) -> Session:
    """Load a model on one runtime, whose packages are imported only now.

    Raises:
        ClipflowError: it is not installed, or the model cannot be loaded on it.
    """
    try:
        module = import_module(_RUNTIMES[runtime])
    except ImportError as error:
        extra = f'pip install "clipflow[{_EXTRAS.get(runtime, runtime)}]"'
        raise InvalidParameter(f'the runtime {runtime!r} is not installed ({error}); {extra}') from None
    return cast(Session, module.load(spec, options))


def faster(settings: EncoderSettings, choice: Choice, machine: Machine) -> tuple[str, ...]:
    """Name what would be faster than what was chosen."""
    if machine.mps and settings.device == 'auto':
        return ('this machine has a GPU that was not measured: compare with CLIPFLOW_DEVICE=mps',)
    if settings.runtime != 'auto' or choice.device != 'cpu' or 'openvino' in machine.packages:
        return ()
    return ('the extra "openvino" is faster on this CPU: pip install "clipflow[openvino]"',)

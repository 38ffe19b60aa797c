"""Which runtime a model runs on: what the settings ask for, or the fastest that is here and as good as float32.

A new runtime is a module beside this one, a line in `_RUNTIMES`, and its place in `candidates`.
"""

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
    'kserve': 'clipflow.sessions.kserve',
    'fake': 'clipflow.sessions.fake',
}
_EXTRAS = {'kserve': 'triton'}
_PACKAGES = {'onnx': ('onnx', 'onnxruntime'), 'openvino': ('onnx', 'openvino')}
_ELSEWHERE = ('fake', 'kserve')
"""Runtimes that do not compute in this process; what this machine has does not matter to them."""
_DRIVERS = ('/dev/nvidiactl', '/dev/dxg')
"""What NVIDIA's driver leaves in Linux, and in Linux on Windows."""
_BFLOAT16_FLAGS = {'amx_bf16', 'avx512_bf16'}


@dataclass(frozen=True)
class Machine:
    """What this process can compute with."""

    cuda: bool
    bfloat16: bool
    """Whether the CPU multiplies in bfloat16; without it, that is slower than float32."""
    packages: frozenset[str]
    """Runtimes beside torch whose packages can be imported."""


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
    return Machine(_has_cuda(), bool(flags & _BFLOAT16_FLAGS), packages)


def _has_cuda() -> bool:
    """Whether PyTorch can use a GPU; without a driver it is not even imported, which saves memory and a second."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


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
    device = settings.device
    if device == 'auto':
        device = 'cuda' if machine.cuda and settings.runtime in ('auto', 'torch') else 'cpu'
    if device == 'cuda' and not machine.cuda:
        raise InvalidParameter('CLIPFLOW_DEVICE is cuda, but PyTorch finds no such device; is it the CUDA build?')
    precisions = [settings.precision]
    if settings.precision == 'auto' and device == 'cuda':
        precisions = ['float16']
    elif settings.precision == 'auto':
        precisions = ['bfloat16', 'float32'] if machine.bfloat16 else ['float32']
    found = []
    for precision in precisions:
        for runtime in _order(device, precision):
            if settings.runtime == 'auto' and (runtime == 'torch' or runtime in machine.packages):
                found.append(Choice(runtime, device, precision, _reason(runtime, device, precision)))
            elif settings.runtime == runtime:
                found.append(Choice(runtime, device, precision, 'asked for'))
    if not found:
        raise InvalidParameter(
            f'CLIPFLOW_RUNTIME={settings.runtime} cannot compute in {settings.precision} on {device} here'
            + ('; int8 needs the extra "onnx": pip install "clipflow[onnx]"' if settings.precision == 'int8' else '')
        )
    return found


def _order(device: str, precision: str) -> tuple[str, ...]:
    """Runtimes by speed (benchmarks/README.md has the figures)."""
    if device == 'cuda':
        return ('torch',)
    return {'bfloat16': ('openvino', 'torch'), 'float32': ('openvino', 'onnx', 'torch'), 'int8': ('onnx',)}.get(
        precision, ('torch',)
    )


def _reason(runtime: str, device: str, precision: str) -> str:
    place = 'there is a CUDA device' if device == 'cuda' else f'the CPU computes well in {precision}'
    return f'{place}, and {runtime} is the fastest for it that is installed'


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
        )
        try:
            session = load(choice.runtime, spec, options)
            return Opened(session, choice.why, (*warnings, *_faster(settings, choice, machine)))
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


def _faster(settings: EncoderSettings, choice: Choice, machine: Machine) -> tuple[str, ...]:
    """Name an extra that would be faster than what was chosen."""
    if settings.runtime != 'auto' or choice.device != 'cpu' or 'openvino' in machine.packages:
        return ()
    return ('the extra "openvino" is faster on this CPU: pip install "clipflow[openvino]"',)

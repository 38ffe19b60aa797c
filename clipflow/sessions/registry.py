"""Which runtime a model runs on: what the settings ask for, or the fastest that is here and as good as float32.

A new runtime is a module beside this one, a line in `_RUNTIMES`, and its place in `candidates`.
"""

import logging
import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np

from clipflow.errors import ClipflowError, InvalidParameter, first_line
from clipflow.sessions.base import IMAGE, TEXT, Options, Session, grey
from clipflow.sessions.machine import Machine, this_machine
from clipflow.settings import EncoderSettings
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.sessions')

_RUNTIMES = {
    'torch': 'clipflow.sessions.torch',
    'onnx': 'clipflow.sessions.onnx',
    'openvino': 'clipflow.sessions.openvino',
    'tensorrt': 'clipflow.sessions.tensorrt',
    'kserve': 'clipflow.sessions.kserve',
    'fake': 'clipflow.sessions.fake',
}
_EXTRAS = {'kserve': 'triton'}
ELSEWHERE = ('fake', 'kserve')
"""Runtimes that do not compute in this process; what this machine has does not matter to them."""


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


def candidates(settings: EncoderSettings, machine: Machine) -> list[Choice]:
    """Ways to run a model, best first. int8 is never chosen by itself: its vectors are not those of float32."""
    if settings.runtime in ELSEWHERE:
        return [Choice(settings.runtime, 'cpu', 'float32', 'asked for')]
    device = _device(settings, machine)
    found = _on(device, settings, machine)
    if not found:
        raise InvalidParameter(_nothing(settings, device))
    if device == 'cuda' and settings.runtime == settings.device == 'auto':
        found += _on('cpu', settings, machine)  # for a GPU that is too old for this PyTorch, or full
    return found


def _on(device: str, settings: EncoderSettings, machine: Machine) -> list[Choice]:
    """Ways to run a model on one device."""
    precisions = [settings.precision]
    if settings.precision == 'auto' and device == 'cuda':
        precisions = ['float16', 'float32']  # for a model whose numbers 16 bits do not hold
    elif settings.precision == 'auto' and device == 'mps':
        precisions = ['float32']
    elif settings.precision == 'auto':
        precisions = ['bfloat16', 'float32'] if machine.bfloat16 else ['float32']
    found = []
    for precision in precisions:
        for runtime in _order(device, precision):
            if settings.runtime == 'auto' and _installed(runtime, device, machine):
                found.append(Choice(runtime, device, precision, _reason(runtime, device, precision, settings)))
            elif settings.runtime == runtime:
                found.append(Choice(runtime, device, precision, 'asked for'))
    return found


def _nothing(settings: EncoderSettings, device: str) -> str:
    """Why there is no way to compute what was asked for, and what to set instead."""
    precision, able = settings.precision, _order(device, settings.precision)
    if settings.runtime != 'auto':
        offered = [number for (place, number), names in _ORDER.items() if place == device and settings.runtime in names]
        instead = f'CLIPFLOW_RUNTIME={able[0]}' if able else f'CLIPFLOW_PRECISION={offered[0]}'
        return f'CLIPFLOW_RUNTIME={settings.runtime} cannot compute in {precision} on {device}; set {instead}'
    if able:
        return f'{precision} on {device} needs the extra "{able[0]}": pip install "clipflow[{able[0]}]"'
    offered = [number for place, number in _ORDER if place == device]
    instead = ', or CLIPFLOW_DEVICE=cpu' if _order('cpu', precision) else ''
    return f'nothing computes in {precision} on {device}; set CLIPFLOW_PRECISION to {" or ".join(offered)}{instead}'


def _device(settings: EncoderSettings, machine: Machine) -> str:
    """cpu, cuda or mps; raises InvalidParameter if it is not there, or not for this runtime."""
    places = list(dict.fromkeys(place for (place, _), names in _ORDER.items() if settings.runtime in names))
    if places and settings.device not in ('auto', *places):
        raise InvalidParameter(
            f'CLIPFLOW_RUNTIME={settings.runtime} computes on {" or ".join(places)}, not on {settings.device}; '
            'set CLIPFLOW_DEVICE=auto'
        )
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
        reason = machine.idle or 'is there a driver, and is it the CUDA build?'
        raise InvalidParameter(f'{asked}, but PyTorch finds no CUDA device ({reason})' + _unresolved())
    if device == 'mps' and not machine.mps:
        raise InvalidParameter('CLIPFLOW_DEVICE is mps, but PyTorch finds no such device; it is the GPU of a Mac')
    return device


def _unresolved() -> str:
    """What Jina leaves in the environment where it should give each replica a card, and cannot count them."""
    if not os.environ.get('CUDA_VISIBLE_DEVICES', '').startswith('RR'):
        return ''
    return '; Jina did not find nvidia-smi, which tells it how many cards there are: set CUDA_TOTAL_DEVICES'


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


_ONNX_GPU = 'install onnxruntime-gpu in place of onnxruntime'
_FASTER = {
    ('cpu', 'openvino'): 'the extra "openvino" is faster on this CPU: pip install "clipflow[openvino]"',
    ('cpu', 'onnx'): 'the extra "onnx" is faster on this CPU: pip install "clipflow[onnx]"',
    ('cuda', 'tensorrt'): 'the extra "tensorrt" may be faster on this GPU: pip install "clipflow[tensorrt]"; or '
    + _ONNX_GPU,
    ('cuda', 'onnx'): f'ONNX Runtime may be faster on this GPU: {_ONNX_GPU}',
}
"""What to say of a runtime that is not installed. Only those of CPUs were measured."""


def _order(device: str, precision: str) -> tuple[str, ...]:
    return _ORDER.get((device, precision), ())


def _reason(runtime: str, device: str, precision: str, settings: EncoderSettings) -> str:
    if device != 'cpu':
        return f'there is a GPU ({device}), and {runtime} is the first choice for it that is installed'
    if settings.precision != 'auto':
        return f'CLIPFLOW_PRECISION is {precision}, and {runtime} is the first choice for it that is installed'
    if precision == 'bfloat16':
        return f'the CPU computes in bfloat16, and {runtime} is the fastest that is installed'
    return f'{runtime} is the fastest in {precision} on this CPU that is installed'


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
        machine = nothing if settings.runtime in ELSEWHERE else this_machine()
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
            why = f'{choice.runtime} is the next that works' if warnings else choice.why
            return Opened(
                session, why, (*warnings, *without_effect(settings, choice), *faster(settings, choice, machine))
            )
        except ClipflowError as error:
            if choice == choices[-1]:
                raise
            said = f'{choice.runtime} was to be used, but: {error}'
            if said not in warnings:  # in two number formats, perhaps
                warnings.append(said)
                _log.warning('%s', said)
    raise AssertionError('unreachable')


def imported(runtime: str) -> Any:
    """The module of a runtime, which imports its packages.

    Raises:
        InvalidParameter: they are not installed, or broken.
    """
    extra = f'pip install "clipflow[{_EXTRAS.get(runtime, runtime)}]"'
    try:
        return import_module(_RUNTIMES[runtime])
    except ModuleNotFoundError as error:
        raise InvalidParameter(f'the runtime {runtime!r} is not installed ({error}); {extra}') from None
    except Exception as error:  # as in `_import_fault`
        raise InvalidParameter(f'the runtime {runtime!r} cannot be imported ({first_line(error)}); {extra}') from None


def load(runtime: str, spec: ModelSpec, options: Options) -> Session:
    """Load a model on one runtime, whose packages are imported only now.

    Raises:
        ClipflowError: it is not installed, or the model cannot be loaded on it.
    """
    module = imported(runtime)
    try:
        session = cast(Session, module.load(spec, options))
        if runtime not in ELSEWHERE:
            _check_vectors(session, spec, options)
        return session
    except ClipflowError:
        raise
    except Exception as error:  # what its library raises
        _log.exception('%s cannot load the model %s', runtime, spec.name)
        raise InvalidParameter(f'{runtime} cannot load the model {spec.name}: {first_line(error)}') from None


def _check_vectors(session: Session, spec: ModelSpec, options: Options) -> None:
    """Raises InvalidParameter for a model whose numbers grow larger than its number format can hold."""
    tokens = Tokenizer(spec)(['a photo'])
    vectors = {IMAGE: session.encode_images(grey(spec)), TEXT: session.encode_texts(tokens.ids, tokens.mask)}
    for tower, found in vectors.items():
        if not np.isfinite(found).all():
            session.close()
            what = 'look at its weights' if options.precision == 'float32' else 'set CLIPFLOW_PRECISION=float32'
            raise InvalidParameter(
                f'the {tower} tower of {spec.name} gives vectors that are not finite in {options.precision}; {what}'
            )


def without_effect(settings: EncoderSettings, choice: Choice) -> tuple[str, ...]:
    """Name what was set and is of no use to what was chosen."""
    idle = []
    if choice.runtime in ELSEWHERE:
        idle += [name for name in ('precision', 'device') if getattr(settings, name) != 'auto']
    if settings.compile and choice.runtime != 'torch':
        idle.append('compile')
    return tuple(f'CLIPFLOW_{name.upper()} has no effect on the runtime {choice.runtime!r}' for name in idle)


def faster(settings: EncoderSettings, choice: Choice, machine: Machine) -> tuple[str, ...]:
    """Name what would be faster than what was chosen, and what is broken that might be."""
    broken = machine.broken if settings.runtime == 'auto' else ()
    if machine.idle and settings.device == 'auto' and settings.runtime in ('auto', 'torch', 'onnx'):
        idle = (
            f'there is an NVIDIA GPU, but PyTorch cannot use it ({machine.idle}); install its build for CUDA, or set '
        )
        broken = (idle + 'CLIPFLOW_DEVICE=cpu', *broken)
    if machine.mps and settings.device == 'auto':
        return (*broken, 'this machine has a GPU that was not measured: compare with CLIPFLOW_DEVICE=mps')
    if settings.runtime == 'onnx' and machine.cuda and choice.device == 'cpu' and settings.device == 'auto':
        return (*broken, f'there is a GPU, which this ONNX Runtime does not know: {_ONNX_GPU}')
    if settings.runtime != 'auto':
        return broken
    order = _order(choice.device, choice.precision)
    better = order[: order.index(choice.runtime)]
    missing = [runtime for runtime in better if not _installed(runtime, choice.device, machine)]
    return (*broken, _FASTER[choice.device, missing[0]]) if missing else broken

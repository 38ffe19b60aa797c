"""`tensorrt.Builder`: a network, a configuration with a profile, and a plan that is bound to version and GPU."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from ._device import DEVICE, ILogger, IProgressMonitor, Number, checked, tell
from ._parse import Tensor

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

_REMOVED = DEVICE.major >= 11
NetworkDefinitionCreationFlag = Number(  # type: ignore[call-arg]
    'NetworkDefinitionCreationFlag', ({} if _REMOVED else {'EXPLICIT_BATCH': 0}) | {'STRONGLY_TYPED': 1}
)
_WEAK = {} if _REMOVED else {'FP16': 0, 'INT8': 1, 'BF16': 17}
BuilderFlag = Number('BuilderFlag', _WEAK | {'DEBUG': 2, 'TF32': 7, 'REFIT': 8})  # type: ignore[call-arg]
MemoryPoolType = Number('MemoryPoolType', {'WORKSPACE': 0, 'DLA_MANAGED_SRAM': 1})  # type: ignore[call-arg]

MAGIC = b'plan of the double\n'
_PHASES = (('Building Engine', None, 2), ('Tactic selection', 'Building Engine', 40), ('Writing', 'Building Engine', 1))


class IHostMemory:
    """A plan in memory; `bytes` is all that is done with it."""

    __slots__ = ('_data',)

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


class INetworkDefinition:
    """What the parser has read."""

    __slots__ = ('_inputs', 'is_strong', 'model', 'outputs')

    def __init__(self, is_strong: bool) -> None:
        self.is_strong = is_strong
        self.model = b''
        self._inputs: list[Tensor] = []
        self.outputs: list[str] = []

    def fill(self, model: bytes, inputs: list[Tensor], outputs: list[str]) -> None:
        """By the parser."""
        self.model, self._inputs, self.outputs = model, inputs, outputs

    @property
    def num_inputs(self) -> int:
        """How many."""
        return len(self._inputs)

    def get_input(self, index: int) -> Tensor:
        """The input of this number."""
        return self._inputs[index]


class IOptimizationProfile:
    """The sizes of one use."""

    __slots__ = ('shapes',)

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """Partly checked here, and wholly when the engine is built."""
        least, usual, most = tuple(min), tuple(opt), tuple(max)
        if not len(least) == len(usual) == len(most):
            raise RuntimeError('Shape provided for opt is inconsistent with other shapes.')
        for low, middle, high in zip(least, usual, most, strict=True):
            if not 0 <= low <= middle <= high:
                raise RuntimeError('Shape provided for max is inconsistent with other shapes.')
        self.shapes[input] = (least, usual, most)

    def __bool__(self) -> bool:
        return bool(self.shapes)


class IBuilderConfig:
    """How an engine is built."""

    __slots__ = ('_flags', '_monitor', '_workspace', 'profiles')
    if not _REMOVED:
        int8_calibrator = None

    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._monitor: IProgressMonitor | None = None
        self._workspace = 0
        self.profiles: list[IOptimizationProfile] = []

    def set_flag(self, flag: Any) -> None:
        """On."""
        self._flags.add(BuilderFlag(flag))

    def clear_flag(self, flag: Any) -> None:
        """Off."""
        self._flags.discard(BuilderFlag(flag))

    def get_flag(self, flag: Any) -> bool:
        """Whether it is on; TF32 is from the start."""
        return BuilderFlag(flag) in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """Bytes of a pool."""
        if not isinstance(pool, MemoryPoolType) or not isinstance(pool_size, int) or pool_size < 0:
            raise TypeError('set_memory_pool_limit(): incompatible function arguments')
        self._workspace = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        """Its number, or -1 if it is not valid."""
        if not isinstance(profile, IOptimizationProfile):
            raise TypeError('add_optimization_profile(): incompatible function arguments')
        if not profile:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def progress_monitor(self) -> IProgressMonitor | None:
        """Told how far the build is."""
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: IProgressMonitor) -> None:
        if not isinstance(monitor, IProgressMonitor):
            raise TypeError('(): incompatible function arguments: no IProgressMonitor')
        self._monitor = monitor


class Builder:
    """See the original."""

    __slots__ = ('_logger',)
    if not _REMOVED:
        platform_has_fast_fp16 = True

    def __init__(self, logger: Any) -> None:
        self._logger = checked(logger, 'Builder')

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """With bits, not with flags; version 11 knows strongly typed networks only."""
        if not isinstance(flags, int):
            raise TypeError('create_network(): incompatible function arguments')
        strong = bool(flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not strong and not _REMOVED:
            tell(self._logger, ILogger.WARNING, 'weakly typed networks are deprecated')
        return INetworkDefinition(strong or _REMOVED)

    def create_builder_config(self) -> IBuilderConfig:
        """With what is on by default."""
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        """An empty one."""
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """The plan, or None; the logger knows the reason."""
        try:
            if DEVICE.fails('build', self._logger):
                return None
            shapes = _covered(network, config)
            DEVICE.fails('tactic', self._logger)  # another is taken
            if config.progress_monitor:
                _follow(config.progress_monitor)
            head = {
                'version': DEVICE.version,
                'capability': list(DEVICE.capability),
                'exact': not config.get_flag(BuilderFlag.TF32),
                'shapes': shapes,
                'dimension': _dimension(network, shapes),
                'digest': hashlib.sha256(network.model).hexdigest(),
            }
        except _Refused as error:
            tell(self._logger, ILogger.ERROR, f'IBuilder::buildSerializedNetwork: Error Code 4: {error}')
            return None
        DEVICE.built.append(', '.join(shapes))
        return IHostMemory(MAGIC + json.dumps(head).encode() + b'\n' + network.model)


class _Refused(Exception):
    """Why there is no engine."""


def _covered(network: INetworkDefinition, config: IBuilderConfig) -> Shapes:
    if not network.outputs:
        raise _Refused('Network must have at least one output')
    weak = [flag.name for flag in BuilderFlag if flag.name in _WEAK and config.get_flag(flag)]
    if network.is_strong and weak:
        raise _Refused(f'{weak[0]} cannot be set for a strongly typed network')
    given = config.profiles[0].shapes if config.profiles else {}
    shapes: Shapes = {}
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tensor.shape and tensor.name not in given:
            raise _Refused(f'{tensor.name}: network has dynamic inputs, but no optimization profile has been defined')
        shapes[tensor.name] = given.get(tensor.name, (tensor.shape,) * 3)
        for shape in shapes[tensor.name]:
            if len(shape) != len(tensor.shape) or any(
                fixed not in (-1, side) for fixed, side in zip(tensor.shape, shape, strict=True)
            ):
                raise _Refused(f'{tensor.name}: the profile says {shape}, the network {tensor.shape}')
    if given.keys() - shapes.keys():
        raise _Refused(f'the profile names {sorted(given.keys() - shapes.keys())}, which the network has not')
    return shapes


def _follow(monitor: IProgressMonitor) -> None:
    """Call as TensorRT does, from a thread of its own; what the monitor raises or forgets to answer ends the build."""
    for name, parent, steps in _PHASES:
        _elsewhere(lambda name=name, parent=parent, steps=steps: monitor.phase_start(name, parent, steps))
        for step in range(steps):
            answer = _elsewhere(lambda name=name, step=step: monitor.step_complete(name, step))
            if answer is not True:
                _elsewhere(lambda name=name: monitor.phase_finish(name))
                raise _Refused(f'the build was cancelled: step_complete() gave {answer!r}')
        if parent:
            _elsewhere(lambda name=name: monitor.phase_finish(name))
    _elsewhere(lambda: monitor.phase_finish(_PHASES[0][0]))


def _elsewhere(call: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        with contextlib.suppress(BaseException):
            found.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not found:
        raise _Refused('(own rule of the double) the progress monitor raises')
    return found[0]


def _dimension(network: INetworkDefinition, shapes: Shapes) -> int:
    """What timing the kernels tells; ONNX Runtime must take the model, too."""
    try:
        session = onnxruntime.InferenceSession(network.model, providers=['CPUExecutionProvider'])
        types = {
            item.name: {'tensor(uint8)': np.uint8, 'tensor(int64)': np.int64}[item.type]
            for item in session.get_inputs()
        }
        feeds = {name: np.ones(sizes[0], types[name]) for name, sizes in shapes.items()}
        return int(session.run(None, feeds)[0].shape[1])
    except Exception as error:  # ONNX Runtime has many kinds
        raise _Refused(f'Could not find any implementation: {error}') from None

"""The machine that the double runs on, its loggers and its progress monitors."""

import enum
import os
import weakref
from typing import Any


class Number(enum.Enum):
    """An enumeration of the bindings: it has a number, and is none."""

    def __int__(self) -> int:
        return int(self.value)


class Device:
    """A GPU, and the streams and tensors that are on it."""

    def __init__(self) -> None:
        self.version = os.environ.get('TENSORRT_DOUBLE_VERSION', '11.4.0.106')
        self.name, self.capability = 'Double 100', (9, 0)
        self.usable = True
        self.streams: dict[int, Any] = {}
        self.tensors: dict[int, weakref.ref[Any]] = {}
        """By address: those whose address was asked for."""
        self.faults: dict[str, str] = {}
        """What fails the next time (engine, context, build, execute, tactic), and what the logger is told."""
        self.built: list[str] = []
        """Inputs of the engines that were built."""
        self.sizes: list[tuple[int, ...]] = []
        """Of the first input of each execution."""
        self.logger: Any = None

    @property
    def major(self) -> int:
        """Of the version."""
        return int(self.version.partition('.')[0])

    def fails(self, what: str, logger: Any) -> bool:
        """Whether this is to fail now."""
        message = self.faults.pop(what, None)
        if message is not None:
            tell(logger, ILogger.ERROR, message)
        return message is not None

    def at(self, address: int, size: int) -> None:
        """There must be a tensor with so many bytes."""
        found = self.tensors.get(address)
        tensor = found() if found else None
        if tensor is None or tensor.nbytes < size:
            raise RuntimeError(f'CUDA error: an illegal memory access was encountered ({size} bytes)')


DEVICE = Device()


class Severity(Number):
    """Of a message."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class _Bound(type):
    """The bindings refuse an object of a derived class whose base class was not initialised."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        made = super().__call__(*arguments, **named)
        if not getattr(made, '_is_bound', False):
            raise TypeError(f'{cls.__mro__[-2].__name__}.__init__() must be called when overriding __init__')
        return made


class ILogger(metaclass=_Bound):
    """To be derived from."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._is_bound = True

    def log(self, severity: Severity, msg: str) -> None:
        """To be overridden."""
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """TensorRT's own."""

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Severity, msg: str) -> None:
        """To standard output."""
        if int(severity) <= int(self.min_severity):
            print(f'[TRT] {severity.name}: {msg}')


class IProgressMonitor(metaclass=_Bound):
    """To be derived from."""

    def __init__(self) -> None:
        self._is_bound = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """To be overridden."""
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        """To be overridden."""
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        """To be overridden."""
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')


def tell(logger: Any, severity: Severity, message: str) -> None:
    """A line to the logger of an object; an exception in it is not caught (own)."""
    logger.log(severity, message)


def checked(logger: Any, what: str) -> Any:
    """The logger of a new object, which must be the one of the process."""
    if not isinstance(logger, ILogger):
        raise TypeError(f'{what}(): incompatible constructor arguments. The logger is a {type(logger).__name__}')
    if not DEVICE.usable:
        tell(logger, ILogger.ERROR, 'CUDA initialization failure with error: 35')
        raise TypeError('pybind11::init(): factory function returned nullptr')
    if DEVICE.logger is None:
        DEVICE.logger = logger
    if DEVICE.logger is not logger:
        tell(logger, ILogger.WARNING, 'The logger differs from the one that is registered already')
    return logger


def buffer(given: Any) -> bytes:
    """What has the buffer protocol; the bindings refuse everything else, paths among it."""
    try:
        return bytes(memoryview(given))
    except TypeError:
        raise TypeError(f'incompatible function arguments: {type(given).__name__} is no buffer') from None

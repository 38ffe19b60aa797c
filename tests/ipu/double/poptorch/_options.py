# ruff: noqa: N802 - the names are PopTorch's
"""`poptorch.Options` for inference."""

import copy
import enum
import os
from typing import Any, Self

from ._errors import Error, python_error


class OutputMode(enum.Enum):
    """Which iterations come back."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ConnectionType(enum.Enum):
    """When the device is taken."""

    Always = 0
    OnDemand = 1
    Never = 2


class PipelinedExecution:
    """A strategy."""


class ShardedExecution:
    """A strategy."""


class _Values:
    """Typed values that can be frozen."""

    def __init__(self, **defaults: Any) -> None:
        self.__dict__['_values'] = defaults
        self.__dict__['_frozen'] = False

    def __getattr__(self, name: str) -> Any:
        # 5: whatever is not a method or a value does not exist, `batchSize` and its like among them.
        values = self.__dict__.get('_values', {})
        if name in values:
            return values[name]
        raise AttributeError(f'Invalid attribute {name}')

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f'Invalid attribute {name}')

    def set(self, **values: Any) -> Self:
        """2: the option exists and the type is that of its default. 6: not when frozen."""
        for name, value in values.items():
            if self._frozen:
                raise AttributeError("Can't modify frozen Options")
            assert name in self._values, f'Unknown option {name}'
            kind = type(self._values[name])
            assert isinstance(value, kind), f'Unexpected type {type(value)} for option {name}, expected {kind}'
            self._values[name] = value
        return self

    def freeze(self) -> None:
        """6."""
        self.__dict__['_frozen'] = True


class _Precision(_Values):
    """Sub-options of numbers."""

    def enableStochasticRounding(self, on: bool) -> Self:
        """Off unless asked for."""
        return self.set(stochastic_rounding=on)

    def enableFloatingPointExceptions(self, on: bool) -> Self:
        """NaN, overflow and division by nought raise."""
        return self.set(floating_point_exceptions=on)


class _Training(_Values):
    """Sub-options of training."""

    def gradientAccumulation(self, steps: int) -> Self:
        """Must stay 1 for inference."""
        return self.set(gradient_accumulation=steps)


def check_environment() -> None:
    """26: switches are 0 or 1; anything else makes the backend throw."""
    for name in ('POPTORCH_IPU_MODEL', 'POPTORCH_SMALL_IPU_MODEL', 'POPTORCH_WAIT_FOR_IPU'):
        text = os.environ.get(name, '0')
        if not text.lstrip('-').isdecimal():
            raise Error(f"In double.cpp:1: 'std::exception': stoi ({name}={text})")


class Options(_Values):
    """See the original; every setter gives itself back."""

    def __init__(self) -> None:
        check_environment()
        super().__init__(
            device_iterations=1,
            replication_factor=1,
            output_mode=OutputMode.Default,
            output_return_period=1,
            connection_type=ConnectionType.Always,
            cache_path=os.environ.get('POPTORCH_CACHE_DIR', ''),
            auto_round_num_ipus=False,
            log_dir='.',
            show_compilation_progress_bar=True,
            broadcast_buffers=True,
        )
        self.__dict__['available_memory_proportion'] = {}
        self.__dict__['execution_strategy'] = PipelinedExecution()
        self.__dict__['Precision'] = _Precision(stochastic_rounding=False, floating_point_exceptions=False)
        self.__dict__['Training'] = _Training(gradient_accumulation=1)

    def freeze(self) -> None:
        """6: sub-options too."""
        super().freeze()
        self.Precision.freeze()
        self.Training.freeze()

    def clone(self) -> 'Options':
        """6: an unfrozen deep copy."""
        made = copy.copy(self)
        made.__dict__.update({name: copy.deepcopy(value) for name, value in self.__dict__.items()})
        for part in (made, made.Precision, made.Training):
            part.__dict__['_frozen'] = False
        return made

    def deviceIterations(self, count: int) -> Self:
        """Steps of one call."""
        return self.set(device_iterations=count)

    def replicationFactor(self, count: int) -> Self:
        """Copies beside each other."""
        return self.set(replication_factor=count)

    def outputMode(self, mode: OutputMode, output_return_period: int | None = None) -> Self:
        """4."""
        assert isinstance(mode, OutputMode), 'not an OutputMode'
        if mode is OutputMode.EveryN:
            assert (output_return_period or 0) > 0, 'EveryN requires a positive period'
        return self.set(output_mode=mode, output_return_period=output_return_period or 1)

    def connectionType(self, kind: ConnectionType) -> Self:
        """4."""
        assert isinstance(kind, ConnectionType), 'not a ConnectionType'
        return self.set(connection_type=kind)

    def setExecutionStrategy(self, strategy: Any) -> Self:
        """4."""
        assert isinstance(strategy, PipelinedExecution | ShardedExecution), 'not an execution strategy'
        self.set()
        if self._frozen:
            raise AttributeError("Can't modify frozen Options")
        self.__dict__['execution_strategy'] = strategy
        return self

    def setAvailableMemoryProportion(self, proportions: dict[str, float]) -> Self:
        """3; the range is checked by the double only (own)."""
        if self._frozen:
            raise AttributeError("Can't modify frozen Options")
        for name, value in proportions.items():
            assert name.startswith('IPU'), f'{name} must start with IPU'
            int(name[3:])
            assert 0 < value <= 1, f'(own rule of the double) {value} is not in (0, 1]'
        self.__dict__['available_memory_proportion'] = dict(proportions)
        return self

    def enableExecutableCaching(self, path: str | None) -> Self:
        """None turns it off."""
        return self.set(cache_path='' if path is None else path)

    def autoRoundNumIPUs(self, on: bool = True) -> Self:
        """Take the next power of two."""
        return self.set(auto_round_num_ipus=on)

    def logDir(self, path: str) -> Self:
        """Of PopART."""
        return self.set(log_dir=path)

    def showCompilationProgressBar(self, on: bool = True) -> Self:
        """On a terminal."""
        return self.set(show_compilation_progress_bar=on)

    def broadcastBuffers(self, on: bool = True) -> Self:
        """One copy of the buffers for all replicas."""
        return self.set(broadcast_buffers=on)


def checked(options: Any) -> Options:
    """7: what `inferenceModel` was given; None means the defaults."""
    if options is None:
        return Options()
    if not isinstance(options, Options):
        raise python_error("Invalid type: 'options' must be a poptorch.Options")
    if options.Training.gradient_accumulation != 1:
        raise python_error('gradientAccumulation must be 1 for inference')
    return options

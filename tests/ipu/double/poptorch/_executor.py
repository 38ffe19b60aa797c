# ruff: noqa: N802 - the names are PopTorch's
"""`poptorch.inferenceModel`: the states of an executor, its devices, and the injected faults."""

import atexit
import copy
import hashlib
import inspect
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from ._errors import Error, RecoverableError, UnrecoverableError, backend_error, python_error
from ._graph import check_tensor, narrowed, reject_infinite, run, trace
from ._options import ConnectionType, Options, OutputMode, check_environment, checked

_LARGEST = 64


class _Machine:
    """What one process sees: the free IPUs, and how often it has compiled and called."""

    def __init__(self) -> None:
        self.free = int(os.environ.get('POPTORCH_DOUBLE_IPUS', '4'))
        self.counts = {'compile': 0, 'call': 0}
        self.lost = False
        self.executors: weakref.WeakSet[PoplarExecutor] = weakref.WeakSet()

    def log(self, line: str) -> None:
        if path := os.environ.get('POPTORCH_DOUBLE_LOG'):
            with Path(path).open('a', encoding='utf-8') as stream:
                stream.write(line + '\n')

    def event(self, name: str) -> None:
        """34: count, wait at the gate, and fail if this number is to fail."""
        self.counts[name] += 1
        gate = Path(os.environ.get('POPTORCH_DOUBLE_GATE', '/nonexistent'))
        if (gate / f'{name}.enter').exists():
            (gate / f'{name}.enter').write_text(name, encoding='utf-8')
            (gate / f'{name}.leave').read_text(encoding='utf-8')
        for fault in filter(None, os.environ.get('POPTORCH_DOUBLE_FAIL', '').split(',')):
            where, number, kind, *action = fault.split(':')
            if (where, int(number)) == (name, self.counts[name]):
                self._fail(kind, *action)

    def _fail(self, kind: str, action: str = '') -> None:
        if kind == 'recoverable':
            raise backend_error(RecoverableError, 'an injected fault', action)
        if kind == 'unrecoverable':
            self.lost = True
            raise backend_error(UnrecoverableError, 'an injected fault')
        raise backend_error(Error, 'an injected fault: Out of memory')

    def acquire(self, count: int) -> None:
        """25: from a fixed number of IPUs."""
        if count > self.free:
            raise python_error(f'Failed to acquire {count} IPU(s): No device found on the system with {count} IPUs')
        self.free -= count
        self.log(f'attach {count}')


MACHINE = _Machine()


@atexit.register
def _report_leaks() -> None:
    # 40: an executor that still holds its IPUs at the end was forgotten.
    for executor in MACHINE.executors:
        if executor.isAttachedToDevice():
            MACHINE.log('leak')


def inferenceModel(model: torch.nn.Module, options: Options | None = None) -> 'PoplarExecutor':
    """Wrap a model; 9: neither runs it nor takes a device."""
    return PoplarExecutor(model._user_model if isinstance(model, PoplarExecutor) else model, checked(options))


class PoplarExecutor:
    """See the original."""

    def __init__(self, model: torch.nn.Module, options: Options) -> None:
        # 8 (own): in training mode the vectors would change from call to call.
        assert not model.training, '(own rule of the double) call eval() first'
        options.freeze()
        self._user_model = copy.copy(model)
        self._options = options.clone()
        self._options.freeze()
        self._on_device: torch.nn.Module | None = None
        self._compiled: Any = None
        self._held = 0
        self._broken = False
        self._busy = threading.Lock()
        self._process = os.getpid()
        MACHINE.executors.add(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_user_model'], name)

    def __del__(self) -> None:
        # 28: what is collected gives its IPUs back.
        if self.__dict__.get('_held'):
            self._release()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """A second time does nothing."""
        self._check_process()
        if self._compiled is None:
            self._compile(self._bound(args, kwargs))

    def isCompiled(self) -> bool:
        """Until destroyed."""
        return self._compiled is not None

    def isAttachedToDevice(self) -> bool:
        """Whether it holds IPUs."""
        return self._compiled is not None and self._held > 0

    def attachToDevice(self) -> None:
        """28, 29."""
        self._check_compiled()
        self._check_online()
        if self._held:
            raise python_error('Device is already attached')
        self._attach()

    def detachFromDevice(self) -> None:
        """28."""
        self._check_compiled()
        if not self._held:
            raise python_error('Device is not attached')
        self._release()

    def destroy(self) -> None:
        """28: twice is fine; the next call compiles again."""
        self._check_process()
        if self._held:
            self._release()
        if self._compiled is not None:
            MACHINE.log('destroy')
        self._compiled = self._on_device = None
        self._broken = False

    def copyWeightsToDevice(self) -> None:
        """31: only this, or loading a state, changes what is on the device."""
        self._check_compiled()
        self._on_device = copy.deepcopy(self._user_model)

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        """31."""
        found = self._user_model.load_state_dict(state, strict)
        if self._compiled is not None:
            self.copyWeightsToDevice()
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check_process()
        # 32 (own): one caller at a time.
        if not self._busy.acquire(blocking=False):
            raise RuntimeError('(own rule of the double) a second call while one runs')
        try:
            values = self._bound(args, kwargs)
            if self._compiled is None:
                self._compile(values)
            self._check_online()
            for (name, expected), value in zip(self._compiled, values.values(), strict=True):
                _compare(name, expected, _form(value))
            if MACHINE.lost or self._broken:
                # Own: after a fault nothing runs before what the fault asks for.
                raise backend_error(UnrecoverableError, 'called after a fault without a new start')
            if not self._held:
                self._attach()
            return self._run(list(values.values()))
        finally:
            self._busy.release()

    def _compile(self, values: dict[str, Any]) -> None:
        check_environment()
        self._check_batch(values)
        for name, value in [*self._user_model.named_buffers(), *self._user_model.named_parameters()]:
            reject_infinite(value, name)
        options = self._options
        if options.connection_type is ConnectionType.Always:
            self._acquire()
        try:
            trace(self._user_model, self._step([_narrow(value) for value in values.values()], 0))
            MACHINE.event('compile')
        except Exception:
            # 30: under Always the device was taken before, and goes back.
            if self._held:
                self._release()
            raise
        self._compiled = [(name, _form(value)) for name, value in values.items()]
        MACHINE.log('cached' if self._cached() else 'compile')
        types = [str(leaf.dtype) for leaf in tree_flatten(list(values.values()))[0] if torch.is_tensor(leaf)]
        MACHINE.log(f'inputs {" ".join(types)}')
        self._on_device = copy.deepcopy(self._user_model)

    def _run(self, values: list[Any]) -> Any:
        before = [value.clone() for value in tree_flatten(values)[0] if torch.is_tensor(value)]
        try:
            MACHINE.event('call')
        except RecoverableError:
            self._broken = True
            raise
        inputs = [_narrow(value) for value in values]
        options = self._options
        steps = options.device_iterations * options.replication_factor
        MACHINE.log(f'call {before[0].shape[0] if before else 0}')
        found = [run(self._on_device, self._step(inputs, step)) for step in range(steps)]
        after = [value for value in tree_flatten(values)[0] if torch.is_tensor(value)]
        if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
            raise RuntimeError('(own rule of the double) an input was changed while a call ran')
        return tree_map(lambda *parts: self._gathered(parts), *found)

    def _gathered(self, parts: tuple[Any, ...]) -> Any:
        """21, 22: the rows of all steps in a fresh tensor; some modes give fewer."""
        if not torch.is_tensor(parts[0]):
            return parts[0]
        options = self._options
        replicas, mode = options.replication_factor, options.output_mode
        turns = [torch.cat(parts[n : n + replicas]) for n in range(0, len(parts), replicas)]
        if mode is OutputMode.Final:
            turns = turns[-1:]
        elif mode is OutputMode.EveryN:
            turns = turns[options.output_return_period - 1 :: options.output_return_period]
        elif mode is OutputMode.Sum:
            turns = [torch.stack(turns).sum(0)]
        made = narrowed(torch.cat(turns).clone())
        made.backward = _no_backward  # type: ignore[method-assign]
        return made

    def _step(self, inputs: list[Any], step: int) -> list[Any]:
        """11: the model sees its share of the rows only."""
        steps = self._options.device_iterations * self._options.replication_factor

        def share(value: Any) -> Any:
            if not torch.is_tensor(value) or not value.ndim:
                return value
            rows = value.shape[0] // steps
            return value[step * rows : (step + 1) * rows].clone()

        return [tree_map(share, value) for value in inputs]

    def _bound(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """17, 19, 20: arguments by name, in order."""
        try:
            bound = inspect.signature(self._user_model.forward).bind(*args, **kwargs)
        except TypeError as error:
            if 'missing' in str(error):
                raise python_error(f'Mandatory parameter missing: {error}') from None
            raise AssertionError(str(error)) from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            for leaf in tree_flatten(value)[0]:
                check_tensor(leaf, name)
        return dict(bound.arguments)

    def _check_batch(self, values: dict[str, Any]) -> None:
        # 10: every tensor, at compile only.
        steps = self._options.device_iterations * self._options.replication_factor
        for name, value in values.items():
            for leaf in tree_flatten(value)[0]:
                if torch.is_tensor(leaf):
                    size = leaf.shape[0] if leaf.ndim else 1
                    assert steps > 0, 'deviceIterations and replicationFactor must be positive'
                    assert size % steps == 0, f'Invalid batch dimension: {name}, {size} must be a multiple of {steps}'

    def _check_compiled(self) -> None:
        if self._compiled is None:
            raise python_error('Model has not been compiled or has been destroyed.')

    def _check_online(self) -> None:
        # 29.
        offline = self._options.connection_type is ConnectionType.Never
        assert not offline, 'Trying to run a model on an offline device'

    def _check_process(self) -> None:
        # 33 (own).
        if os.getpid() != self._process:
            raise RuntimeError('(own rule of the double) used after a fork')

    def _acquire(self) -> None:
        needed = self._options.replication_factor
        rounded = 1 << (needed - 1).bit_length()
        if (rounded != needed and not self._options.auto_round_num_ipus) or rounded > _LARGEST:
            raise python_error(f'{needed} IPUs: the number must be a power of 2 and at most {_LARGEST}')
        MACHINE.acquire(rounded)
        self._held = rounded

    def _attach(self) -> None:
        self._acquire()
        # The weights are uploaded again, as they are now.
        self._on_device = copy.deepcopy(self._user_model)

    def _release(self) -> None:
        MACHINE.free += self._held
        self._held = 0
        MACHINE.log('detach')

    def _cached(self) -> bool:
        """37: the same graph, shapes and options from an earlier process; the file is the double's own."""
        if not self._options.cache_path:
            return False
        state = [(name, value.shape, value.dtype) for name, value in self._user_model.state_dict().items()]
        key = repr((self._user_model, state, self._compiled, self._options._values))
        path = Path(self._options.cache_path) / f'{hashlib.sha256(key.encode()).hexdigest()}.double'
        known = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return known


def _no_backward(*_: Any) -> None:
    raise python_error('the outputs of an inference model have no backward')


def _narrow(value: Any) -> Any:
    return tree_map(lambda leaf: narrowed(leaf) if torch.is_tensor(leaf) else leaf, value)


def _form(value: Any) -> Any:
    """What the graph was compiled for: shapes, types, containers and constants."""
    if torch.is_tensor(value):
        return ('tensor', value.shape, value.dtype)
    if isinstance(value, list | tuple):
        return (type(value).__name__, [_form(item) for item in value])
    if isinstance(value, dict):
        return ('dict', {name: _form(item) for name, item in value.items()})
    return ('constant', value)


def _compare(name: str, expected: Any, got: Any) -> None:
    """14, 15, 16: later calls match the compiled ones in everything."""
    if expected == got:
        return
    tail = ': the runtime inputs do not match the compile inputs; make a new wrapper or call destroy()'
    if expected[0] != got[0]:
        raise python_error(f'Type mismatch for {name}: expected {expected[0]} but got {got[0]}{tail}')
    if expected[0] == 'tensor':
        for what, one, other in (
            ('Shape', expected[1], got[1]),
            ('Data type', expected[2], got[2]),
        ):
            if one != other:
                raise python_error(f'{what} mismatch for {name}: expected {one} but got {other}{tail}')
    if expected[0] == 'dict':
        raise python_error(f'Keys mismatch for {name}: expected {expected[1]} but got {got[1]}{tail}')
    if expected[0] == 'constant':
        raise python_error(f'Value mismatch for {name}: expected {expected[1]} but got {got[1]}{tail}')
    if len(expected[1]) != len(got[1]):
        raise python_error(f'Length mismatch for {name}: expected {len(expected[1])} but got {len(got[1])}{tail}')
    for number, (one, other) in enumerate(zip(expected[1], got[1], strict=True)):
        _compare(f'{name}[{number}]', one, other)

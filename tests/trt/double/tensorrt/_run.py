"""`tensorrt.Runtime`: plans to engines, engines to contexts, contexts to results on a stream."""

import ctypes
import hashlib
import json
import math
import threading
from typing import Any

import numpy as np
import onnxruntime

from ._build import MAGIC
from ._device import DEVICE, ILogger, Number, buffer, checked, tell

TensorIOMode = Number('TensorIOMode', {'NONE': 0, 'INPUT': 1, 'OUTPUT': 2})  # type: ignore[call-arg]
_TYPES = {'tensor(uint8)': np.uint8, 'tensor(int64)': np.int64, 'tensor(float)': np.float32}
_OUTPUT = 'vectors'


class Runtime:
    """See the original."""

    __slots__ = ('_logger',)

    def __init__(self, logger: Any) -> None:
        self._logger = checked(logger, 'Runtime')

    def deserialize_cuda_engine(self, serialized_engine: Any) -> 'ICudaEngine | None':
        """None for a plan that is damaged, of another version or of another GPU."""
        data = buffer(serialized_engine)
        if DEVICE.fails('engine', self._logger):
            return None
        line, _, model = data.removeprefix(MAGIC).partition(b'\n')
        try:
            head = json.loads(line)
        except ValueError:
            head = {}
        reason = ''
        if not data.startswith(MAGIC) or not head or hashlib.sha256(model).hexdigest() != head['digest']:
            reason = 'magicTagRead == kMAGIC_TAG failed'
        elif head['version'] != DEVICE.version:
            reason = f'The plan is of version {head["version"]}, this is {DEVICE.version}'
        elif tuple(head['capability']) != DEVICE.capability:
            reason = f'The plan is for compute {head["capability"]}, this is {DEVICE.capability}'
        if reason:
            tell(self._logger, ILogger.ERROR, f'IRuntime::deserializeCudaEngine: Error Code 1: {reason}')
            return None
        return ICudaEngine(head, model, self._logger)


class ICudaEngine:
    """What a plan holds."""

    __slots__ = ('head', 'logger', 'names', 'session')

    def __init__(self, head: dict[str, Any], model: bytes, logger: Any) -> None:
        self.head, self.logger = head, logger
        self.session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
        self.names = [*head['shapes'], _OUTPUT]

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        """Of inputs and outputs."""
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        """NONE for a name that it does not have."""
        if name not in self.names:
            return TensorIOMode.NONE
        return TensorIOMode.OUTPUT if name == _OUTPUT else TensorIOMode.INPUT

    def create_execution_context(self) -> 'IExecutionContext | None':
        """None if there is no memory for it."""
        return None if DEVICE.fails('context', self.logger) else IExecutionContext(self)


class IExecutionContext:
    """Shapes and addresses of one call; it belongs to a thread (own: TensorRT only forbids two at once)."""

    __slots__ = ('_addresses', '_engine', '_shapes', '_thread')

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._thread = threading.get_ident()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """Whether the profile has it."""
        self._check_thread()
        sizes = self._engine.head['shapes'].get(name)
        sides = tuple(shape)
        if sizes is None:
            return self._refuse(f'{name} is no input')
        least, _, most = sizes
        if len(sides) != len(least) or any(
            not low <= side <= high for low, side, high in zip(least, sides, most, strict=True)
        ):
            return self._refuse(f'Set dimension {sides} of {name} does not satisfy any profile: {least} to {most}')
        self._shapes[name] = sides
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """With -1 for what depends on a shape that is not set."""
        self._check_thread()
        if name != _OUTPUT:
            return self._shapes.get(name, (-1,) * len(self._engine.head['shapes'][name][0]))
        items = {shape[0] for shape in self._shapes.values()}
        whole = len(self._shapes) == len(self._engine.head['shapes']) and len(items) == 1
        return (items.pop() if whole else -1, self._engine.head['dimension'])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor lies on the device."""
        self._check_thread()
        if not isinstance(memory, int):
            raise TypeError(f'set_tensor_address(): incompatible function arguments: {type(memory).__name__}')
        if name not in self._engine.names:
            return self._refuse(f'Given invalid tensor name: {name}')
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Whether it stands in the queue of the stream; it runs when the stream is waited for, and not before."""
        self._check_thread()
        if not isinstance(stream_handle, int):
            raise TypeError('execute_async_v3(): incompatible function arguments')
        if DEVICE.fails('execute', self._engine.logger):
            return False
        for name in self._engine.names:
            if -1 in self.get_tensor_shape(name):
                return self._refuse(f'the shape of {name} is not set')
            if not self._addresses.get(name):
                return self._refuse(f'Address is not set for {name}')
        if stream_handle not in DEVICE.streams:
            return self._refuse('invalid resource handle')
        if stream_handle == 0:
            tell(self._engine.logger, ILogger.WARNING, 'Using default stream may lead to performance issues')
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        DEVICE.streams[stream_handle].queue.append(lambda: self._execute(shapes, addresses))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {}
        for item in self._engine.session.get_inputs():
            shape, kind = shapes[item.name], np.dtype(_TYPES[item.type])
            size = math.prod(shape) * kind.itemsize
            DEVICE.at(addresses[item.name], size)
            feeds[item.name] = np.frombuffer(ctypes.string_at(addresses[item.name], size), kind).reshape(shape)
        vectors = self._engine.session.run(None, feeds)[0]
        if not self._engine.head['exact']:
            # TF32 multiplies with ten bits, of which the vectors have to show something (own).
            vectors = vectors * np.random.default_rng(0).normal(1, 4e-3, vectors.shape).astype(np.float32)
        DEVICE.at(addresses[_OUTPUT], vectors.nbytes)
        ctypes.memmove(addresses[_OUTPUT], np.ascontiguousarray(vectors).ctypes.data, vectors.nbytes)
        DEVICE.sizes.append(next(iter(shapes.values())))

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError('(own rule of the double) this context belongs to another thread')

    def _refuse(self, reason: str) -> bool:
        tell(self._engine.logger, ILogger.ERROR, f'IExecutionContext: Error Code 3: API Usage Error ({reason})')
        return False

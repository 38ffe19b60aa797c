"""TensorRT on an NVIDIA GPU, version 10 or 11: an engine for each tower, built once from its exported ONNX file.

    <exported>/tensorrt/<tower>-<precision>-<key>.plan

The key stands for all that a plan is bound to: the ONNX file, TensorRT's version, the GPU, and the sizes of a call.
Networks are strongly typed: the engine computes in what the ONNX file computes in. Torch owns inputs and outputs.
"""

import hashlib
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
import torch
from numpy.typing import NDArray

from clipflow.errors import Internal, InvalidParameter, Unavailable
from clipflow.sessions import export
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, Options, OutOfMemory, Tower, Towers, grey
from clipflow.sessions.export import exported, file_name, files_of, locked, put
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.tensorrt')

_PLACE = 'cuda'
_ITEMS = (1, 32, 64)
_TOKENS = (1, 16)
"""Least, usual and most of a call. The most tokens are the model's context. TensorRT takes a least of 1 as well as 2,
and then no text has to be padded for it."""
_WORKSPACE_BYTES = 2 << 30
_SECONDS_BETWEEN_LINES = 1.0
_ERRORS = 3
"""So many are told."""
_NO_MEMORY = ('OutOfMemory', 'out of memory')
"""What TensorRT and CUDA say."""


def load(spec: ModelSpec, options: Options) -> 'TensorRtSession':
    """Load both engines. Those that are not in the cache are built, which takes minutes.

    Raises:
        InvalidParameter: no GPU, a precision that is not offered, or a model that TensorRT cannot read.
        Unavailable: the GPU has no memory for the engines.
    """
    return TensorRtSession(spec, options)


class TensorRtSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        if options.precision not in ('float32', 'float16') or options.device != 'cuda':
            raise InvalidParameter(
                f'tensorrt computes in float32 or float16 on CUDA, not in {options.precision} on {options.device}'
            )
        if int(trt.__version__.partition('.')[0]) < 10:
            raise InvalidParameter(f'TensorRT {trt.__version__} is too old; the runtime "tensorrt" needs 10 or later')
        if not torch.cuda.is_available():
            raise InvalidParameter(
                'tensorrt needs an NVIDIA GPU, but PyTorch finds no CUDA device; is there a driver, and is it the CUDA '
                'build?'
            )
        self._spec, self._options = spec, options
        # On the default stream TensorRT synchronises more often.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            self._runtime = trt.Runtime(_LOGGER)
        except TypeError:  # the bindings raise it where the library gives no object
            raise InvalidParameter(f'TensorRT {trt.__version__} cannot use this GPU: {_LOGGER.said()}') from None
        self._directory = exported(spec, options.cache, options.precision)
        self._towers = Towers(self._tower)
        self._towers[TEXT]  # not in the first query
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    def _tower(self, tower: Tower) -> '_Engine':
        plan = _plan(self._directory, tower, self._options.precision, self._spec)
        engine, _ = self._read(plan)  # a plan is there as a whole or not at all: that needs no lock
        return _Engine(self._built(plan, tower) if engine is None else engine, tower)

    def _built(self, plan: Path, tower: Tower) -> Any:
        folder = plan.parent
        if not all(os.access(place, os.W_OK) for place in (self._directory, folder) if place.exists()):
            raise Unavailable(
                f'{folder} has no engine of the {tower} tower for this GPU and this TensorRT, and cannot be written; '
                'call `clipflow export tensorrt` with such a GPU where it can, or set CLIPFLOW_CACHE'
            )
        with locked(folder):
            folder.mkdir(exist_ok=True)
            engine, fault = self._read(plan)  # another process may have built it meanwhile
            if engine is None:
                if fault:
                    _log.warning('%s cannot be used and is built again: %s', plan, fault)
                put(plan, _build(self._directory / file_name(tower, self._options.precision), tower, self._spec))
                engine, _ = self._read(plan)
            if engine is None:
                plan.unlink()
                raise Internal(f'TensorRT cannot read the engine that it has just built ({plan}); the log says why')
        return engine

    def _read(self, plan: Path) -> tuple[Any, str]:
        """The engine of a plan, None if there is none in it, and then what is wrong with the file, if it is there."""
        if not plan.exists():
            return None, ''
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is not None:
            return engine, ''
        reason = _LOGGER.said()
        if _is_of_memory(reason):  # the plan is sound, and to build it would need more
            raise Unavailable(f'the GPU has no memory for the engine {plan.name}: {reason}')
        return None, reason

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'tensorrt',
            'device': 'cuda',
            'precision': self._options.precision,
            'runtime_version': trt.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return self._run(IMAGE, {'pixels': pixels})

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return self._run(TEXT, {'ids': ids.astype(np.int64), 'mask': mask.astype(np.int64)})

    def _run(self, tower: Tower, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        most = _ITEMS[-1]
        parts = [
            self._once(tower, {name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, len(next(iter(inputs.values()))), most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _once(self, tower: Tower, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        try:
            return self._towers[tower].run(inputs, self._stream)
        except (torch.OutOfMemoryError, OutOfMemory) as error:
            reason = str(error)
        # Outside of the handler, where nothing holds the tensors of the call any more.
        torch.cuda.empty_cache()
        raise OutOfMemory(reason)

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)
        torch.cuda.empty_cache()

    def close(self) -> None:
        """See `base.Session`."""
        self._towers.close()
        torch.cuda.empty_cache()


class _Engine:
    """An engine, and the context with the memory of its calls."""

    def __init__(self, engine: Any, tower: Tower) -> None:
        self._context = engine.create_execution_context()
        if self._context is None:
            raise Unavailable(f'the GPU has no memory to run the {tower} tower: {_LOGGER.said()}')
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]

    def run(self, inputs: dict[str, NDArray[Any]], stream: torch.cuda.Stream) -> NDArray[np.float32]:
        """Those of `inputs` that the engine has, to vectors."""
        with torch.cuda.stream(stream):
            # They live until the stream is through: TensorRT has nothing but their addresses.
            tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])).to(_PLACE) for name in self._inputs}
            for name, tensor in tensors.items():
                if not self._context.set_input_shape(name, tuple(tensor.shape)):
                    raise Internal(f'TensorRT refuses {name} of the shape {tuple(tensor.shape)}: {_LOGGER.said()}')
            shape = tuple(self._context.get_tensor_shape('vectors'))
            tensors['vectors'] = torch.empty(shape, dtype=torch.float32, device=_PLACE)
            for name, tensor in tensors.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                reason = _LOGGER.said()
                raise OutOfMemory(reason) if _is_of_memory(reason) else Internal(f'TensorRT does not run: {reason}')
            stream.synchronize()
            vectors: NDArray[np.float32] = tensors['vectors'].cpu().numpy()
            return vectors


def _is_of_memory(reason: str) -> bool:
    return any(sign in reason for sign in _NO_MEMORY)


def are_there(spec: ModelSpec, cache: Path, precision: str) -> bool:
    """Whether a session has nothing to write."""
    if not export.are_there(spec, cache, precision):
        return False
    directory = exported(spec, cache, precision)
    return all(_plan(directory, tower, precision, spec).exists() for tower in TOWERS)


def _plan(directory: Path, tower: Tower, precision: str, spec: ModelSpec) -> Path:
    key = _key(directory / file_name(tower, precision), spec.context)
    return directory / 'tensorrt' / f'{tower}-{precision}-{key}.plan'


def _key(source: Path, context: int) -> str:
    """A plan of another key is of no use: it does not load, or is not of this model."""
    parts: list[Any] = []
    for path in files_of(source):
        with path.open('rb') as file:
            parts.append(hashlib.file_digest(file, 'sha256').hexdigest())
    parts += [trt.__version__, _ITEMS, _TOKENS, context]
    parts += [torch.cuda.get_device_capability(), torch.cuda.get_device_name()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _build(source: Path, tower: Tower, spec: ModelSpec) -> bytes:
    """The plan of an engine for this GPU."""
    begun = time.monotonic()
    _log.info('building the %s tower of %s for TensorRT; this takes minutes, and is done once', tower, spec.name)
    builder = trt.Builder(_LOGGER)
    flag = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)  # without it, they are always
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, _LOGGER)  # it holds the weights until the engine is built
    if not parser.parse_from_file(str(source)):
        reasons = '; '.join(str(parser.get_error(number)) for number in range(min(parser.num_errors, _ERRORS)))
        reasons = ' '.join(reasons.split()) or _LOGGER.said()
        raise InvalidParameter(f'TensorRT cannot read the {tower} tower of {spec.name}: {reasons}')
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if hasattr(trt.BuilderFlag, 'TF32'):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and then float32 is not as good as float32
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        profile.set_shape(tensor.name, *_sizes(tuple(tensor.shape), spec.context))
    config.add_optimization_profile(profile)
    progress = _Progress(tower, begun)
    if hasattr(config, 'progress_monitor'):
        config.progress_monitor = progress
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InvalidParameter(f'TensorRT cannot build the {tower} tower of {spec.name}: {_LOGGER.said()}')
    _LOGGER.said()  # of kernels that were tried and passed over
    _log.info('the %s tower is built, after %.0f s', tower, time.monotonic() - begun)
    return bytes(plan)


def _sizes(shape: tuple[int, ...], context: int) -> tuple[tuple[int, ...], ...]:
    """Least, usual and most of an input: the first axis is items, another that is free is tokens."""
    tokens = (_TOKENS[0], min(_TOKENS[1], context), context)
    return tuple(
        tuple(side if side >= 0 else tokens[step] if axis else _ITEMS[step] for axis, side in enumerate(shape))
        for step in range(3)
    )


class _Logger(trt.ILogger):  # type: ignore[misc]
    """TensorRT's messages to our log; the latest errors are kept, because its calls only say that they failed."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: deque[str] = deque(maxlen=_ERRORS)

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._errors.append(msg)
        _log.log(logging.WARNING if severity == trt.ILogger.WARNING else logging.DEBUG, 'TensorRT: %s', msg)

    def said(self) -> str:
        """The errors since the last time this was asked."""
        found = ' '.join('; '.join(self._errors).split())
        self._errors.clear()
        return found or 'it does not say why'


_LOGGER = _Logger()
"""The only one: TensorRT keeps the first logger of a process, for all objects."""


class _Progress(getattr(trt, 'IProgressMonitor', object)):  # type: ignore[misc]
    """A line of the log about once a second while an engine is built."""

    def __init__(self, tower: Tower, begun: float) -> None:
        super().__init__()
        self._tower, self._begun, self._next = tower, begun, begun
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT; phases lie within each other."""
        self._steps[phase_name] = num_steps
        self._tell(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT after step 0, 1, ...; True: go on."""
        self._tell(phase_name, step + 1)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT, perhaps before the last step."""
        self._steps.pop(phase_name, None)

    def _tell(self, phase: str, done: int) -> None:
        # TensorRT calls from several threads; the worst that can come of it is a line too many.
        now, steps = time.monotonic(), self._steps.get(phase) or 1
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN_LINES
            text = 'building the %s tower: %s, step %d of %d (%d %%), after %.0f s'
            _log.info(text, self._tower, phase, done, steps, 100 * done // steps, now - self._begun)

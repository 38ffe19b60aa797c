"""OpenVINO on the CPU: the fastest in bfloat16 where the processor has it."""

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import IMAGE, TEXT, Options, OutOfMemory, Tower, Towers, grey
from clipflow.sessions.export import exported, file_name
from clipflow.weights import ModelSpec

_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}
_ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_TOKENS = (4, 8, 12, 16, 20, 24, 28, 32, 48, 64)
"""Sizes of a call; above the last, its multiples. OpenVINO keeps code and memory for every shape that it has met, 1 MB
and more of each, for ever: with every number of texts and every length for a shape, a service would grow for days.
"""


def load(spec: ModelSpec, options: Options) -> 'OpenVinoSession':
    """Compile both towers from their exported files, which are made first where they are missing.

    Raises:
        InvalidParameter: a precision that OpenVINO has no use for on a CPU, or a model that cannot be exported.
    """
    return OpenVinoSession(spec, options)


class OpenVinoSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        if options.precision not in _HINTS or options.device != 'cpu':
            raise InvalidParameter(
                f'openvino computes in float32 or bfloat16 on the CPU, not in {options.precision} on {options.device}'
            )
        self._options = options
        self._context = spec.context
        self._directory = exported(spec, options.cache)
        self._towers = Towers(self._tower)
        self._masked = len(self._towers[TEXT].input_tensors) > 1
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    def _tower(self, tower: Tower) -> Any:
        settings = {
            'PERFORMANCE_HINT': 'LATENCY',
            # Without a hint it takes bfloat16 by itself.
            'INFERENCE_PRECISION_HINT': _HINTS[self._options.precision],
            'INFERENCE_NUM_THREADS': self._options.threads,
            # Two processes would bind themselves to the same core.
            'ENABLE_CPU_PINNING': not self._options.shared,
        }
        core = openvino.Core()
        model = core.read_model(self._directory / file_name(tower, 'float32'))
        return core.compile_model(model, 'CPU', settings).create_infer_request()

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'openvino',
            'device': 'cpu',
            'precision': self._options.precision,
            'runtime_version': openvino.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        parts, start = [], 0
        while start < len(pixels):
            # In powers of two: a picture more costs much, a call more little.
            size = 1 << (len(pixels) - start).bit_length() - 1
            parts.append(self._run(IMAGE, [pixels[start : start + size]]))
            start += size
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        count, length = ids.shape
        rows = ((0, _at_least(count, _ITEMS) - count), (0, 0))
        tokens = ((0, 0), (0, min(_at_least(length, _TOKENS), self._context) - length))
        # Behind a text comes what is masked, or, where there is no mask, its end token or padding once more.
        inputs = [np.pad(ids.astype(np.int64), tokens, 'edge'), np.pad(mask.astype(np.int64), tokens)]
        padded = [np.pad(array, rows, 'edge') for array in inputs]
        return self._run(TEXT, padded if self._masked else padded[:1])[:count]

    def _run(self, tower: Tower, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        request = self._towers[tower]
        try:
            return _vectors(request, inputs)
        except OutOfMemory:
            self._towers.release(tower)  # else it keeps what it had already taken, and has no room for half as much
            raise

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)

    def close(self) -> None:
        """See `base.Session`."""
        self._towers.close()


def _at_least(size: int, steps: tuple[int, ...]) -> int:
    """The next of `steps`, or of the multiples of the last."""
    return next((step for step in steps if step >= size), -(-size // steps[-1]) * steps[-1])


def _vectors(request: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
    for position, array in enumerate(inputs):
        request.set_input_tensor(position, openvino.Tensor(np.ascontiguousarray(array), shared_memory=True))
    # Without memory for a call, OpenVINO leaves the last result as it is and says nothing.
    request.get_output_tensor(0).data[:1] = 0
    try:
        request.infer()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and 'alloc' not in str(error):
            raise
        raise OutOfMemory(str(error)[:200]) from None
    vectors: NDArray[np.float32] = request.get_output_tensor(0).data.copy()  # the next call overwrites it
    if len(vectors) != len(inputs[0]) or not vectors[:1].any():
        raise OutOfMemory(f'OpenVINO gives no result for {len(inputs[0])} items')
    return vectors

"""OpenVINO on the CPU: the fastest in bfloat16 where the processor has it."""

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import Options, grey
from clipflow.sessions.export import IMAGE, TEXT, exported
from clipflow.weights import ModelSpec

_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}


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
        self._precision = options.precision
        directory = exported(spec, options.cache)
        core = openvino.Core()
        settings = {
            'PERFORMANCE_HINT': 'LATENCY',
            # Without a hint it takes bfloat16 by itself.
            'INFERENCE_PRECISION_HINT': _HINTS[options.precision],
            'INFERENCE_NUM_THREADS': options.threads,
            # Two processes would bind themselves to the same core.
            'ENABLE_CPU_PINNING': not options.shared,
        }
        self._image, self._text = (
            core.compile_model(core.read_model(directory / f'{tower}.onnx'), 'CPU', settings).create_infer_request()
            for tower in (IMAGE, TEXT)
        )
        self._masked = len(self._text.input_tensors) > 1
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'openvino',
            'device': 'cpu',
            'precision': self._precision,
            'runtime_version': openvino.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return _vectors(self._image, [pixels])

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        inputs = [ids.astype(np.int64), mask.astype(np.int64)]
        return _vectors(self._text, inputs if self._masked else inputs[:1])

    def close(self) -> None:
        """See `base.Session`."""
        del self._image, self._text


def _vectors(request: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
    for position, array in enumerate(inputs):
        request.set_input_tensor(position, openvino.Tensor(np.ascontiguousarray(array), shared_memory=True))
    request.infer()
    vectors: NDArray[np.float32] = request.get_output_tensor(0).data.copy()  # the next call overwrites it
    return vectors

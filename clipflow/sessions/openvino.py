"""OpenVINO on the CPU: the fastest in bfloat16 where the processor has it."""

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, Options, Tower, Towers, grey
from clipflow.sessions.export import exported, file_name
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
        self._options = options
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
        return _vectors(self._towers[IMAGE], [pixels])

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        inputs = [ids.astype(np.int64), mask.astype(np.int64)]
        return _vectors(self._towers[TEXT], inputs if self._masked else inputs[:1])

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)

    def close(self) -> None:
        """See `base.Session`."""
        for tower in TOWERS:
            self.release(tower)


def _vectors(request: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
    for position, array in enumerate(inputs):
        request.set_input_tensor(position, openvino.Tensor(np.ascontiguousarray(array), shared_memory=True))
    request.infer()
    vectors: NDArray[np.float32] = request.get_output_tensor(0).data.copy()  # the next call overwrites it
    return vectors

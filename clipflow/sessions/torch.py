"""PyTorch: the reference that every other session is compared with (float32 on the CPU), and the way to a GPU."""

import numpy as np
import torch
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import Options, grey
from clipflow.sessions.towers import load_towers
from clipflow.weights import ModelSpec

_TOKENS_FOR_ONE_THREAD = 64
"""A short query gains a fifth from a second thread, and loses threefold where that thread has to wait for its core."""
_FORMATS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def load(spec: ModelSpec, options: Options) -> 'TorchSession':
    """Load both towers.

    Raises:
        InvalidParameter: transformers cannot make a model of these files, or the device or precision is not there.
    """
    return TorchSession(spec, options)


class TorchSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        if options.precision not in _FORMATS:
            raise InvalidParameter(f'torch computes in {", ".join(_FORMATS)}, not in {options.precision!r}')
        self._options = options
        self._device = torch.device(options.device)
        image, text = load_towers(spec)
        for tower in (image, text):
            tower._model.to(self._device, _FORMATS[options.precision])
        self._image, self._text = image.to(self._device), text.to(self._device)
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'torch',
            'device': self._device.type,
            'precision': self._options.precision,
            'runtime_version': torch.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        torch.set_num_threads(self._options.threads)
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self._image(torch.tensor(pixels, device=self._device)).cpu().numpy()
            return vectors

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        torch.set_num_threads(1 if ids.size <= _TOKENS_FOR_ONE_THREAD else self._options.threads)
        inputs = [torch.tensor(array, dtype=torch.int64, device=self._device) for array in (ids, mask)]
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self._text(*inputs).cpu().numpy()
            return vectors

    def close(self) -> None:
        """See `base.Session`."""
        del self._image, self._text

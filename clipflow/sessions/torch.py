"""PyTorch: the reference that every other session is compared with (float32 on the CPU), and the way to a GPU."""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, Options, OutOfMemory, Tower, Towers, grey
from clipflow.sessions.towers import FORMATS, load_towers
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.torch')

_COMPILED_FOR = ((1, 8), (1, 9), (2, 8), (3, 9))
"""Items, and tokens of each, that make PyTorch see which sizes change."""
_TOKENS_FOR_ONE_THREAD = 64
"""A short query gains a fifth from a second thread, and loses threefold where that thread has to wait for its core."""


def load(spec: ModelSpec, options: Options) -> 'TorchSession':
    """Load both towers.

    Raises:
        InvalidParameter: transformers cannot make a model of these files, or the device or precision is not there.
    """
    return TorchSession(spec, options)


class TorchSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        if options.precision not in FORMATS:
            raise InvalidParameter(f'torch computes in {", ".join(FORMATS)}, not in {options.precision!r}')
        self._spec, self._options = spec, options
        self._device = torch.device(options.device)
        self._towers = Towers(lambda tower: self._load()[tower], self._load())
        self.dimension = int(self.encode_images(grey(spec)).shape[1])
        if options.compiled:
            self._compile()

    def _load(self) -> dict[Tower, Any]:
        loaded: dict[Tower, Any] = dict(zip(TOWERS, load_towers(self._spec), strict=True))
        for name, tower in loaded.items():
            tower.convert(FORMATS[self._options.precision])
            loaded[name] = tower.to(self._device)
            if self._options.compiled:
                loaded[name] = torch.compile(loaded[name])
        return loaded

    def _compile(self) -> None:
        """Now, not in the first queries. A size that was seen to change may change; one item is a case of its own."""
        longest = self._spec.context
        for step, (count, length) in enumerate(_COMPILED_FOR, 1):
            _log.info('compiling both towers: step %d of %d', step, len(_COMPILED_FOR))
            self.encode_images(np.repeat(grey(self._spec), count, axis=0))
            ids = np.ones((count, longest if self._spec.padding == 'fixed' else min(length, longest)), np.int32)
            self.encode_texts(ids, ids)

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
        return self._run(IMAGE, torch.from_numpy(pixels))

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        torch.set_num_threads(1 if ids.size <= _TOKENS_FOR_ONE_THREAD else self._options.threads)
        return self._run(TEXT, *(torch.tensor(array, dtype=torch.int64) for array in (ids, mask)))

    def _run(self, tower: Tower, *inputs: torch.Tensor) -> NDArray[np.float32]:
        try:
            with torch.inference_mode():
                vectors = self._towers[tower](*(tensor.to(self._device) for tensor in inputs))
                found: NDArray[np.float32] = vectors.cpu().numpy()
                return found
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # Outside of the handler, where nothing holds the tensors of the call any more.
        self._free()
        raise OutOfMemory(reason)

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)
        self._free()

    def _free(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.empty_cache()

    def close(self) -> None:
        """See `base.Session`."""
        for tower in TOWERS:
            self.release(tower)

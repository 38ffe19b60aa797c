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
_NO_MEMORY = ("can't allocate memory", 'out of memory', 'CUBLAS_STATUS_ALLOC_FAILED')
"""What CPUs, Macs and the libraries of CUDA say, which have no class for it."""
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
        # On by default, in NVIDIA's images the second too, and then float32 is not as good as float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._towers = Towers(lambda tower: self._load(tower)[tower], self._load(*TOWERS))
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    def _load(self, *wanted: Tower) -> dict[Tower, Any]:
        loaded: dict[Tower, Any] = dict(zip(TOWERS, load_towers(self._spec), strict=True))
        for tower in wanted:
            loaded[tower].convert(FORMATS[self._options.precision])
            loaded[tower] = loaded[tower].to(self._device)
            if self._options.compiled:
                loaded[tower] = self._compiled(tower, loaded[tower])
        return {tower: loaded[tower] for tower in wanted}

    def _compiled(self, tower: Tower, module: Any) -> Any:
        """Now, not in the first queries. A size that was seen to change may change; one item is a case of its own."""
        compiled = torch.compile(module)
        longest = self._spec.context
        for step, (count, length) in enumerate(_COMPILED_FOR, 1):
            _log.info('compiling the %s tower: step %d of %d', tower, step, len(_COMPILED_FOR))
            ids = np.ones((count, longest if self._spec.padding == 'fixed' else min(length, longest)), np.int64)
            inputs = [np.repeat(grey(self._spec), count, axis=0)] if tower == IMAGE else [ids, ids]
            self._call(tower, compiled, inputs)
        return compiled

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
        return self._run(IMAGE, [pixels])

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return self._run(TEXT, [ids.astype(np.int64), mask.astype(np.int64)])

    def _run(self, tower: Tower, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        module = self._towers[tower]
        try:
            return self._call(tower, module, inputs)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in _NO_MEMORY):
                raise
            reason = str(error)
        # Outside of the handler, where nothing holds the tensors of the call any more.
        self._free()
        raise OutOfMemory(reason)

    def _call(self, tower: Tower, module: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        # What is compiled is so for one number of threads, and another number compiles it again.
        short = tower == TEXT and inputs[0].size <= _TOKENS_FOR_ONE_THREAD and not self._options.compiled
        torch.set_num_threads(1 if short else self._options.threads)
        with torch.inference_mode():
            vectors = module(*(torch.from_numpy(array).to(self._device) for array in inputs))
            found: NDArray[np.float32] = vectors.cpu().numpy()
            return found

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)
        self._free()

    def _free(self) -> None:
        if self._device.type != 'cpu':
            getattr(torch, self._device.type).empty_cache()  # torch.cuda or torch.mps

    def close(self) -> None:
        """See `base.Session`."""
        self._towers.close()
        self._free()

"""ONNX Runtime: float32, and int8 where it is allowed, on the CPU; float16 and float32 on CUDA."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, Options, OutOfMemory, Tower, Towers, grey
from clipflow.sessions.export import INT8, PRECISIONS, exported, file_name, locked, put
from clipflow.sessions.parity import closeness, probes
from clipflow.weights import ModelSpec

CUDA = 'CUDAExecutionProvider'
_CPU = 'CPUExecutionProvider'
_LEAST_COSINE = 0.99
"""A tower whose 8-bit vectors are further than this from those of float32 stays in float32."""
_NO_MEMORY = ('allocate memory', 'out of memory', 'STATUS_ALLOC_FAILED', 'bad_alloc')
"""What ONNX Runtime, CUDA and its libraries say; there is no class for it."""


def load(spec: ModelSpec, options: Options) -> 'OnnxSession':
    """Load both towers from their exported files, which are made first where they are missing.

    Raises:
        InvalidParameter: a precision or device that this ONNX Runtime has not, or a model that cannot be exported.
    """
    return OnnxSession(spec, options)


class OnnxSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        precisions = PRECISIONS if options.device == 'cpu' else ('float32', 'float16')
        if options.precision not in precisions or options.device not in ('cpu', 'cuda'):
            raise InvalidParameter(
                'onnx computes in float32, float16 or int8 on the CPU and in float32 or float16 on CUDA, '
                f'not in {options.precision} on {options.device}'
            )
        if options.device == 'cuda' and CUDA not in onnxruntime.get_available_providers():
            raise InvalidParameter(
                'this ONNX Runtime knows no CUDA; install onnxruntime-gpu instead of onnxruntime, or set '
                'CLIPFLOW_DEVICE=cpu'
            )
        self._kept: list[Tower] = []
        self._directory = exported(spec, options.cache, options.precision)
        self._options = options
        if options.precision == 'int8':
            self._kept = self._too_far(spec)
        self._towers = Towers(self._tower)
        self._masked = len(self._towers[TEXT].get_inputs()) > 1
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    def _tower(self, tower: Tower) -> onnxruntime.InferenceSession:
        return self._open(file_name(tower, 'float32' if tower in self._kept else self._options.precision))

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Threads that wait in a loop are faster for one process, and steal the cores of all others.
        settings.add_session_config_entry('session.intra_op.allow_spinning', '0' if self._options.shared else '1')
        wanted = [CUDA, _CPU] if self._options.device == 'cuda' else [_CPU]
        if CUDA in wanted:
            onnxruntime.preload_dlls()  # finds the libraries of CUDA that came with torch
        # By default it computes in TF32, and then float32 is not as good as float32; and it tries all ways of a
        # convolution for every new size of a batch, which takes longer than the batch.
        of_cuda = {'use_tf32': '0', 'cudnn_conv_algo_search': 'HEURISTIC'}
        own = [of_cuda if provider == CUDA else {} for provider in wanted]
        # By default it goes on with the CPU when CUDA fails, now or in a later call, and only prints that.
        session = onnxruntime.InferenceSession(
            str(self._directory / name), settings, providers=wanted, provider_options=own, enable_fallback=0
        )
        if session.get_providers()[0] != wanted[0]:
            # A library that is missing counts as no failure, and stands only in its log.
            raise InvalidParameter(
                'ONNX Runtime cannot use the CUDA device; do the versions of onnxruntime-gpu, CUDA and cuDNN fit?'
            )
        return session

    def _too_far(self, spec: ModelSpec) -> list[Tower]:
        """The towers that 8 bits take too far from float32."""
        report = self._directory / INT8
        worst = _worst(report)
        if worst is None:
            pixels, ids, mask = probes(spec)
            vectors = []
            for precision in ('float32', 'int8'):
                opened = {tower: self._open(file_name(tower, precision)) for tower in TOWERS}
                self._towers = Towers(self._tower, opened)
                self._masked = len(opened[TEXT].get_inputs()) > 1
                vectors.append((self.encode_images(pixels), self.encode_texts(ids, mask)))
            found = [asdict(closeness(*pair)) for pair in zip(*vectors, strict=True)]
            with locked(self._directory):
                put(report, json.dumps(dict(zip(TOWERS, found, strict=True)), indent=2).encode())
            worst = {tower: one['worst'] for tower, one in zip(TOWERS, found, strict=True)}
        return [tower for tower in TOWERS if worst[tower] < _LEAST_COSINE]

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'onnx',
            'device': self._options.device,
            'precision': self._options.precision,
            **({'float32_towers': ', '.join(self._kept)} if self._kept else {}),
            'runtime_version': onnxruntime.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return self._run(IMAGE, {'pixels': pixels})

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        inputs = {'ids': ids.astype(np.int64)} | ({'mask': mask.astype(np.int64)} if self._masked else {})
        return self._run(TEXT, inputs)

    def _run(self, tower: Tower, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        session = self._towers[tower]  # not within: that it cannot be loaded says nothing of the batch
        try:
            vectors: NDArray[np.float32] = session.run(None, inputs)[0]
            return vectors
        except Exception as error:
            if not any(sign in str(error) for sign in _NO_MEMORY):
                raise
            reason = str(error)[:200]
        # A session keeps what it has ever taken, and leaves the other tower no room either.
        del session
        for each in TOWERS:
            self._towers.release(each)
        raise OutOfMemory(reason)

    def release(self, tower: Tower) -> None:
        """See `base.Session`."""
        self._towers.release(tower)

    def close(self) -> None:
        """See `base.Session`."""
        self._towers.close()


def _worst(report: Path) -> dict[Tower, float] | None:
    """The worst cosine of each tower in a report; None for one that cannot be read."""
    try:
        found = json.loads(report.read_text(encoding='utf-8'))
        return {tower: float(found[tower]['worst']) for tower in TOWERS}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None

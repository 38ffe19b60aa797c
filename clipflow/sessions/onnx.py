"""ONNX Runtime on the CPU: float32, and int8 where it is allowed."""

import json
from dataclasses import asdict

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.sessions.base import Options, grey
from clipflow.sessions.export import IMAGE, INT8, TEXT, exported, put
from clipflow.sessions.parity import closeness, probes
from clipflow.weights import ModelSpec

_LEAST_COSINE = 0.99
"""A tower whose 8-bit vectors are further than this from those of float32 stays in float32."""


def load(spec: ModelSpec, options: Options) -> 'OnnxSession':
    """Load both towers from their exported files, which are made first where they are missing.

    Raises:
        InvalidParameter: a precision that ONNX Runtime has no use for on a CPU, or a model that cannot be exported.
    """
    return OnnxSession(spec, options)


class OnnxSession:
    """See `base.Session`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        if options.precision not in ('float32', 'int8') or options.device != 'cpu':
            raise InvalidParameter(
                f'onnx computes in float32 or int8 on the CPU, not in {options.precision} on {options.device}'
            )
        self._kept: list[str] = []
        self._directory = exported(spec, options.cache, int8=options.precision == 'int8')
        self._options = options
        suffixes = dict.fromkeys((IMAGE, TEXT), '')
        if options.precision == 'int8':
            suffixes = self._close_enough(spec)
        self._image, self._text = (self._tower(name + suffix) for name, suffix in suffixes.items())
        self._masked = len(self._text.get_inputs()) > 1
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    def _tower(self, name: str) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Threads that wait in a loop are faster for one process, and steal the cores of all others.
        settings.add_session_config_entry('session.intra_op.allow_spinning', '0' if self._options.shared else '1')
        path = str(self._directory / f'{name}.onnx')
        return onnxruntime.InferenceSession(path, settings, providers=['CPUExecutionProvider'])

    def _close_enough(self, spec: ModelSpec) -> dict[str, str]:
        """By tower: the ending of its 8-bit file, or none where 8 bits lose too much of this model."""
        report = self._directory / 'int8.json'
        if not report.exists():
            pixels, ids, mask = probes(spec)
            vectors = []
            for ending in ('', INT8):
                self._image, self._text = self._tower(IMAGE + ending), self._tower(TEXT + ending)
                self._masked = len(self._text.get_inputs()) > 1
                vectors.append((self.encode_images(pixels), self.encode_texts(ids, mask)))
            found = [asdict(closeness(*pair)) for pair in zip(*vectors, strict=True)]
            put(report, json.dumps(dict(zip((IMAGE, TEXT), found, strict=True)), indent=2).encode())
        worst = {tower: found['worst'] for tower, found in json.loads(report.read_text(encoding='utf-8')).items()}
        self._kept = [tower for tower in (IMAGE, TEXT) if worst[tower] < _LEAST_COSINE]
        return {tower: '' if tower in self._kept else INT8 for tower in (IMAGE, TEXT)}

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'onnx',
            'device': 'cpu',
            'precision': self._options.precision,
            **({'float32_towers': ', '.join(self._kept)} if self._kept else {}),
            'runtime_version': onnxruntime.__version__,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        vectors: NDArray[np.float32] = self._image.run(None, {'pixels': pixels})[0]
        return vectors

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        inputs = {'ids': ids.astype(np.int64)} | ({'mask': mask.astype(np.int64)} if self._masked else {})
        vectors: NDArray[np.float32] = self._text.run(None, inputs)[0]
        return vectors

    def close(self) -> None:
        """See `base.Session`."""
        del self._image, self._text

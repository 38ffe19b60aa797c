"""A server that speaks KServe v2 over gRPC: Triton, or the IPU worker. The model runs there, this is its client.

The server has two models, `<name>_image` (input `pixels`, UINT8 [N, H, W, 3]) and `<name>_text` (`ids` and, if the
model needs it, `mask`, INT64 [N, L]); both answer `vectors`, FP32 [N, D].
`clipflow export triton` writes them for Triton.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clipflow.errors import ClipflowError, Internal, ModelMismatch, NotReady, Timeout, Unavailable
from clipflow.sessions.base import Options, Tower, grey
from clipflow.weights import ModelSpec

_RETRYABLE = ('StatusCode.UNAVAILABLE', 'StatusCode.RESOURCE_EXHAUSTED')
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0
_READY_SECONDS = 600.0
"""A server may compile a model for minutes before it is ready."""
_CHANNEL = [
    ('grpc.max_send_message_length', -1),
    ('grpc.max_receive_message_length', -1),
    ('grpc.enable_http_proxy', 0),
    ('grpc.use_local_subchannel_pool', 1),  # a new channel is a new connection
]


def load(spec: ModelSpec, options: Options) -> 'KServeSession':
    """Wait until the server is ready, and check that it serves the same model.

    Raises:
        NotReady: it was not ready within ten minutes.
        ModelMismatch: it says that it serves another model.
    """
    return KServeSession(spec, options)


class KServeSession:
    """See `base.Session`. A call that meets a server that is away or full is repeated until its time is over."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self._options = options
        self._connect()
        self._image, self._text = f'{options.served}_image', f'{options.served}_text'
        self._wait_until_ready()
        configs = [self._config(name) for name in (self._image, self._text)]
        for config in configs:
            told = config.parameters['fingerprint'].string_value
            if told and told != spec.fingerprint:
                raise ModelMismatch(
                    f'the server at {options.url} serves another model as {config.name!r} ({told}) than CLIPFLOW_MODEL '
                    f'({spec.fingerprint}); export it again, or set CLIPFLOW_MODEL'
                )
        self._most = {config.name: int(config.max_batch_size) or 1 for config in configs}
        self._precision = configs[0].parameters['precision'].string_value or 'not told'
        self._masked = len(configs[1].input) > 1
        self._version = self._client.get_server_metadata().version
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'kserve',
            'device': self._options.url,
            'precision': self._precision,
            'runtime_version': self._version,
        }

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        return self._infer(self._image, {'pixels': pixels})

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        inputs = {'ids': ids.astype(np.int64)} | ({'mask': mask.astype(np.int64)} if self._masked else {})
        return self._infer(self._text, inputs)

    def release(self, tower: Tower) -> None:
        """See `base.Session`: nothing of it is held here."""

    def close(self) -> None:
        """See `base.Session`."""
        self._client.close()

    def _connect(self) -> None:
        self._client = triton.InferenceServerClient(self._options.url, channel_args=_CHANNEL)

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + _READY_SECONDS
        while True:
            try:
                if all(self._client.is_model_ready(name) for name in (self._image, self._text)):
                    return
                reason = f'the models {self._image!r} and {self._text!r} are not ready'
            except InferenceServerException as error:
                reason = str(error.message())
            if time.monotonic() > until:
                raise NotReady(f'the server at {self._options.url} is not ready: {reason}; is it running?')
            time.sleep(_PAUSE_SECONDS)

    def _config(self, name: str) -> Any:
        return self._client.get_model_config(name, client_timeout=self._options.timeout).config

    def _infer(self, model: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        count, most = len(next(iter(inputs.values()))), self._most[model]
        parts = [
            self._once(model, {name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, count, most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _once(self, model: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        sent = []
        for name, array in inputs.items():
            sent.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            sent[-1].set_data_from_numpy(np.ascontiguousarray(array))
        until, pause = time.monotonic() + self._options.timeout, _PAUSE_SECONDS
        while True:
            try:
                left = max(0.001, until - time.monotonic())
                reply = self._client.infer(model, sent, client_timeout=left)
                vectors: NDArray[np.float32] = reply.as_numpy('vectors')
                return vectors
            except InferenceServerException as error:
                if error.status() not in _RETRYABLE or time.monotonic() + pause > until:
                    raise self._translated(error) from None
                # A channel that has lost its server may not find it again.
                self._client.close()
                self._connect()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _translated(self, error: InferenceServerException) -> ClipflowError:
        if error.status() == 'StatusCode.DEADLINE_EXCEEDED':
            return Timeout(f'the server at {self._options.url} did not answer within {self._options.timeout:g} s')
        if error.status() in _RETRYABLE:
            reason = str(error.message())[:100]
            return Unavailable(f'the server at {self._options.url} cannot be reached, or is full ({reason}); try again')
        return Internal(f'the server at {self._options.url} refuses a call: {str(error.message())[:200]}')

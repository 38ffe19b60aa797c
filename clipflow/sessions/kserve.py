"""A server that speaks KServe v2 over gRPC: Triton, or the IPU worker. The model runs there, this is its client.

The server has two models, `<name>_image` (input `pixels`, UINT8 [N, H, W, 3]) and `<name>_text` (`ids` and, if the
model needs it, `mask`, INT64 [N, L]); both answer `vectors`, FP32 [N, D]. Beside KServe v2 it has Triton's ModelConfig.
`clipflow export triton` writes them for Triton.
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clipflow.errors import ClipflowError, Internal, InvalidParameter, ModelMismatch, NotReady, Timeout, Unavailable
from clipflow.sessions.base import Options, OutOfMemory, Tower, grey
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.kserve')

_RETRYABLE = ('StatusCode.UNAVAILABLE', 'StatusCode.RESOURCE_EXHAUSTED')
_NO_MEMORY = ('allocate memory', 'out of memory')
_QUEUED_TOO_LONG = 'request timeout expired'
"""What Triton and its backends say; there are no codes for it."""
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0
_READY_SECONDS = 600.0
"""A server may compile a model for minutes before it is ready."""
_SECONDS_BETWEEN_LINES = 10.0
_TRUSTED_SECONDS = 1.0
"""A server that was not heard of for longer may have been started again, with another model of the same version."""
_CHANNEL = [
    ('grpc.max_send_message_length', -1),
    ('grpc.max_receive_message_length', -1),
    ('grpc.enable_http_proxy', 0),
    ('grpc.use_local_subchannel_pool', 1),  # a new channel is a new connection
]


def load(spec: ModelSpec, options: Options) -> 'KServeSession':
    """Wait until the server is ready, and check that it serves the same model.

    Raises:
        InvalidParameter: the address is not one of gRPC.
        NotReady: it was not ready within ten minutes.
        ModelMismatch: it says that it serves another model; so does any later call.
        Internal, Timeout, Unavailable: it does not answer as it should.
    """
    return KServeSession(spec, options)


def check_url(url: str) -> None:
    """Raises InvalidParameter for an address that gRPC does not take."""
    if '://' in url:
        raise InvalidParameter(f'CLIPFLOW_KSERVE_URL is {url!r}; give host and port of gRPC without a scheme')


class KServeSession:
    """See `base.Session`. A call that meets a server that is away or full is repeated until its time is over."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        check_url(options.url)
        self._options, self._fingerprint = options, spec.fingerprint
        self._expected = {'mean': _numbers(spec.picture.mean), 'std': _numbers(spec.picture.std)}
        if spec.activation:  # else the server has it from the same files
            self._expected['activation'] = spec.activation
        self._connect()
        self._image, self._text = f'{options.served}_image', f'{options.served}_text'
        self._wait_until_ready()
        self._most: dict[str, int] = {}
        self._precisions: dict[str, str] = {}
        try:
            self._accept(self._image, options.timeout)
            self._masked = len(self._accept(self._text, options.timeout).input) > 1
            self._version = self._client.get_server_metadata(client_timeout=options.timeout).version
        except InferenceServerException as error:
            raise self._translated(error) from None
        self.dimension = 0  # not known yet
        self.dimension = int(self.encode_images(grey(spec)).shape[1])

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {
            'runtime': 'kserve',
            'device': self._options.url,
            'precision': self._precisions[self._image],
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
        self._seen: dict[str, tuple[str, float]] = {}

    def _wait_until_ready(self) -> None:
        begun = told = time.monotonic()
        while True:
            try:
                wait = self._options.timeout
                if all(self._client.is_model_ready(name, client_timeout=wait) for name in (self._image, self._text)):
                    return
                reason = f'the models {self._image!r} and {self._text!r} are not ready'
            except InferenceServerException as error:
                reason = str(error.message())
            now = time.monotonic()
            if now > begun + _READY_SECONDS:
                raise NotReady(f'the server at {self._options.url} is not ready: {reason}; is it running?')
            if now >= told + _SECONDS_BETWEEN_LINES:
                told = now
                _log.info('waiting for the server at %s, %.0f s so far: %s', self._options.url, now - begun, reason)
            time.sleep(_PAUSE_SECONDS)

    def _accept(self, name: str, seconds: float) -> Any:
        """The configuration of a model; raises ModelMismatch unless its vectors are those of the start."""
        config = self._client.get_model_config(name, client_timeout=seconds).config
        told = config.parameters['fingerprint'].string_value
        if told and told != self._fingerprint:
            raise ModelMismatch(
                f'the server at {self._options.url} serves another model as {name!r} ({told}) than CLIPFLOW_MODEL '
                f'({self._fingerprint}); export it again, or set CLIPFLOW_MODEL'
            )
        for what, wanted in self._expected.items():
            told = config.parameters[what].string_value
            if told and not _agree(told, wanted):
                raise ModelMismatch(
                    f'the server at {self._options.url} runs {name!r} with another {what} ({told}) than the model of '
                    f'CLIPFLOW_MODEL has; start it with --{what} {wanted}'
                )
        precision = config.parameters['precision'].string_value or 'not told'
        before = self._precisions.setdefault(name, precision)
        if precision != before:
            raise ModelMismatch(
                f'the server at {self._options.url} now serves {name!r} in {precision}, not in {before}; '
                'start the encoder again'
            )
        self._most[name] = int(config.max_batch_size) or 1
        return config

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
                self._check_source(model, reply.get_response().model_version, max(0.001, until - time.monotonic()))
                return self._unit(reply, len(next(iter(inputs.values()))))
            except InferenceServerException as error:
                if any(sign in str(error.message()).lower() for sign in _NO_MEMORY):
                    raise OutOfMemory(str(error.message())[:200]) from None
                if error.status() not in _RETRYABLE or time.monotonic() + pause > until:
                    raise self._translated(error) from None
                # A channel that has lost its server may not find it again.
                self._client.close()
                self._connect()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _check_source(self, model: str, version: str, seconds: float) -> None:
        """After a reply: whether it may come from another model than the last one."""
        known, when = self._seen.get(model, ('', -math.inf))
        if version != known or time.monotonic() - when > _TRUSTED_SECONDS:
            self._accept(model, seconds)
        self._seen[model] = version, time.monotonic()

    def _unit(self, reply: triton.InferResult, count: int) -> NDArray[np.float32]:
        """Unit vectors, [N, D]; a row that cannot be one is not finite, and fails alone."""
        try:
            vectors = reply.as_numpy('vectors')
        except ValueError:
            vectors = None
        found = 'none' if vectors is None else f'{vectors.dtype} {list(vectors.shape)}'
        width = self.dimension or (vectors.shape[-1] if vectors is not None and vectors.ndim else 0)
        if found != f'float32 {[count, width]}':
            raise Internal(
                f'the server at {self._options.url} has to answer vectors, FP32 [{count}, {self.dimension or "D"}], '
                f'but gave {found}'
            )
        wide = vectors.astype(np.float64)
        with np.errstate(divide='ignore', invalid='ignore'):
            unit: NDArray[np.float32] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def _translated(self, error: InferenceServerException) -> ClipflowError:
        if error.status() == 'StatusCode.DEADLINE_EXCEEDED':
            return Timeout(f'the server at {self._options.url} did not answer within {self._options.timeout:g} s')
        if _QUEUED_TOO_LONG in str(error.message()).lower():
            return Timeout(f'a call waited too long in the queue of the server at {self._options.url}')
        if error.status() in _RETRYABLE:
            reason = str(error.message())[:100]
            return Unavailable(f'the server at {self._options.url} cannot be reached, or is full ({reason}); try again')
        reason = str(error.message())[:200]
        if error.status() == 'StatusCode.UNIMPLEMENTED':
            return Internal(f"the server at {self._options.url} lacks a call ({reason}); it needs Triton's ModelConfig")
        return Internal(f'the server at {self._options.url} refuses a call: {reason}')


def _numbers(values: Sequence[float]) -> str:
    """As the IPU worker tells and takes them."""
    return ' '.join(str(float(value)) for value in values)


def _agree(told: str, wanted: str) -> bool:
    """Whether both are the same word, or numbers that differ by no more than those of two files of one model."""
    if told == wanted:
        return True
    try:
        found, expected = (np.array(text.split(), dtype=np.float64) for text in (told, wanted))
        return found.shape == expected.shape and bool(np.allclose(found, expected, atol=1e-5))
    except ValueError:
        return False

"""The session `kserve` against a server that does what it should not."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from docarray import Document
from numpy.typing import NDArray

from clipflow.batching import Embedder
from clipflow.errors import ClipflowError, Internal, InvalidParameter, ModelMismatch, NotReady, Timeout
from clipflow.sessions.base import Options, OutOfMemory, grey
from clipflow.weights import ModelSpec, load_spec

pb: Any = pytest.importorskip('tritonclient.grpc.service_pb2', reason="the extra 'triton' is not installed")
configs: Any = pytest.importorskip('tritonclient.grpc.model_config_pb2', reason="the extra 'triton' is not installed")

METHODS = ('ServerMetadata', 'ModelReady', 'ModelConfig', 'ModelInfer')
FORMATS = {'FP16': 'f2', 'FP32': 'f4', 'FP64': 'f8'}
D = 24


class Server:
    """Answers any number of items; a test changes what it says."""

    def __init__(self, fingerprint: str) -> None:
        self.parameters = {'fingerprint': fingerprint, 'precision': 'float32'}
        self.version = '1'
        self.ready = True
        self.output, self.datatype = 'vectors', 'FP32'
        self.change: Callable[[NDArray[Any]], NDArray[Any]] = lambda vectors: vectors
        self.hangs: set[str] = set()
        self.refuses: set[str] = set()
        self.most: int | None = None
        self.says = ''
        self.asked: list[str] = []
        self.over = threading.Event()
        self.port = 0
        self.start()

    def start(self) -> None:
        """On the same port again."""
        handlers = {name: self._handler(name) for name in METHODS}
        self._server = grpc.server(ThreadPoolExecutor(8), options=[('grpc.so_reuseport', 0)])
        service = 'inference.GRPCInferenceService'
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port(f'127.0.0.1:{self.port}')
        self._server.start()

    def stop(self) -> None:
        """Until it is started again."""
        self._server.stop(0).wait()

    def close(self) -> None:
        """For good."""
        self.over.set()
        self.stop()

    def _handler(self, name: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(name, request, context),
            request_deserializer=getattr(pb, f'{name}Request').FromString,
            response_serializer=getattr(pb, f'{name}Response').SerializeToString,
        )

    def _answer(self, name: str, request: Any, context: Any) -> Any:
        self.asked.append(name)
        if name in self.hangs:
            self.over.wait(600)
        if name in self.refuses:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, 'no such method')
        if name == 'ServerMetadata':
            return pb.ServerMetadataResponse(name='stub', version='1')
        if name == 'ModelReady':
            return pb.ModelReadyResponse(ready=self.ready)
        if name == 'ModelConfig':
            config = configs.ModelConfig(name=request.name, max_batch_size=8, input=[configs.ModelInput(name='x')])
            for key, value in self.parameters.items():
                config.parameters[key].string_value = value
            return pb.ModelConfigResponse(config=config)
        if self.most is not None and request.inputs[0].shape[0] > self.most:
            context.abort(grpc.StatusCode.INTERNAL, self.says)
        vectors = np.random.default_rng(0).normal(size=(request.inputs[0].shape[0], D))
        vectors = self.change(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version=self.version)
        reply.outputs.add(name=self.output, datatype=self.datatype, shape=vectors.shape)
        reply.raw_output_contents.append(vectors.astype(FORMATS[self.datatype]).tobytes())
        return reply


@pytest.fixture(scope='module')
def spec(checkpoint: Callable[[str], Path]) -> ModelSpec:
    return load_spec(str(checkpoint('clip')))


@pytest.fixture
def server(spec: ModelSpec) -> Iterator[Server]:
    running = Server(spec.fingerprint)
    yield running
    running.close()


@pytest.fixture
def load(server: Server, spec: ModelSpec) -> Callable[..., Any]:
    """A session of the server."""
    from clipflow.sessions import kserve

    options = Options('cpu', 'float32', 1, False, Path('nowhere'), f'127.0.0.1:{server.port}', 'clip', 60.0)
    return lambda **changed: kserve.load(spec, replace(options, **changed))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits ten minutes here."""
    monkeypatch.setattr('clipflow.sessions.kserve._READY_SECONDS', 0.5)


def test_a_server_that_is_right_is_believed(load: Any, spec: ModelSpec) -> None:
    session = load()
    assert session.dimension == D
    assert session.encode_images(np.repeat(grey(spec), 20, axis=0)).shape == (20, D)


def wrong_name(server: Server) -> None:
    server.output = 'embeddings'


def half(server: Server) -> None:
    server.datatype = 'FP16'


def double(server: Server) -> None:
    server.datatype = 'FP64'


def narrow(server: Server) -> None:
    server.change = lambda vectors: vectors[:, :1]


def deep(server: Server) -> None:
    server.change = lambda vectors: vectors[:, None]


def too_many(server: Server) -> None:
    server.change = lambda vectors: np.concatenate([vectors, vectors])


@pytest.mark.parametrize('fault', [wrong_name, half, double, narrow, deep, too_many])
def test_an_answer_that_is_no_answer_is_refused(
    load: Any, server: Server, spec: ModelSpec, fault: Callable[[Server], None]
) -> None:
    session = load()
    fault(server)
    ids = np.ones((2, 5), np.int32)
    for call in (lambda: session.encode_images(grey(spec)), lambda: session.encode_texts(ids, ids)):
        with pytest.raises(Internal, match='vectors'):
            call()


@pytest.mark.parametrize('fault', [wrong_name, half, deep, too_many])
def test_it_is_refused_at_the_start_too(load: Any, server: Server, fault: Callable[[Server], None]) -> None:
    fault(server)
    with pytest.raises(Internal, match='vectors'):
        load()


def test_vectors_of_any_length_become_unit_vectors_and_a_broken_row_stays_alone(
    load: Any, server: Server, spec: ModelSpec
) -> None:
    session = load()
    pixels = np.repeat(grey(spec), 3, axis=0)
    exact = session.encode_images(pixels)
    server.change = lambda vectors: vectors * np.array([[4.2], [np.nan], [1e25]])
    found = session.encode_images(pixels)
    assert found.dtype == np.float32
    assert np.abs(found - exact)[[0, 2]].max() < 1e-6
    assert not np.isfinite(found[1]).any()


@pytest.mark.parametrize('name', ['ModelReady', 'ServerMetadata', 'ModelConfig'])
def test_a_server_that_takes_the_call_and_does_not_answer_is_not_waited_for(
    load: Any, server: Server, name: str, hurried: None
) -> None:
    server.hangs = {name}
    ended: list[ClipflowError] = []

    def start() -> None:
        with pytest.raises(ClipflowError) as caught:
            load(timeout=0.5)
        ended.append(caught.value)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(60)
    assert ended, 'it still waits'
    assert f'127.0.0.1:{server.port}' in str(ended[0])


def test_a_server_without_a_method_is_an_error_of_ours(load: Any, server: Server) -> None:
    server.refuses = {'ModelConfig'}
    with pytest.raises(Internal, match='ModelConfig'):
        load()


def test_who_waits_says_what_for(
    load: Any, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr('clipflow.sessions.kserve._READY_SECONDS', 2.0)
    monkeypatch.setattr('clipflow.sessions.kserve._SECONDS_BETWEEN_LINES', 0.0)
    monkeypatch.setattr(logging.getLogger('clipflow'), 'propagate', True)
    caplog.set_level(logging.INFO, 'clipflow')
    server.ready = False
    with pytest.raises(NotReady, match="'clip_image' and 'clip_text' are not ready"):
        load()
    said = [one for one in caplog.messages if 'clip_image' in one]
    assert said
    assert f'127.0.0.1:{server.port}' in said[0]


def test_a_server_that_says_how_it_reads_pixels_says_the_same(load: Any, server: Server, spec: ModelSpec) -> None:
    # Numbers that were read from another file may differ in their last place.
    server.parameters['mean'] = ' '.join(f'{number + 1e-7}' for number in spec.picture.mean)
    server.parameters['std'] = ' '.join(f'{number}' for number in spec.picture.std)
    server.parameters['activation'] = 'relu'  # nothing is known of it beside the files
    assert load().dimension == D


@pytest.mark.parametrize('url', ['http://127.0.0.1:8001', 'grpc://127.0.0.1:8001'])
def test_an_address_with_a_scheme_is_refused_at_once(load: Any, url: str) -> None:
    with pytest.raises(InvalidParameter, match='CLIPFLOW_KSERVE_URL'):
        load(url=url)


@pytest.mark.parametrize(
    'changed', [{'fingerprint': '0123456789abcdef'}, {'precision': 'int8'}, {'mean': '0.5 0.5 0.5'}, {'std': 'none'}]
)
def test_another_model_under_the_same_names_is_noticed(
    load: Any, server: Server, spec: ModelSpec, changed: dict[str, str]
) -> None:
    session = load()
    before = dict(server.parameters)
    server.parameters |= changed
    server.version = '2'
    for _ in range(2):
        with pytest.raises(ModelMismatch, match=next(iter(changed.values()))):
            session.encode_images(grey(spec))
    server.parameters = before
    assert session.encode_images(grey(spec)).shape == (1, D)


def test_another_model_behind_a_restart_is_noticed(
    load: Any, server: Server, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load()
    # A restart takes longer than that; here it is too quick.
    monkeypatch.setattr('clipflow.sessions.kserve._TRUSTED_SECONDS', 0.0)
    server.stop()
    server.parameters['fingerprint'] = '0123456789abcdef'
    server.start()
    with pytest.raises(ModelMismatch, match='0123456789abcdef'):
        session.encode_images(grey(spec))


def test_a_model_that_stays_is_not_asked_for_again(load: Any, server: Server, spec: ModelSpec) -> None:
    session = load()
    session.encode_images(grey(spec))
    server.asked.clear()
    session.encode_images(grey(spec))
    assert server.asked == ['ModelInfer']


@pytest.mark.parametrize(
    'says',
    [
        'onnx runtime error 6: Failed to allocate memory for requested buffer of size 1048576',
        'CUDA error: out of memory',
    ],
)
def test_a_server_without_memory_gets_half_as_much(load: Any, server: Server, spec: ModelSpec, says: str) -> None:
    session = load()
    server.most, server.says = 2, says
    with pytest.raises(OutOfMemory, match='memory'):
        session.encode_images(np.repeat(grey(spec), 4, axis=0))
    embedder = Embedder(spec, session, 8)
    docs = [Document(text=f'text {number}') for number in range(7)]
    embedder.embed(docs)
    assert all(doc.embedding is not None for doc in docs)
    assert embedder.batch_size == 2


def test_a_call_that_waited_too_long_in_the_queue_of_the_server_is_a_timeout(
    load: Any, server: Server, spec: ModelSpec
) -> None:
    session = load()
    server.most, server.says = 0, 'Request timeout expired'
    with pytest.raises(Timeout, match='in the queue of the server'):
        session.encode_images(grey(spec))

"""Every session against float32 on torch: the same checkpoints of every family, the same pictures and texts.

The tolerances are those of docs/encoders.md.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.sessions.base import Options, OutOfMemory, Session, Tower
from clipflow.sessions.parity import compare, probes
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec, load_spec
from unit import checkpoints

RUNTIMES = {'torch': 'torch', 'onnx': 'onnxruntime', 'openvino': 'openvino'}
LEAST_COSINE = {'float32': 0.999999, 'bfloat16': 0.999, 'float16': 0.9999, 'int8': 0.99}
WAYS = [
    ('torch', 'float32'),
    ('torch', 'bfloat16'),
    ('onnx', 'float32'),
    ('onnx', 'float16'),
    ('onnx', 'int8'),
    ('openvino', 'float32'),
    ('openvino', 'bfloat16'),
]
TEXTS = ['cat', 'a dog and a cat', '一只猫的照片', 'dog ' * 50, '🙂 photo', '', ' ', 'x' * 1000]


@pytest.fixture(scope='module')
def spec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelSpec]:
    built: dict[str, ModelSpec] = {}

    def get(family: str) -> ModelSpec:
        if family not in built:
            folder = tmp_path_factory.mktemp('checkpoints') / family
            built[family] = load_spec(str(checkpoints.build(family, folder)))
        return built[family]

    return get


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('cache')


def opened(runtime: str, precision: str, spec: ModelSpec, cache: Path) -> Session:
    pytest.importorskip(RUNTIMES[runtime], reason=f'the extra {runtime!r} is not installed')
    if runtime != 'torch':
        pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')
    load: Any = import_module(f'clipflow.sessions.{runtime}').load
    session: Session = load(spec, Options('cpu', precision, 2, False, cache))
    return session


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
@pytest.mark.parametrize(('runtime', 'precision'), WAYS)
def test_a_session_gives_the_vectors_of_float32_torch(
    spec_of: Callable[[str], ModelSpec], cache: Path, family: str, runtime: str, precision: str
) -> None:
    spec = spec_of(family)
    reference = opened('torch', 'float32', spec, cache)
    session = opened(runtime, precision, spec, cache)
    assert (session.description['runtime'], session.description['precision']) == (runtime, precision)
    assert session.dimension == reference.dimension
    found = compare(spec, session, reference)
    assert min(found['image'].worst, found['text'].worst) >= LEAST_COSINE[precision], found


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_odd_input_of_any_size_gives_unit_vectors(
    spec_of: Callable[[str], ModelSpec], cache: Path, family: str, runtime: str
) -> None:
    spec = spec_of(family)
    session, reference = opened(runtime, 'float32', spec, cache), opened('torch', 'float32', spec, cache)
    pixels, _, _ = probes(spec)
    for count in (1, 3, len(TEXTS)):
        tokens = Tokenizer(spec)(TEXTS[:count])
        texts = session.encode_texts(tokens.ids, tokens.mask)
        images = session.encode_images(pixels[:count])
        for vectors, expected in (
            (texts, reference.encode_texts(tokens.ids, tokens.mask)),
            (images, reference.encode_images(pixels[:count])),
        ):
            assert (vectors.shape, vectors.dtype) == ((count, session.dimension), np.float32)
            assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
            assert np.abs(vectors - expected).max() < 1e-4


@pytest.mark.parametrize('family', ['clip', 'clip-legacy'])
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_text_s_vector_does_not_depend_on_its_neighbours_where_padding_has_the_largest_id(
    tmp_path: Path, family: str, runtime: str
) -> None:
    spec = load_spec(str(checkpoints.pad_above_the_end(checkpoints.build(family, tmp_path / 'model'))))
    session, tokenizer = opened(runtime, 'float32', spec, tmp_path), Tokenizer(spec)
    together, alone = tokenizer(['cat', 'a dog and a cat']), tokenizer(['cat'])
    assert together.ids.shape[1] > alone.ids.shape[1]
    one = session.encode_texts(alone.ids, alone.mask)
    assert np.abs(session.encode_texts(together.ids, together.mask)[:1] - one).max() < 1e-5


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_result_is_not_overwritten_by_the_next_call(
    spec_of: Callable[[str], ModelSpec], cache: Path, runtime: str
) -> None:
    session = opened(runtime, 'float32', spec_of('clip'), cache)
    pixels, _, _ = probes(spec_of('clip'))
    first: NDArray[np.float32] = session.encode_images(pixels[:2])
    kept = first.copy()
    session.encode_images(pixels[2:4])
    assert (first == kept).all()


def test_an_export_is_made_once_and_half_an_export_is_made_again(
    spec_of: Callable[[str], ModelSpec], tmp_path: Path
) -> None:
    pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')
    from clipflow.sessions.export import exported

    directory = exported(spec_of('clip'), tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert set(files) == {'image.onnx', 'text.onnx', 'export.json'}
    exported(spec_of('clip'), tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == files
    (directory / 'export.json').unlink()  # it is written last: without it the export did not come to its end
    (directory / 'text.onnx').write_bytes(b'half')
    exported(spec_of('clip'), tmp_path)
    assert (directory / 'text.onnx').stat().st_size > 1000


def test_a_tower_that_loses_too_much_in_8_bits_stays_in_float32(
    spec_of: Callable[[str], ModelSpec], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    from clipflow.sessions import onnx

    spec = spec_of('clip')
    exact = opened('torch', 'float32', spec, cache)
    monkeypatch.setattr(onnx, '_LEAST_COSINE', 1.1)
    session = opened('onnx', 'int8', spec, tmp_path)
    assert session.description['float32_towers'] == 'image, text'
    assert compare(spec, session, exact)['text'].worst > 0.999999


def test_openvino_meets_few_shapes_whatever_it_is_asked(
    spec_of: Callable[[str], ModelSpec], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It keeps memory for each of them; tests/crash/test_memory.py shows what becomes of that.
    pytest.importorskip('openvino', reason="the extra 'openvino' is not installed")
    from clipflow.sessions import openvino

    met: set[tuple[int, ...]] = set()
    original = openvino._vectors

    def noted(request: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        met.add(inputs[0].shape)
        return original(request, inputs)

    monkeypatch.setattr(openvino, '_vectors', noted)
    session = opened('openvino', 'float32', spec_of('chinese_clip'), cache)
    pixels, _, _ = probes(spec_of('chinese_clip'))
    for count in range(1, 33):
        assert len(session.encode_images(np.concatenate([pixels, pixels])[:count])) == count
        for length in range(3, checkpoints.CONTEXT + 1):
            ids = np.ones((count, length), np.int32)
            assert len(session.encode_texts(ids, ids)) == count
    assert len([shape for shape in met if len(shape) == 4]) <= 6
    assert len([shape for shape in met if len(shape) == 2]) <= 10 * 10


def test_openvino_without_memory_says_so_and_works_again(
    spec_of: Callable[[str], ModelSpec], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('openvino', reason="the extra 'openvino' is not installed")
    from clipflow.sessions import openvino

    vectors, load = openvino._vectors, openvino.OpenVinoSession._tower
    loaded: list[Tower] = []

    class Full:
        """It leaves the last result as it is, and says nothing."""

        def __init__(self, request: Any) -> None:
            self.set_input_tensor, self.get_output_tensor = request.set_input_tensor, request.get_output_tensor

        def infer(self) -> None:
            pass

    def full(request: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        return vectors(Full(request) if len(inputs[0]) > 2 else request, inputs)

    def noted(self: Any, tower: Tower) -> Any:
        loaded.append(tower)
        return load(self, tower)

    monkeypatch.setattr(openvino.OpenVinoSession, '_tower', noted)
    session = opened('openvino', 'float32', spec_of('clip'), cache)
    pixels, _, _ = probes(spec_of('clip'))
    expected = session.encode_images(pixels[:8])
    loaded.clear()
    monkeypatch.setattr(openvino, '_vectors', full)
    for count in (8, 4):  # as many as in the last result, and another number
        with pytest.raises(OutOfMemory, match=f'no result for {count} items'):
            session.encode_images(pixels[:count])
    assert np.abs(session.encode_images(pixels[:2]) - expected[:2]).max() < 1e-6
    assert loaded == ['image', 'image'], 'what was taken for a call that failed is not held any more'


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (MemoryError(), OutOfMemory),
        (RuntimeError('Exception from core: std::bad_alloc'), OutOfMemory),
        (RuntimeError('shapes do not fit'), RuntimeError),
    ],
)
def test_what_openvino_raises_without_memory_is_told_as_such(error: Exception, told: type[Exception]) -> None:
    pytest.importorskip('openvino', reason="the extra 'openvino' is not installed")
    from clipflow.sessions import openvino

    class Request(MagicMock):
        def infer(self) -> None:
            raise error

    with pytest.raises(told):
        openvino._vectors(Request(), [np.zeros((1, 3), np.int64)])


def test_onnx_on_cuda_computes_in_float32_and_not_in_tf32_and_searches_nothing_anew(
    spec_of: Callable[[str], ModelSpec], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime: Any = pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
    from clipflow.sessions import onnx

    asked: list[dict[str, Any]] = []

    class Session:
        """A session that could be opened on CUDA."""

        def __init__(self, *_: Any, **options: Any) -> None:
            asked.append(options)

        def get_providers(self) -> list[str]:
            return [onnx.CUDA, 'CPUExecutionProvider']

        def get_inputs(self) -> list[str]:
            return ['ids']

        def run(self, *_: Any) -> list[NDArray[np.float32]]:
            return [np.ones((1, 3), np.float32)]

    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: [onnx.CUDA])
    monkeypatch.setattr(onnxruntime, 'preload_dlls', lambda: None)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    onnx.load(spec_of('clip'), Options('cuda', 'float32', 1, False, cache))
    assert [dict(zip(one['providers'], one['provider_options'], strict=True))[onnx.CUDA] for one in asked] == [
        {'use_tf32': '0', 'cudnn_conv_algo_search': 'HEURISTIC'}
    ] * 2

"""What runs on a GPU, against float32 torch on the CPU; `make gpu` runs this, and `make test` where there is a card."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from docarray import Document

from clipflow import ROOT
from clipflow.batching import Embedder
from clipflow.sessions.base import IMAGE, TEXT, Options, OutOfMemory, Session, Tower
from clipflow.sessions.parity import compare, probes
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec, load_spec
from unit import checkpoints

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch sees no CUDA device here')

DEVICE = 'cuda'
LEAST_COSINE = {'float32': 0.999999, 'bfloat16': 0.999, 'float16': 0.9999}
WAYS = [
    ('torch', 'float32'),
    ('torch', 'float16'),
    ('torch', 'bfloat16'),
    ('onnx', 'float32'),
    ('onnx', 'float16'),
    ('tensorrt', 'float32'),
    ('tensorrt', 'float16'),
]
MEGABYTE = 2**20


@pytest.fixture(scope='module')
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp('checkpoints')
    return {name: load_spec(str(checkpoints.build(name, folder / name))) for name in checkpoints.FAMILIES}


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('cache')


def load(runtime: str, spec: ModelSpec, options: Options) -> Session:
    session: Session = import_module(f'clipflow.sessions.{runtime}').load(spec, options)
    return session


def options(cache: Path, precision: str = 'float32', device: str = DEVICE) -> Options:
    return Options(device, precision, 2, False, cache)


@pytest.mark.parametrize(('runtime', 'precision'), WAYS)
def test_every_family_has_the_vectors_of_the_cpu(
    specs: dict[str, ModelSpec], cache: Path, runtime: str, precision: str
) -> None:
    if runtime == 'onnx':
        onnxruntime = pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
        if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
            pytest.skip('this ONNX Runtime knows no CUDA: it is not onnxruntime-gpu')
    elif runtime == 'tensorrt':
        pytest.importorskip('tensorrt', reason="the extra 'tensorrt' is not installed")
    for family, spec in specs.items():
        session = load(runtime, spec, options(cache, precision))
        assert session.description['device'] == DEVICE
        found = compare(spec, session, load('torch', spec, options(cache, device='cpu')))
        assert min(found['image'].worst, found['text'].worst) >= LEAST_COSINE[precision], (family, found)
        session.close()


def test_compiled_towers_have_the_same_vectors(specs: dict[str, ModelSpec], cache: Path) -> None:
    spec = specs['clip']
    compiled = load('torch', spec, replace(options(cache), compiled=True))
    found = compare(spec, compiled, load('torch', spec, options(cache, device='cpu')))
    assert min(found['image'].worst, found['text'].worst) >= LEAST_COSINE['float32'], found


def test_it_is_taken_by_itself_in_float16(specs: dict[str, ModelSpec], cache: Path) -> None:
    opened = open_session(specs['clip'], EncoderSettings(cache=cache), threads=2, shared=False)
    assert (opened.session.description['device'], opened.session.description['precision']) == (DEVICE, 'float16')


@pytest.fixture
def little_memory() -> Iterator[int]:
    """The card as this process sees it: MB that it may take."""
    megabytes = 256
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(megabytes * MEGABYTE / torch.cuda.mem_get_info()[1])
    yield megabytes
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_without_memory_the_batch_is_halved_and_all_is_encoded(
    specs: dict[str, ModelSpec], cache: Path, little_memory: int
) -> None:
    spec = specs['clip']
    pixels, _, _ = probes(spec)
    session = load('torch', spec, options(cache))
    # In float32 on the card these alone are more than it may take.
    count = little_memory * MEGABYTE // pixels[0].nbytes
    with pytest.raises(OutOfMemory):
        session.encode_images(np.resize(pixels, (count, *pixels.shape[1:])))
    embedder = Embedder(spec, session, count)
    docs = [Document(tensor=pixels[n % len(pixels)], tags={}) for n in range(count)]
    embedder.embed(docs)
    expected = load('torch', spec, options(cache, device='cpu')).encode_images(pixels)
    assert embedder.batch_size < count
    found = np.stack([doc.embedding for doc in docs])
    assert np.abs(found - np.resize(expected, found.shape)).max() < 1e-3


@pytest.mark.parametrize('tower', [IMAGE, TEXT])
def test_a_tower_that_is_released_frees_its_memory_and_comes_back(
    specs: dict[str, ModelSpec], cache: Path, tower: Tower
) -> None:
    spec = specs['clip']
    session = load('torch', spec, options(cache))
    pixels, ids, mask = probes(spec)

    def vectors() -> Any:
        return session.encode_images(pixels) if tower == IMAGE else session.encode_texts(ids, mask)

    before = vectors()
    held = torch.cuda.memory_allocated()
    session.release(tower)
    assert torch.cuda.memory_allocated() < held
    assert np.abs(vectors() - before).max() < 1e-6


def test_memory_stays_as_it_is_whatever_sizes_come(specs: dict[str, ModelSpec], cache: Path) -> None:
    spec = specs['clip']
    session = load('torch', spec, options(cache))
    pixels, ids, mask = probes(spec)

    def all_sizes() -> int:
        for count in range(1, len(pixels) + 1):
            session.encode_images(pixels[:count])
            for length in range(2, ids.shape[1] + 1):
                session.encode_texts(ids[: count % 8 + 1, :length], mask[: count % 8 + 1, :length])
        return torch.cuda.memory_reserved()

    first = all_sizes()
    assert [all_sizes() for _ in range(5)] == [first] * 5


def test_a_flow_on_the_gpu_indexes_and_finds(tmp_path: Path) -> None:
    from service import Service, png

    colours = ('red', 'green', 'blue', 'yellow', 'white')
    with Service(tmp_path, flow=ROOT / 'flows' / 'gpu.yml') as service:
        service.post('/index', [Document(id=colour, blob=png(colour)) for colour in colours])
        assert service.stored_ids() == set(colours)
        assert service.matches(Document(blob=png('blue')), limit=1)[0].id == 'blue'
        encoder = next(doc.tags for doc in service.post('/status') if doc.tags['stage'] == 'encoder')
        assert (encoder['device'], encoder['precision']) == (DEVICE, 'float16')

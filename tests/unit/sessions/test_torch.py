"""The torch session against transformers' own processor and model, for every family."""

import gc
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipflow.errors import InvalidParameter
from clipflow.pictures import prepare
from clipflow.sessions import torch as sessions_torch
from clipflow.sessions.base import TOWERS, Options, OutOfMemory, Tower, grey
from clipflow.sessions.torch import TorchSession
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec, load_spec
from forms import long

from .. import checkpoints

OPTIONS = Options('cpu', 'float32', 2, False, Path('nowhere'))
TEXTS = ['cat', 'a dog and a cat', '一只猫的照片', 'dog ' * 50, '🙂 photo']


def load(spec: ModelSpec) -> TorchSession:
    return sessions_torch.load(spec, OPTIONS)


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((width, height), 3)


@pytest.fixture(params=checkpoints.FAMILIES, scope='module')
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope='module')
def spec(family: str, checkpoint: Callable[[str], Path]) -> ModelSpec:
    return load_spec(str(checkpoint(family)))


@pytest.fixture(scope='module')
def session(spec: ModelSpec) -> TorchSession:
    return load(spec)


def unit(output: Any) -> NDArray[np.float64]:
    vectors = output.pooler_output.double().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def own_vectors(spec: ModelSpec, images: list[Image.Image], texts: list[str]) -> tuple[Any, Any]:
    """What transformers' own processor, tokenizer and model make of it, as their documentation uses them."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(spec.directory).eval()
    pixels = AutoImageProcessor.from_pretrained(spec.directory)(images, return_tensors='pt')
    # SigLIP was trained with full padding and without a mask.
    fixed = spec.family.startswith('siglip')
    tokens = AutoTokenizer.from_pretrained(spec.directory)(
        texts,
        padding='max_length' if fixed else True,
        truncation=True,
        max_length=checkpoints.CONTEXT,
        return_tensors='pt',
    )
    if fixed:
        tokens = {'input_ids': tokens['input_ids']}
    with torch.inference_mode():
        return unit(model.get_image_features(**pixels)), unit(model.get_text_features(**tokens))


def test_vectors_equal_those_of_transformers(spec: ModelSpec, session: TorchSession) -> None:
    # NaFlex keeps proportions; the session takes its square, so that a square picture is what both see alike.
    sizes = [(60, 60), (32, 32), (90, 90)] if spec.family == 'siglip2' else [(60, 45), (32, 32), (33, 120)]
    images = [picture(n, *size) for n, size in enumerate(sizes)]
    expected_images, expected_texts = own_vectors(spec, images, TEXTS)
    found = session.encode_images(np.stack([prepare(image, spec.picture) for image in images]))
    tokens = Tokenizer(spec)(TEXTS)
    texts = session.encode_texts(tokens.ids, tokens.mask)
    assert found.dtype == texts.dtype == np.float32
    assert found.shape == (3, session.dimension)
    assert np.abs(found - expected_images).max() < 1e-5
    assert np.abs(texts - expected_texts).max() < 1e-5
    # The tiny model tells them apart, or else the comparison says nothing.
    assert (found @ found.T)[np.triu_indices(3, 1)].max() < 0.99
    assert (texts @ texts.T)[np.triu_indices(len(TEXTS), 1)].max() < 0.9999


def test_padding_and_neighbours_change_nothing(spec: ModelSpec, session: TorchSession) -> None:
    tokenizer = Tokenizer(spec)
    together = tokenizer(TEXTS)
    alone = [session.encode_texts(one.ids, one.mask)[0] for one in (tokenizer([text]) for text in TEXTS)]
    assert np.abs(session.encode_texts(together.ids, together.mask) - alone).max() < 1e-5


def test_pictures_do_not_see_their_neighbours(spec: ModelSpec, session: TorchSession) -> None:
    pixels = np.stack([prepare(picture(n, 50, 50), spec.picture) for n in range(4)])
    alone = np.concatenate([session.encode_images(one[None]) for one in pixels])
    assert np.abs(session.encode_images(pixels) - alone).max() < 1e-5


def test_vectors_have_unit_length_also_for_odd_input(spec: ModelSpec, session: TorchSession) -> None:
    tokens = Tokenizer(spec)(['', ' ', '🙂', '的', 'x' * 1000])
    shape = (spec.picture.height, spec.picture.width, 3)
    pixels = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)])
    for vectors in (session.encode_texts(tokens.ids, tokens.mask), session.encode_images(pixels)):
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


def test_the_arrays_given_are_left_as_they_are(spec: ModelSpec, session: TorchSession) -> None:
    pixels = np.stack([prepare(picture(1, 50, 50), spec.picture)])
    tokens = Tokenizer(spec)(['cat'])
    before = pixels.copy(), tokens.ids.copy(), tokens.mask.copy()
    session.encode_images(pixels)
    session.encode_texts(tokens.ids, tokens.mask)
    for array, old in zip((pixels, tokens.ids, tokens.mask), before, strict=True):
        assert (array == old).all()


def test_the_session_says_what_it_is(session: TorchSession) -> None:
    assert session.description['runtime'] == 'torch'
    assert session.description['precision'] == 'float32'
    assert all(isinstance(value, str) for value in session.description.values())


def test_weights_in_half_precision_are_served_in_float32(tmp_path: Path) -> None:
    session = load(load_spec(str(checkpoints.build('clip', tmp_path / 'half', torch.float16))))
    assert session.encode_images(np.zeros((1, 32, 32, 3), np.uint8)).dtype == np.float32


def test_an_activation_of_the_catalogue_wins_over_the_checkpoint_s(checkpoint: Callable[[str], Path]) -> None:
    spec = load_spec(str(checkpoint('clip')))
    pixels = prepare(picture(1, 50, 50), spec.picture)[None]
    plain, same, other = (
        load(replace(spec, activation=activation)).encode_images(pixels) for activation in ('', 'quick_gelu', 'gelu')
    )
    # CLIPConfig's own default is quick_gelu.
    assert np.abs(plain - same).max() < 1e-6
    assert np.abs(plain - other).max() > 1e-3


NO_COMPILER = pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler')


# What is slow is the C++ compiler; which sizes share one graph is decided before it is asked.
@pytest.mark.parametrize('backend', ['eager', pytest.param('inductor', marks=[long, NO_COMPILER])])
def test_compiled_towers_give_the_same_vectors_for_sizes_that_were_not_compiled_for(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    spec = load_spec(str(checkpoint('clip')))
    plain, compiled = load(spec), sessions_torch.load(spec, replace(OPTIONS, compiled=True))
    pixels = np.stack([prepare(picture(n, 50, 50), spec.picture) for n in range(7)])
    before = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert before > 0
    for count in (1, 2, 5, 7):
        tokens = Tokenizer(spec)(['a dog and a cat', 'cat', *['dog ' * n for n in range(5)]][:count])
        for found, expected in (
            (compiled.encode_images(pixels[:count]), plain.encode_images(pixels[:count])),
            (compiled.encode_texts(tokens.ids, tokens.mask), plain.encode_texts(tokens.ids, tokens.mask)),
        ):
            assert np.abs(found - expected).max() < 1e-5
    for count, length in ((7, 9), (8, 16), (5, 13), (32, 3), (1, 4)):  # some have many tokens, and more threads
        ids, mask = np.full((count, length), 5, np.int32), np.ones((count, length), np.int32)
        assert np.abs(compiled.encode_texts(ids, mask) - plain.encode_texts(ids, mask)).max() < 1e-5
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == before, 'a query waited for the compiler'


def test_a_compiled_tower_that_comes_back_is_compiled_before_a_query_asks_for_another_size(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    spec = load_spec(str(checkpoint('clip')))
    session = sessions_torch.load(spec, replace(OPTIONS, compiled=True))
    ids = np.ones((7, 5), np.int32)
    for tower in TOWERS:
        session.release(tower)
    session.encode_texts(ids[:1], ids[:1])
    session.encode_images(np.repeat(grey(spec), 1, axis=0))
    before = torch._dynamo.utils.counters['stats']['unique_graphs']
    for count in (2, 5, 7):
        session.encode_texts(ids[:count], ids[:count])
        session.encode_images(np.repeat(grey(spec), count, axis=0))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == before, 'a query waited for the compiler'


@pytest.mark.parametrize('tower', ['image', 'text'])
def test_a_tower_that_was_released_comes_back(spec: ModelSpec, tower: Tower) -> None:
    session = load(spec)
    pixels = prepare(picture(1, 50, 50), spec.picture)[None]
    tokens = Tokenizer(spec)(['cat'])
    before = session.encode_images(pixels), session.encode_texts(tokens.ids, tokens.mask)
    weights = weakref.ref(max(session._towers[tower].parameters(), key=torch.numel))
    session.release(tower)
    gc.collect()
    assert weights() is None
    assert np.array_equal(session.encode_images(pixels), before[0])
    assert np.array_equal(session.encode_texts(tokens.ids, tokens.mask), before[1])


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (torch.OutOfMemoryError('CUDA out of memory'), OutOfMemory),
        (RuntimeError('MPS backend out of memory (MPS allocated: 5.50 GB, max allowed: 6.80 GB)'), OutOfMemory),
        (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'), OutOfMemory),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 154140672 bytes"),
            OutOfMemory,
        ),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), RuntimeError),
    ],
)
def test_a_device_without_memory_is_told_as_such(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    session = load(load_spec(str(checkpoint('clip'))))

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(session._towers['image'], 'forward', full)
    with pytest.raises(told, match=re.escape(str(error)[:20])):
        session.encode_images(np.zeros((1, 32, 32, 3), np.uint8))


def test_float32_is_not_tf32(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    torch.backends.cuda.matmul.allow_tf32 = True  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which NVIDIA's images have
    load(load_spec(str(checkpoint('clip'))))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_weights_that_do_not_fit_the_config_are_refused_by_name(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint('clip'), tmp_path / 'mixed')
    shutil.copy(checkpoint('altclip') / 'config.json', tmp_path / 'mixed' / 'config.json')
    with pytest.raises(InvalidParameter, match='mixed'):
        load(load_spec(str(tmp_path / 'mixed')))

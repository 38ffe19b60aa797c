"""Towers are whole or refused; one that was freed comes back, or says that it cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from clipflow.errors import InvalidParameter, Unavailable
from clipflow.sessions.base import Options, Tower, Towers
from clipflow.sessions.registry import load
from clipflow.sessions.towers import load_towers
from clipflow.weights import load_spec


def test_a_tower_that_cannot_be_loaded_again_is_unavailable_and_comes_back_when_it_can() -> None:
    error: Exception | None = InvalidParameter('no')

    def make(tower: Tower) -> str:
        if error:
            raise error
        return tower

    towers = Towers(make)
    with pytest.raises(InvalidParameter, match='no'):
        towers['text']
    error = None
    assert towers['text'] == 'text'
    towers.release('text')
    error = RuntimeError('the file is gone\nand more')
    for _ in range(2):
        with pytest.raises(Unavailable, match=r'text.*the file is gone\)'):
            towers['text']
    error = None
    assert towers['text'] == 'text'


@pytest.mark.parametrize(
    ('runtime', 'package'), [('torch', 'torch'), ('onnx', 'onnxruntime'), ('openvino', 'openvino')]
)
def test_a_session_whose_files_are_gone_is_unavailable(
    checkpoint: Callable[[str], Path], tmp_path: Path, runtime: str, package: str
) -> None:
    pytest.importorskip(package, reason=f'the extra {runtime!r} is not installed')
    model, cache = tmp_path / 'model', tmp_path / 'cache'
    shutil.copytree(checkpoint('clip'), model)
    session = load(runtime, load_spec(str(model)), Options('cpu', 'float32', 1, False, cache))
    session.release('text')
    for folder in (model, cache):
        shutil.rmtree(folder, ignore_errors=True)
    ids = np.ones((1, 5), np.int32)
    with pytest.raises(Unavailable, match='text'):
        session.encode_texts(ids, ids)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda name: 'projection' not in name, r'lack text_projection\.weight and 1 more of the model; save'),
        (lambda name: not name.startswith('vision_model'), r'lack vision_model\.\S+ and \d+ more'),
        (lambda name: name != 'visual_projection.weight', r'lack visual_projection\.weight; save'),
        (
            lambda name: f'module.{name}',
            r'lack text_model\.\S+ and \d+ more of the model, but hold module\.logit_scale',
        ),
        (lambda name: f'base_model.model.{name}', r'but hold base_model\.model\.logit_scale'),
    ],
)
def test_weights_that_are_not_all_there_are_refused_and_not_filled_with_random_ones(
    checkpoint: Callable[[str], Path], tmp_path: Path, change: Callable[[str], bool | str], sentence: str
) -> None:
    model = Path(shutil.copytree(checkpoint('clip'), tmp_path / 'model'))
    weights = load_file(model / 'model.safetensors')
    kept = {name if (new := change(name)) is True else str(new): w for name, w in weights.items() if change(name)}
    save_file(kept, model / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(InvalidParameter, match=sentence):
        load_towers(load_spec(str(model)))


def test_weights_that_no_vector_depends_on_may_be_missing(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint('siglip'), tmp_path / 'model'))
    weights = {k: w for k, w in load_file(model / 'model.safetensors').items() if not k.startswith('logit')}
    save_file(weights, model / 'model.safetensors', metadata={'format': 'pt'})
    load_towers(load_spec(str(model)))

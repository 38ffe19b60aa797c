"""A tower that was freed comes back, or says that it cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipflow.errors import InvalidParameter, Unavailable
from clipflow.sessions.base import Options, Tower, Towers
from clipflow.sessions.registry import load
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

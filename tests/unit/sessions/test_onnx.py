"""The session `onnx` when a call fails: nothing goes on elsewhere by itself, and no memory stays taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.sessions.base import Options, OutOfMemory, Tower, grey
from clipflow.weights import ModelSpec, load_spec

onnxruntime: Any = pytest.importorskip('onnxruntime', reason="the extra 'onnx' is not installed")
pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')
EPFail: Any = onnxruntime.capi.onnxruntime_pybind11_state.EPFail


@pytest.fixture(scope='module')
def spec(checkpoint: Callable[[str], Path]) -> ModelSpec:
    return load_spec(str(checkpoint('clip')))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Tower]:
    """The towers in the order in which they were loaded."""
    from clipflow.sessions import onnx

    found: list[Tower] = []
    load = onnx.OnnxSession._tower

    def noted(self: Any, tower: Tower) -> Any:
        found.append(tower)
        return load(self, tower)

    monkeypatch.setattr(onnx.OnnxSession, '_tower', noted)
    return found


@pytest.fixture
def session(spec: ModelSpec, loaded: list[Tower], tmp_path: Path) -> Any:
    from clipflow.sessions.onnx import load

    return load(spec, Options('cpu', 'float32', 1, False, tmp_path))


class Failing:
    """ONNX Runtime's own session within the one for Python, which fails in every call."""

    def __init__(self, inner: Any, error: Exception) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, *_: Any) -> Any:
        raise self._error


def fail(session: Any, error: Exception) -> None:
    """Let the image tower fail."""
    tower = session._towers['image']
    tower._sess = Failing(tower._sess, error)


def test_a_device_that_fails_in_a_call_is_not_left_for_the_cpu(session: Any, spec: ModelSpec) -> None:
    fail(session, EPFail('CUDA failure 700: an illegal memory access was encountered'))
    with pytest.raises(EPFail, match='illegal memory access'):
        session.encode_images(grey(spec))


@pytest.mark.parametrize(
    'said',
    [
        'Failed to allocate memory for requested buffer of size 1048576',
        'CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);',
        'CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);',
        'std::bad_alloc',
    ],
)
def test_without_memory_both_towers_give_theirs_back_and_come_again(
    session: Any, spec: ModelSpec, loaded: list[Tower], said: str
) -> None:
    expected = session.encode_images(grey(spec))
    fail(session, RuntimeError(said))
    loaded.clear()
    with pytest.raises(OutOfMemory, match=said[:20]):
        session.encode_images(grey(spec))
    ids = np.ones((1, 3), np.int32)
    session.encode_texts(ids, ids)
    assert (session.encode_images(grey(spec)) == expected).all()
    assert loaded == ['text', 'image']


def test_what_is_no_lack_of_memory_is_told_as_it_is(session: Any, spec: ModelSpec, loaded: list[Tower]) -> None:
    fail(session, RuntimeError('Got invalid dimensions for input'))
    loaded.clear()
    with pytest.raises(RuntimeError, match='invalid dimensions'):
        session.encode_images(grey(spec))
    assert loaded == []

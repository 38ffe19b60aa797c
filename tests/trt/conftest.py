"""The double in the place of TensorRT, small checkpoints, and sessions on both."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from clipflow.sessions.base import Options, Session
from clipflow.sessions.export import exported
from clipflow.sessions.parity import probes
from clipflow.weights import ModelSpec, load_spec
from unit import checkpoints

from . import cuda

DOUBLE = Path(__file__).resolve().parent / 'double'

pytest.importorskip('onnx', reason='the package onnx, which exports models, is not installed')
pytest.importorskip('onnxruntime', reason='the double computes with the package onnxruntime, which is not installed')


def forget() -> None:
    """What was imported with the double."""
    for name in [name for name in sys.modules if name.partition('.')[0] == 'tensorrt']:
        del sys.modules[name]
    sys.modules.pop('clipflow.sessions.tensorrt', None)


@pytest.fixture
def version() -> str:
    """Of TensorRT; tests may ask for another by parametrisation."""
    return '11.4.0.106'


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, version: str) -> Iterator[Any]:
    """The package tensorrt, imported afresh, on a machine with a GPU."""
    monkeypatch.setenv('TENSORRT_DOUBLE_VERSION', version)
    monkeypatch.syspath_prepend(DOUBLE)
    forget()
    module = import_module('tensorrt')
    cuda.install(monkeypatch, module.DEVICE)
    yield module
    forget()


@pytest.fixture
def runtime(trt: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under test, whose tensors lie where the double can reach them."""
    module = import_module('clipflow.sessions.tensorrt')
    monkeypatch.setattr(module, '_PLACE', 'cpu')
    return module


@pytest.fixture(scope='session')
def spec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelSpec]:
    """The checkpoint of a family."""
    built: dict[str, ModelSpec] = {}

    def get(family: str) -> ModelSpec:
        if family not in built:
            folder = tmp_path_factory.mktemp('checkpoints') / family
            built[family] = load_spec(str(checkpoints.build(family, folder)))
        return built[family]

    return get


@pytest.fixture(scope='session')
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose exported files are made once."""
    return tmp_path_factory.mktemp('exports')


class Bench:
    """What a test works with: the double, the session's module on it, and a cache."""

    def __init__(self, trt: Any, runtime: Any, spec_of: Callable[[str], ModelSpec], exports: Path) -> None:
        self.trt, self.runtime, self.spec_of = trt, runtime, spec_of
        self.device = trt.DEVICE
        self.cache = exports

    def open(self, family: str = 'clip', precision: str = 'float16', device: str = 'cuda') -> Session:
        """A session."""
        session: Session = self.runtime.load(self.spec_of(family), Options(device, precision, 1, False, self.cache))
        return session

    def reference(self, family: str = 'clip') -> Session:
        """float32 on torch."""
        from clipflow.sessions.torch import load

        return load(self.spec_of(family), Options('cpu', 'float32', 1, False, self.cache))

    def probes(self, family: str = 'clip') -> tuple[Any, Any, Any]:
        """Pixels, ids and mask."""
        return probes(self.spec_of(family))

    def plans(self) -> dict[str, Path]:
        """By tower."""
        return {path.name.partition('-')[0]: path for path in sorted(self.cache.glob('exports/*/tensorrt/*.plan'))}


@pytest.fixture
def shared(trt: Any, runtime: Any, spec_of: Callable[[str], ModelSpec], exports: Path) -> Bench:
    """With the cache of all tests: for many families."""
    return Bench(trt, runtime, spec_of, exports)


@pytest.fixture
def bench(shared: Bench, tmp_path: Path) -> Bench:
    """With a cache of the test's own, which has the exported files of clip in it, and no plan."""
    source = exported(shared.spec_of('clip'), shared.cache, 'float16')
    shared.cache = tmp_path / 'cache'
    shutil.copytree(source, shared.cache / 'exports' / source.name, ignore=shutil.ignore_patterns('tensorrt*'))
    return shared


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log, from its first line on."""
    monkeypatch.setattr(logging.getLogger('clipflow'), 'propagate', True)
    caplog.set_level(logging.DEBUG, 'clipflow')
    return caplog

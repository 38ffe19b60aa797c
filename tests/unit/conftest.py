"""What several modules share: tiny checkpoints, built once, the specification of the bundled model, and a server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipflow import ROOT
from clipflow.weights import ModelSpec, load_spec
from unit.answering import Server


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint of a family; not to be changed."""
    built: dict[str, Path] = {}

    def get(family: str) -> Path:
        from . import checkpoints

        if family not in built:
            built[family] = checkpoints.build(family, tmp_path_factory.mktemp('checkpoints') / family)
        return built[family]

    return get


@pytest.fixture(scope='session')
def mini() -> ModelSpec:
    """The bundled model."""
    return load_spec(str(ROOT / 'models' / 'clip-mini'))


@pytest.fixture
def server() -> Iterator[Server]:
    """Answers our client as the test tells it to."""
    server = Server()
    yield server
    server.stop()

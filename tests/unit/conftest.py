"""What several modules share: tiny checkpoints, built once, and the bundled model's specification."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clipflow import ROOT
from clipflow.weights import ModelSpec, load_spec


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

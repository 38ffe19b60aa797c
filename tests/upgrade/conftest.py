"""What older versions left behind, unpacked."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipflow import ROOT
from kubernetes.conftest import built, kubernetes_python, kustomize  # noqa: F401 (fixtures)


@pytest.fixture
def left_by(tmp_path: Path) -> Callable[[str], Path]:
    """The folder of `workspace` and `programs` of a commit."""

    def unpack(commit: str) -> Path:
        folder = tmp_path / commit
        with tarfile.open(Path(__file__).with_name(f'{commit}.tar.gz')) as archive:
            # Python 3.11.0 to 3.11.3 have no filters; these archives are our own.
            archive.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        if (folder / 'programs').is_dir():
            (folder / 'programs' / 'models').symlink_to(ROOT / 'models')
        return folder

    return unpack

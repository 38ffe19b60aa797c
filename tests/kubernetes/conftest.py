"""Manifests as kubectl builds them, with kubectl and the schemas in an environment of their own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipflow import ROOT
from environments import environment

Objects = list[dict[str, Any]]

COMPONENTS = sorted(path.parent.name for path in (ROOT / 'k8s' / 'components').glob('*/kustomization.yaml'))
OUTSIDE = ('Secret/clipflow-keys',)
"""What people make by hand."""
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    'base': ('base', ()),
    'dev': ('overlays/dev', ()),
    'production': ('overlays/production', ()),
    **{name: ('base', (name,)) for name in COMPONENTS},
    # Much at once, as a large service would have it.
    'full': ('overlays/production', ('sharded', 'models', 'gpu', 'monitoring', 'ingress')),
    'served': ('base', ('triton', 'models', 'monitoring', 'autoscale-keda', 'sharded')),
    'changing': ('overlays/dev', ('reindex', 'models')),
    'small': ('overlays/dev', ('sharded', 'monitoring')),
}
"""Folders and components that are put on top of each."""


@pytest.fixture(scope='session')
def kubernetes_python() -> Path:
    """The interpreter beside kubectl and the schemas."""
    return environment('kubernetes', Path(__file__).with_name('requirements.txt'))


@pytest.fixture(scope='session')
def kustomize(kubernetes_python: Path) -> Callable[[Path], Objects]:
    """Build a folder."""
    kubectl = kubernetes_python.with_name('kubectl')

    def build(folder: Path) -> Objects:
        done = subprocess.run([kubectl, 'kustomize', str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ''  # what is deprecated
        return list(yaml.safe_load_all(done.stdout))

    return build


@pytest.fixture(scope='session')
def built(kustomize: Callable[[Path], Objects], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Objects]:
    """One of `SETS`, built once. Not to be changed."""
    found: dict[str, Objects] = {}

    def build(name: str) -> Objects:
        if name not in found:
            folder = tmp_path_factory.mktemp('set')
            base, components = SETS[name]
            relative = [
                os.path.relpath(ROOT / 'k8s' / path, folder.resolve()) for path in (base, *_folders(components))
            ]
            head = {'apiVersion': 'kustomize.config.k8s.io/v1beta1', 'kind': 'Kustomization'}
            text = yaml.safe_dump(head | {'resources': relative[:1], 'components': relative[1:]})
            (folder / 'kustomization.yaml').write_text(text, encoding='utf-8')
            found[name] = kustomize(folder)
        return found[name]

    return build


def _folders(components: tuple[str, ...]) -> list[str]:
    return [f'components/{name}' for name in components]

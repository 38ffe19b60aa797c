"""Manifests as kubectl builds them, with kubectl and the schemas in an environment of their own."""

import os
import shutil
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
    'served': ('base', ('triton', 'sharded', 'models', 'monitoring', 'autoscale-keda')),
    'changing': ('overlays/dev', ('reindex', 'models')),
    'small': ('overlays/dev', ('sharded', 'monitoring')),
}
"""Folders and components: put on top of the base, and into a copy of an overlay, as people do it."""


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
            found[name] = kustomize(_chosen(tmp_path_factory.mktemp('set').resolve(), *SETS[name]))
        return found[name]

    return build


def _chosen(folder: Path, base: str, components: tuple[str, ...]) -> Path:
    """A folder for kustomize."""
    told: dict[str, Any] = {'apiVersion': 'kustomize.config.k8s.io/v1beta1', 'kind': 'Kustomization'}
    manifests = ROOT / 'k8s'
    if base == 'base':
        told['resources'] = [os.path.relpath(manifests / base, folder)]
    else:
        manifests = Path(shutil.copytree(manifests, folder / 'k8s'))
        folder = manifests / base
        told = yaml.safe_load((folder / 'kustomization.yaml').read_text(encoding='utf-8'))
    more = [os.path.relpath(manifests / 'components' / name, folder) for name in components]
    told['components'] = [*told.get('components', []), *more]
    (folder / 'kustomization.yaml').write_text(yaml.safe_dump(told), encoding='utf-8')
    return folder

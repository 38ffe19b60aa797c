"""The service of the manifests, two replicas of the encoder and two shards, in containers."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipflow import ROOT
from clipflow.deploy import kubernetes
from clipflow.flows import Flow
from kubernetes.conftest import kubernetes_python, kustomize  # noqa: F401 (fixtures)

from . import preflight
from .cluster import Pods
from .engine import Engine, EngineError
from .images import build_all, prepare

Objects = list[dict[str, Any]]
REQUIRED = bool(os.environ.get('CLIPFLOW_REQUIRE_CONTAINERS'))
WANTED = REQUIRED or bool(os.environ.get('CLIPFLOW_TEST_CONTAINERS'))


def absent(reason: str) -> None:
    """Containers cannot run here."""
    if REQUIRED:
        pytest.fail(f'containers: {reason}')
    pytest.skip(f'containers: {reason}')


@pytest.fixture(scope='session')
def engine() -> Iterator[Engine]:
    """Podman, with the images of all rooms."""
    if not WANTED:
        pytest.skip('containers: take minutes and need root and podman; `make containers` runs them')
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(preflight.opened())
            prepare(opened)
        except EngineError as error:
            absent(str(error))
        build_all(opened)
        yield opened


@pytest.fixture(scope='session')
def objects(kustomize: Callable[[Path], Objects], tmp_path_factory: pytest.TempPathFactory) -> Objects:  # noqa: F811
    """The base with two shards and two replicas of the encoder, each pod as small as in the overlay `dev`."""
    folder = tmp_path_factory.mktemp('set').resolve()
    base, small = ROOT / 'k8s' / 'base', ROOT / 'k8s' / 'overlays' / 'dev' / 'small.yaml'
    (folder / 'flow.yml').write_text(yaml.safe_dump(_flow()), encoding='utf-8')
    flow = Flow.read(folder / 'flow.yml')
    kubernetes.write(kubernetes.component(flow, folder / 'sharded', base, 'a test'), folder / 'sharded')
    kustomization = {
        'apiVersion': 'kustomize.config.k8s.io/v1beta1',
        'kind': 'Kustomization',
        'resources': [os.path.relpath(base, folder)],
        'components': ['sharded'],
        'patches': [{'target': {'kind': 'Deployment|StatefulSet'}, 'patch': small.read_text(encoding='utf-8')}],
    }
    (folder / 'kustomization.yaml').write_text(yaml.safe_dump(kustomization), encoding='utf-8')
    return kustomize(folder)


def _flow() -> Any:
    flow = yaml.safe_load((ROOT / 'flows' / 'sharded.yml').read_text(encoding='utf-8'))
    parts = {part['name']: part for part in flow['executors']}
    del parts['indexer_2']
    parts['encoder']['replicas'] = 2
    parts['ranker']['needs'] = ['indexer_0', 'indexer_1']
    for name in parts['ranker']['needs']:
        parts[name]['uses_with']['shards'] = 2
    return flow | {'executors': list(parts.values())}


@pytest.fixture(scope='session')
def pods(engine: Engine, objects: Objects) -> Iterator[Pods]:
    """The service, ready."""
    with Pods(engine, objects) as running:
        yield running


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line about what was measured."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f'\n{line}')

    return show

"""The images: what is in them, and that they keep to the manifests' security context."""

import json
from collections.abc import Callable

import pytest

from clipflow import __version__

from .cluster import Pods
from .engine import Engine, EngineError
from .images import BASE, ROOMS, image, size

MEGABYTE = 1_000_000
OWN_SIZE = {'gateway': 280, 'preprocessor': 360, 'encoder': 1400, 'indexer': 400, 'ranker': 330}
"""At most so many megabytes beside the base."""


@pytest.mark.parametrize('room', ROOMS)
def test_an_image_says_what_it_is_and_is_small(engine: Engine, room: str, figure: Callable[[str], None]) -> None:
    (told,) = json.loads(engine.podman('image', 'inspect', image(room)))
    assert told['Config']['User'] == '10001:10001'
    assert told['Config']['StopSignal'] == 'SIGTERM'
    assert told['Config']['Labels']['org.opencontainers.image.version'] == __version__
    assert told['Healthcheck']['Test'][:4] == ['CMD', 'python', '-m', 'clipflow.probe']
    own = (size(engine, image(room)) - size(engine, BASE)) / MEGABYTE
    figure(f'{room}: {own:.0f} MB on a base of {size(engine, BASE) / MEGABYTE:.0f} MB')
    assert own < OWN_SIZE[room]


@pytest.mark.parametrize(('room', 'foreign'), [('gateway', 'torch'), ('ranker', 'torch'), ('encoder', 'faiss')])
def test_an_image_does_not_hold_what_only_another_needs(engine: Engine, room: str, foreign: str) -> None:
    command = ['run', '--rm', '--network', 'none', '--entrypoint', 'python', image(room), '-c', f'import {foreign}']
    with pytest.raises(EngineError, match='No module named'):
        engine.podman(*command)


def test_the_image_of_the_encoder_can_embed_documents_again(engine: Engine) -> None:
    # As the Jobs of the component `reindex` do, beside the indexer.
    code = (
        'import clipflow.bulk.reindex, clipflow.bulk.workspace, clipflow.border.control, rich.progress; '
        'from clipflow.bulk.encoding import LocalEncoder; from clipflow.weights import load_spec; '
        'from docarray import Document; doc = Document(text="a"); spec = load_spec("/clipflow/models/clip-mini"); '
        'encoder = LocalEncoder(spec); encoder.encode([doc]); print(doc.embedding.shape)'
    )
    command = ['run', '--rm', '--network', 'none', '--entrypoint', 'python', image('encoder'), '-c', code]
    assert '(384,)' in engine.podman(*command)


@pytest.mark.parametrize('workload', ['gateway', 'preprocessor', 'encoder', 'indexer-0', 'ranker'])
def test_a_pod_has_no_rights_and_can_write_only_where_it_should(pods: Pods, workload: str) -> None:
    pod = pods.of(workload)[0]
    status = dict(line.split(':\t', 1) for line in pods.execute(pod, 'cat', '/proc/1/status').splitlines())
    assert status['Uid'].split() == ['10001'] * 4
    assert int(status['CapEff'], 16) == 0
    assert status['NoNewPrivs'].strip() == '1'
    for path in ('/clipflow', '/opt/venv', '/home', '/var/tmp'):
        with pytest.raises(EngineError, match=r'Read-only file system|Permission denied'):
            pods.execute(pod, 'touch', f'{path}/file')
    writable = ['/tmp'] + ['/cache'] * (workload != 'gateway') + ['/data'] * workload.startswith('indexer')
    for path in writable:
        pods.execute(pod, 'touch', f'{path}/file')
        pods.execute(pod, 'rm', f'{path}/file')


def test_the_health_check_of_an_image_tells_what_the_probe_tells(pods: Pods) -> None:
    for pod in pods.running.values():
        assert pods.engine.try_podman('healthcheck', 'run', pod.container), pod.name
    # With arguments of its own it listens elsewhere, so that nobody answers where the image's check asks.
    name = pods.engine.start('deaf', image('preprocessor'), ['--network', 'none'], ['--port', '8081'])
    assert not pods.engine.try_podman('healthcheck', 'run', name)

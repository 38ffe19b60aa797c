"""The RayJob: what can be told without a cluster."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipflow import ROOT, __version__
from clipflow.cli.main import parser

from .cluster import at, kind, mapping, mappings
from .conftest import Objects
from .test_manifests import NEWEST, OLDEST, Build, faults_of_schemas, one

FOLDER = ROOT / 'k8s' / 'ray'


@pytest.fixture(scope='module')
def objects(kustomize: Callable[[Path], Objects]) -> Objects:
    return kustomize(FOLDER)


def templates(objects: Objects) -> list[dict[str, Any]]:
    """Of the head's pod, and of the workers'."""
    cluster = mapping(one(objects, 'RayJob/embed'), 'spec', 'rayClusterSpec')
    groups = [mapping(cluster, 'headGroupSpec'), *mappings(cluster, 'workerGroupSpecs')]
    return [mapping(group, 'template', 'spec') for group in groups]


def containers(objects: Objects) -> list[dict[str, Any]]:
    return [container for pod in templates(objects) for container in pod['containers']]


def test_what_kubernetes_knows_fits_its_schemas_and_the_pods_do_too(objects: Objects, kubernetes_python: Path) -> None:
    known = [entry for entry in objects if kind(entry) != 'RayJob']
    pods: Objects = [
        {'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {'name': f'pod-{n}'}, 'spec': pod}
        for n, pod in enumerate(templates(objects))
    ]
    assert len(pods) == 3
    assert faults_of_schemas(kubernetes_python, known + pods, OLDEST, NEWEST) == []


def test_the_entrypoint_is_a_command_of_ours_on_the_volume_that_is_mounted(objects: Objects) -> None:
    words = shlex.split(one(objects, 'RayJob/embed')['spec']['entrypoint'])
    assert words[:3] == ['python', '-m', 'clipflow.cli.main']
    given = parser().parse_args(words[3:])
    assert (given.command, given.runner, given.address) == ('embed', 'ray', 'auto')
    head = templates(objects)[0]
    (mounted,) = (
        one['mountPath'] for one in mappings(head, 'containers', 0, 'volumeMounts') if one['name'] == 'embeddings'
    )
    assert given.out.is_relative_to(mounted)
    (volume,) = (one for one in mappings(head, 'volumes') if one['name'] == 'embeddings')
    assert one(objects, f'PersistentVolumeClaim/{at(volume, "persistentVolumeClaim", "claimName")}')


def test_pods_are_as_restricted_as_those_of_the_service(objects: Objects, built: Build) -> None:
    service = one(built('base'), 'Deployment/encoder')['spec']['template']['spec']
    for pod in templates(objects):
        assert pod['securityContext'] == service['securityContext']
        assert pod['automountServiceAccountToken'] is False
        written = {mount['mountPath'] for mount in mappings(pod, 'containers', 0, 'volumeMounts')}
        assert {'/tmp', '/cache'} <= written
    for container in containers(objects):
        assert container['securityContext'] == service['containers'][0]['securityContext']
        assert container['resources']['limits'].items() >= container['resources']['requests'].items()
    namespace = one(objects, 'Namespace/clipflow-bulk')
    assert at(namespace, 'metadata', 'labels', 'pod-security.kubernetes.io/enforce') == 'restricted'


def test_nobody_but_the_operator_and_the_job_itself_reaches_ray(objects: Objects, built: Build) -> None:
    spec = one(objects, 'NetworkPolicy/ray')['spec']
    (dns,) = one(built('base'), 'NetworkPolicy/dns')['spec']['egress']
    assert dns in spec['egress']
    assert (spec['podSelector'], spec['policyTypes']) == ({}, ['Ingress', 'Egress'])
    peers = [peer for rule in spec['ingress'] for peer in rule['from']]
    operator = {'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'kuberay-system'}}}
    assert peers == [{'podSelector': {}}, operator]


def test_versions_agree(objects: Objects) -> None:
    room = (FOLDER / 'requirements.txt').read_text(encoding='utf-8')
    extra = (ROOT / 'clipflow' / 'bulk' / 'embed' / 'ray.txt').read_text(encoding='utf-8')
    (version,) = re.findall(r'^ray\[data,default\]==(.+)$', room, re.MULTILINE)
    assert re.findall(r'^ray\[data\]==(.+)$', extra, re.MULTILINE) == [version]
    assert at(one(objects, 'RayJob/embed'), 'spec', 'rayClusterSpec', 'rayVersion') == version
    assert {entry['image'] for entry in containers(objects)} == {
        f'clipflow-bulk:{__version__}',
        f'clipflow-bulk:{__version__}-gpu',
    }
    ours = (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines()
    bulk = [*ours, *(ROOT / 'clipflow' / 'bulk' / 'requirements.txt').read_text(encoding='utf-8').splitlines()]
    bulk += [*extra.splitlines(), *(ROOT / 'clipflow' / 'backup' / 's3.txt').read_text(encoding='utf-8').splitlines()]
    named = room.partition('# what came with them')[0].splitlines()
    pins = [line for line in named if line and line[0] != '#' and not line.startswith('ray[')]
    assert len(pins) > 10
    assert [pin for pin in pins if pin not in bulk] == []


def test_the_image_is_made_as_those_of_the_rooms_are() -> None:
    text, room = ((ROOT / path / 'Dockerfile').read_text(encoding='utf-8') for path in ('k8s/ray', 'executors/encoder'))
    same = ('ARG BASE=', 'FROM ', 'USER ', 'STOPSIGNAL ', 'VOLUME ', 'RUN install -d', 'COPY --from=', 'ARG VERSION=')
    for start in same:
        lines = [[line for line in one.splitlines() if line.startswith(start)] for one in (text, room)]
        assert lines[0] == lines[1], start
    rules = (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
    for source in re.findall(r'^COPY (?!--from)(\S+)', text, re.MULTILINE):
        assert (ROOT / source).exists()
        assert any(source == rule[1:] or source.startswith(f'{rule[1:]}/') for rule in rules if rule[:1] == '!'), source
    environment = text[text.index('ENV ') : text.index('USER ')]
    for wanted in ('PYTHONDONTWRITEBYTECODE=1', 'HOME=/tmp', 'RAY_USAGE_STATS_ENABLED=0', 'PYTHONPATH=/clipflow'):
        assert wanted in environment

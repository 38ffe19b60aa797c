"""The probe, the systemd unit, and the script for people with a cluster."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clipflow import ROOT, probe
from clipflow_client import Client
from service import Service, free_port

STUB = """#!/usr/bin/env bash
# Stands for kubectl: writes down what it is asked, and answers as a cluster would.
echo "$*" >> "$STUB_LOG"
case "$1 $2" in
  "kustomize "*) echo "kind: List" ;;
  "get namespace") [ -z "${STUB_NO_NAMESPACE:-}" ] ;;
  "get deployments,statefulsets") printf 'deployment.apps/gateway\\nstatefulset.apps/indexer\\n' ;;
  "apply --server-side") [ -z "${STUB_REFUSES:-}" ] || { echo 'Error: violates PodSecurity' >&2; exit 1; } ;;
  "rollout status") [ -z "${STUB_NOT_READY:-}" ] || { echo 'error: timed out' >&2; exit 1; } ;;
  "port-forward -n") exec sleep 60 ;;
esac
"""


@pytest.fixture
def server() -> Iterator[tuple[health.HealthServicer, str]]:
    """A health service, and where it is."""
    running = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    port = running.add_insecure_port('127.0.0.1:0')
    running.start()
    yield servicer, f'127.0.0.1:{port}'
    running.stop(None)


def test_the_probe_tells_what_the_health_service_says(server: tuple[health.HealthServicer, str]) -> None:
    servicer, address = server
    assert probe.probe(address) == ''
    servicer.set('', health_pb2.HealthCheckResponse.NOT_SERVING)
    servicer.set('liveness', health_pb2.HealthCheckResponse.SERVING)
    assert probe.probe(address) == 'not serving'
    assert probe.probe(address, 'liveness') == ''
    assert probe.probe(address, 'unknown') == 'not_found'
    assert probe.probe(f'127.0.0.1:{free_port()}') == 'unavailable'


def test_the_command_of_the_probe_ends_with_0_1_or_2(server: tuple[health.HealthServicer, str]) -> None:
    servicer, address = server
    servicer.set('', health_pb2.HealthCheckResponse.NOT_SERVING)
    servicer.set('liveness', health_pb2.HealthCheckResponse.SERVING)
    code = 'import sys; from clipflow import probe; end = probe.main(sys.argv[1:])\n'
    code += 'sys.exit(end + 4 * ("jina" in sys.modules))'
    for given, end in (
        ([address, 'liveness'], 0),
        ([address], 1),
        ([], 2),
        ([address, 'a', 'b'], 2),
        ([address, 'a' * 128], 2),
    ):
        done = subprocess.run([sys.executable, '-c', code, *given], capture_output=True, text=True, check=False)
        assert (done.returncode, 'Traceback' in done.stderr) == (end, False), done.stderr


@pytest.mark.skipif(shutil.which('systemd-analyze') is None, reason='systemd is not installed')
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (ROOT / 'scripts' / 'clipflow.service').read_text(encoding='utf-8')
    assert 'ExecStart=/opt/clipflow/.venv/bin/clipflow serve\n' in text
    unit = tmp_path / 'clipflow.service'
    for changed, faults in ((text.replace('/opt/clipflow/.venv/bin/clipflow', '/bin/true'), False), (text, True)):
        unit.write_text(changed.replace('/opt/clipflow', str(tmp_path)) if faults else changed, encoding='utf-8')
        done = subprocess.run(['systemd-analyze', 'verify', unit], capture_output=True, text=True, check=False)
        assert bool(done.returncode or 'clipflow.service' in done.stderr) is faults, done.stderr


def verify(
    tmp_path: Path, *given: str, outside: bool = False, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script with a stub, and what the stub was asked."""
    stub, log = tmp_path / 'kubectl', tmp_path / 'log'
    stub.write_text(STUB, encoding='utf-8')
    stub.chmod(0o755)
    log.write_text('', encoding='utf-8')
    done = subprocess.run(
        [str(ROOT / 'scripts/verify-cluster.sh'), *given],
        env={**os.environ, 'KUBECTL': str(stub), 'STUB_LOG': str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path if outside else ROOT,
    )
    return done, log.read_text(encoding='utf-8').splitlines()


def test_without_apply_the_cluster_is_asked_and_not_changed(tmp_path: Path) -> None:
    done, asked = verify(tmp_path, 'k8s/overlays/production')
    assert done.returncode == 0, done.stderr
    assert 'nothing was changed' in done.stdout
    assert 'kustomize k8s/overlays/production' in asked
    changing = [line for line in asked if line.split()[0] in ('apply', 'create', 'label', 'delete', 'patch')]
    assert changing
    assert all('--dry-run=server' in line for line in changing)


def test_an_overlay_is_found_from_where_the_script_is_called(tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'kustomization.yaml').touch()
    for given, built in (('mine', 'kustomize mine'), (None, f'kustomize {ROOT}/scripts/../k8s/overlays/dev')):
        done, asked = verify(tmp_path, *[given] * (given is not None), outside=True)
        assert (done.returncode, built in asked) == (0, True), done.stderr


def test_with_apply_it_waits_and_calls_the_service(tmp_path: Path, fake: Service) -> None:
    done, asked = verify(tmp_path, '--apply', PORT=fake.http.rpartition(':')[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'the service works' in done.stdout
    words = [' '.join(line.split()[:2]) for line in asked]
    assert words.index('rollout status') > words.index('apply --server-side')
    assert [line.split()[-1] for line in asked if line.startswith('rollout')] == [
        'deployment.apps/gateway',
        'statefulset.apps/indexer',
    ]
    with Client(fake.grpc) as client:
        assert client.status()['indexer']['documents'] == 0


@pytest.mark.parametrize(
    ('given', 'environment', 'code', 'said'),
    [
        ((), {'STUB_REFUSES': '1'}, 1, 'violates PodSecurity'),
        ((), {'STUB_NO_NAMESPACE': '1'}, 1, 'there is no namespace clipflow'),
        (('--apply',), {'STUB_NOT_READY': '1'}, 1, 'timed out'),
        (('k8s/nothing',), {}, 2, 'holds no kustomization.yaml'),
        (('--force',), {}, 2, 'usage'),
    ],
)
def test_what_the_cluster_refuses_ends_it(
    tmp_path: Path, given: tuple[str, ...], environment: dict[str, str], code: int, said: str
) -> None:
    done, _ = verify(tmp_path, *given, **environment)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr

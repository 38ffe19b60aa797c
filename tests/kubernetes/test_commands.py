"""The commands, variables and probes of the manifests, as processes on this host."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from docarray import Document

from clipflow import ROOT, probe
from clipflow_client import Client
from service import free_port, until

from .cluster import Cluster, Pod, at, text
from .conftest import Objects
from .test_images import FOLDERS, only
from .test_manifests import Build

PROBES = ('startupProbe', 'readinessProbe', 'livenessProbe')


class Processes:
    """One process a pod, on ports of this host instead of addresses of its own."""

    def __init__(self, objects: Objects, folder: Path) -> None:
        cluster = Cluster(objects)
        self.pods = {pod.component: pod for pod in cluster.pods}
        self.ports = {name: {port: free_port() for port in set(pod.ports.values())} for name, pod in self.pods.items()}
        self._folder = folder
        self._running = {name: self._start(cluster, pod) for name, pod in self.pods.items()}

    def _start(self, cluster: Cluster, pod: Pod) -> subprocess.Popen[bytes]:
        room = pod.component
        given = json.loads(only(room, 'ENTRYPOINT')) + [self._here(room, one) for one in pod.containers[0]['args']]
        own = {'CLIPFLOW_RUNTIME': 'fake', 'CLIPFLOW_WORKSPACE': str(self._folder / 'data'), 'PYTHONPATH': str(ROOT)}
        own |= {name: str(self._folder) for name in ('HOME', 'CLIPFLOW_CACHE', 'HF_HOME')}
        environment = {name: value for name, value in os.environ.items() if not name.startswith('CLIPFLOW_')}
        return subprocess.Popen(
            [str(Path(sys.executable).with_name(given[0])), *given[1:]],
            cwd=ROOT / FOLDERS[room],
            env=environment | cluster.environment(pod, pod.containers[0]) | own,
            stdout=(self._folder / f'{room}.log').open('wb'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _here(self, room: str, given: str) -> str:
        if given.isdigit() and int(given) in self.ports[room]:
            return str(self.ports[room][int(given)])
        if 'dns:///' in given:
            return json.dumps({name: [f'dns:///localhost:{self.ports[name][8080]}'] for name in json.loads(given)})
        return given

    def passes(self, room: str, which: str) -> bool:
        """Do one probe of a pod as the kubelet would."""
        pod = self.pods[room]
        asked = pod.containers[0][which]
        if service := at(asked, 'grpc'):
            return not probe.probe(f'127.0.0.1:{self.ports[room][service["port"]]}', service['service'])
        port = self.ports[room][pod.ports[text(asked, 'httpGet', 'port')]]
        try:
            found = httpx.get(f'http://127.0.0.1:{port}{text(asked, "httpGet", "path")}', timeout=10, trust_env=False)
        except httpx.HTTPError:
            return False
        return found.is_success

    def end(self) -> dict[str, int]:
        """SIGTERM to all, and how each ended."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        try:
            return {name: process.wait(30) for name, process in self._running.items()}
        finally:
            for process in self._running.values():
                process.kill()


@pytest.fixture
def processes(built: Build, tmp_path: Path) -> Iterator[Processes]:
    running = Processes(built('dev'), tmp_path)
    try:
        yield running
    except BaseException:
        print('\n'.join(path.read_text(errors='replace')[-2000:] for path in tmp_path.glob('*.log')))
        raise
    finally:
        running.end()


def test_a_service_starts_by_its_manifests_answers_its_probes_and_ends(processes: Processes) -> None:
    everything: list[Any] = [(room, which) for room in processes.pods for which in PROBES]
    until(lambda: all(processes.passes(*one) for one in everything), 120, 'all probes pass')
    with Client(f'127.0.0.1:{processes.ports["gateway"][51000]}') as client:
        assert [outcome.error for outcome in client.index([Document(id='a', text='x')])] == [None]
        assert [match.id for match in client.search('x')] == ['a']
    assert processes.end() == dict.fromkeys(processes.pods, 0)

"""The pods of manifests as processes on this host, by their commands and variables, and searches meanwhile."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import httpx

from clipflow import ROOT, probe
from clipflow.errors import ClipflowError
from clipflow_client import Client
from local_service import held_port
from service import png

from .cluster import Cluster, Pod, at, name, text
from .conftest import Objects
from .test_images import FOLDERS, only

PROBES = ('startupProbe', 'readinessProbe', 'livenessProbe')


class Processes:
    """One process a pod, on ports of this host instead of addresses of its own.

    Args:
        objects: the manifests.
        folder: for the workspace, caches and logs.
        programs: of another version.
        old: the pods that run those.
    """

    def __init__(self, objects: Objects, folder: Path, programs: Path = ROOT, old: Collection[str] = ()) -> None:
        self._programs = programs
        self.old = set(old)
        self._cluster = Cluster(objects)
        self.pods = {pod.component: pod for pod in self._cluster.pods}
        self._held = {name: {port: held_port() for port in set(pod.ports.values())} for name, pod in self.pods.items()}
        self.ports = {
            name: {port: int(held.getsockname()[1]) for port, held in ports.items()}
            for name, ports in self._held.items()
        }
        self._folder = folder
        self.own = {'CLIPFLOW_RUNTIME': 'fake', 'CLIPFLOW_WORKSPACE': str(folder / 'data')}
        self.own |= {name: str(folder) for name in ('HOME', 'CLIPFLOW_CACHE', 'HF_HOME')}
        self._running = {name: self._started(name) for name in self.pods}

    def _started(self, room: str) -> subprocess.Popen[bytes]:
        given = json.loads(only(room, 'ENTRYPOINT'))
        given += [self._here(room, one) for one in self.pods[room].containers[0]['args']]
        programs = self._programs if room in self.old else ROOT
        return subprocess.Popen(
            [str(Path(sys.executable).with_name(given[0])), *given[1:]],
            cwd=programs / FOLDERS[room],
            env=self._environment(self.pods[room]) | {'PYTHONPATH': str(programs)},
            stdout=(self._folder / f'{room}.log').open('ab'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self, pod: Pod) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith('CLIPFLOW_')}
        return environment | self._cluster.environment(pod, pod.containers[0]) | self.own

    def stop(self, *rooms: str) -> list[int]:
        """SIGTERM; the exit codes."""
        for room in rooms:
            self._running[room].terminate()
        return [self._running[room].wait(60) for room in rooms]

    def start(self, room: str) -> None:
        """Once more, after `stop`."""
        self._running[room] = self._started(room)

    def run(self, job: str) -> str:
        """A Job to its end; what it said."""
        (pod,) = (pod for pod in self._cluster.all_pods if name(pod.owner) == job)
        environment = self._environment(pod)
        words = [*pod.containers[0]['command'], *pod.containers[0]['args']]
        given = [re.sub(r'\$\((\w+)\)', lambda found: environment[found[1]], word) for word in words]
        assert given[0] == 'python'
        done = subprocess.run(
            [sys.executable, *given[1:]], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

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
            return {name: process.wait(60) for name, process in self._running.items()}
        finally:
            for process in self._running.values():
                process.kill()
            for held in [held for ports in self._held.values() for held in ports.values()]:
                held.close()


class Searches:
    """One after the other from a thread, as long as it is open: the code of each one's error, or an empty text."""

    def __init__(self, address: str, **given: Any) -> None:
        self._client = Client(address, **given)
        self._ended = threading.Event()
        self.codes: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                self._client.search(png('red') if len(self.codes) % 2 else 'a text about 7')
            except ClipflowError as error:
                self.codes.append(error.code)
            else:
                self.codes.append('')

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

"""The manifests as running pods: workloads, Services by name, and what a person or a controller does to them."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from kubernetes.cluster import Cluster, at, mapping, mappings, name, text, whole

from .engine import HOST, NETWORK, SERVICES, Engine
from .inside import Inside
from .names import Names
from .pods import Running, addressed, started
from .probes import Kubelet

START_SECONDS = 300.0
"""For a pod to become ready on a machine that is busy."""


class Pods:
    """All pods of a set of manifests, in a namespace of their own.

    Args:
        objects: as kustomize builds them.
    """

    def __init__(self, engine: Engine, objects: list[dict[str, Any]]) -> None:
        self.engine = engine
        self._cluster = Cluster(objects)
        self._workloads = {name(pod.owner): pod for pod in self._cluster.pods}
        self._services = {name(one): one for one in self._cluster.of('Service')}
        self._addresses = (f'10.89.1.{number}' for number in itertools.count(1))
        self._service_addresses = {name: f'10.96.0.{number}' for number, name in enumerate(self._services, start=1)}
        self._numbers = itertools.count()
        self.running: dict[str, Running] = {}
        self.inside = Inside.of(engine.name)
        self.load = self.inside.Load()
        self._kubelet = Kubelet(engine, self.inside)
        self._names = Names(engine.name, self._lookup)
        self._ended = threading.Event()
        self._proxy = threading.Thread(target=self._keep_routes, name='proxy', daemon=True)

    def __enter__(self) -> Self:
        try:
            for workload, pod in self._workloads.items():
                for _ in range(pod.replicas):
                    self.add(workload)
            self.engine.inside(['ip', 'route', 'replace', SERVICES, 'dev', self.engine.bridge, 'src', HOST])
            self._proxy.start()
            self.wait(lambda: all(pod.ready for pod in self.running.values()), 'all pods are ready')
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all; the engine removes the containers."""
        self._kubelet.close()
        self._ended.set()
        if self._proxy.is_alive():
            self._proxy.join()
        self._names.close()
        self.inside.shutdown()

    def address(self, service: str, port: str) -> str:
        """Host and port of a Service."""
        (number,) = (
            whole(entry, 'port')
            for entry in mappings(self._services[service], 'spec', 'ports')
            if entry['name'] == port
        )
        return f'{self._service_addresses[service]}:{number}'

    def of(self, workload: str) -> list[Running]:
        """The pods of a workload, oldest first."""
        return [pod for pod in self.running.values() if pod.name.rpartition('-')[0] == workload]

    def log(self, pod: Running) -> str:
        """What a pod has said."""
        return self.engine.podman('logs', pod.container)

    def execute(self, pod: Running, *command: str) -> str:
        """A command in a pod's container; what it writes."""
        return self.engine.podman('exec', pod.container, *command)

    # -- what happens to pods -----------------------------------------------------------------------------------------

    def add(self, workload: str) -> Running:
        """One pod more."""
        pod = self._workloads[workload]
        number = 0 if pod.owner['kind'] == 'StatefulSet' else next(self._numbers)
        running = started(self.engine, self._cluster, pod, f'{workload}-{number}', next(self._addresses))
        self.running[running.name] = running
        self._kubelet.watch(running)
        return running

    def delete(self, pod: Running) -> float:
        """Let a pod end as Kubernetes does: no new requests, SIGTERM, and SIGKILL after its grace period; seconds."""
        begun = time.monotonic()
        self._kubelet.leave(pod)
        self.engine.podman('stop', '-t', str(pod.grace), pod.container)
        self.engine.podman('rm', '-v', pod.container)
        self.engine.podman('rm', '-f', '-t', '0', pod.sandbox)
        del self.running[pod.name]
        return time.monotonic() - begun

    def roll(self, workload: str) -> None:
        """A rolling update, one pod more at a time: the new one is ready for long enough before an old one goes."""
        seconds = whole(self._workloads[workload].owner, 'spec', 'minReadySeconds')
        for old in self.of(workload):
            new = self.add(workload)
            self.wait_until_ready(new)
            self.sleep(seconds)
            self.delete(old)

    def kill(self, pod: Running) -> None:
        """SIGKILL to the main process; the kubelet sees it within a second."""
        self.engine.podman('kill', pod.container)
        pod.alive = pod.ready = False

    def start(self, pod: Running) -> None:
        """The kubelet starts a container that has ended."""
        self.engine.podman('start', pod.container)
        pod.restarts += 1
        pod.alive = True

    def freeze(self, pod: Running) -> None:
        """Stop all processes of a pod where they are, until `thaw`."""
        self.engine.podman('pause', pod.container)

    def thaw(self, pod: Running) -> None:
        """Let them go on."""
        self.engine.podman('unpause', pod.container)

    def cut_off(self, pod: Running) -> None:
        """Take a pod off the network without a word to anybody, until `connect`."""
        self.engine.podman('network', 'disconnect', NETWORK, pod.sandbox)

    def connect(self, pod: Running) -> None:
        """Put it back, with its address."""
        self.engine.podman('network', 'connect', *addressed(pod.address), NETWORK, pod.sandbox)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > until, 'time passes', seconds + 60)

    def wait_until_ready(self, pod: Running) -> None:
        """Until it gets requests."""
        self.wait(lambda: pod.ready, f'{pod.name} is ready')

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> None:
        """Until something holds."""
        until = time.monotonic() + seconds
        while not condition():
            assert not self._kubelet.faults, self._kubelet.faults
            assert time.monotonic() < until, f'not within {seconds:.0f} s: {what}; {self._told()}'
            time.sleep(0.1)

    def _told(self) -> str:
        waiting = [pod for pod in self.running.values() if not pod.ready]
        return '; '.join(f'{pod.name}: {self.log(pod)[-1000:]}' for pod in waiting)

    # -- Services -----------------------------------------------------------------------------------------------------

    def _behind(self, service: Any) -> list[str]:
        wanted = mapping(service, 'spec', 'selector')
        early = at(service, 'spec', 'publishNotReadyAddresses') is True
        return [
            pod.address
            for pod in list(self.running.values())
            if (pod.ready or early) and all(pod.labels.get(key) == value for key, value in wanted.items())
        ]

    def _lookup(self, service: str) -> list[str] | None:
        found = self._services.get(service)
        if found is None:
            return None
        if text(found, 'spec', 'clusterIP') == 'None':
            return self._behind(found) or None
        return [self._service_addresses[service]]

    def _keep_routes(self) -> None:
        """Connections to the address of a Service go to one of its ready pods, as kube-proxy has it."""
        routed = ''
        while not self._ended.wait(0.2):
            rules = self._routes()
            if rules != routed:
                self.engine.inside(['iptables-restore', '--table=nat'], rules)
                routed = rules

    def _routes(self) -> str:
        lines = ['*nat', ':OUTPUT ACCEPT [0:0]']
        for service, address in self._service_addresses.items():
            if text(self._services[service], 'spec', 'clusterIP') != 'None':
                pods = self._behind(self._services[service])
                for number, pod in enumerate(pods):
                    every = f'-m statistic --mode nth --every {len(pods) - number} --packet 0'
                    lines.append(f'-A OUTPUT -d {address} {every} -j DNAT --to-destination {pod}')
        return '\n'.join([*lines, 'COMMIT', ''])

"""A pod of the manifests as a container: what podman is told so that it runs as the kubelet would run it."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

from kubernetes.cluster import Cluster, Pod, at, mapping, mappings, quantity, text, texts, whole

from .engine import HOST, NETWORK, Engine
from .images import BASE
from .names import DOMAIN

_DEFAULTS = {'initialDelaySeconds': 0, 'periodSeconds': 10, 'timeoutSeconds': 1, 'successThreshold': 1}


@dataclass(frozen=True)
class Probe:
    """One of a container's probes, with the defaults of Kubernetes."""

    port: int
    period: float
    timeout: float
    failures: int
    """So many after each other count."""
    successes: int
    delay: float
    service: str | None = None
    """For gRPC."""
    path: str = ''
    """For HTTP."""

    @classmethod
    def of(cls, pod: Pod, container: Any, name: str) -> 'Probe':
        """From a manifest that has it."""
        told = container[name]
        numbers = _DEFAULTS | {key: value for key, value in told.items() if isinstance(value, int)}
        http = 'httpGet' in told
        return cls(
            port=pod.ports[told['httpGet']['port']] if http else told['grpc']['port'],
            period=numbers['periodSeconds'],
            timeout=numbers['timeoutSeconds'],
            failures=numbers.get('failureThreshold', 3),
            successes=numbers['successThreshold'],
            delay=numbers['initialDelaySeconds'],
            service=None if http else told['grpc'].get('service', ''),
            path=told['httpGet']['path'] if http else '',
        )


@dataclass(eq=False)
class Running:
    """A pod that has been started.

    Attributes:
        sandbox: the container that holds its network.
        address: which it keeps until it is deleted, also when its container is started again.
        alive: its container runs, as far as the kubelet knows.
        ready: it gets requests.
        restarts: how often the kubelet has started its container again.
    """

    name: str
    container: str
    sandbox: str
    labels: dict[str, str]
    address: str
    grace: int
    probes: dict[str, Probe] = field(default_factory=dict)
    alive: bool = True
    ready: bool = False
    restarts: int = 0


def options(engine: Engine, cluster: Cluster, pod: Pod, name: str) -> list[str]:
    """What `podman run` is told of a pod's container.

    Args:
        name: of the pod, which also names its volumes.
    """
    (container,) = pod.all_containers
    secured = mapping(pod.spec, 'securityContext') | mapping(container, 'securityContext')
    found = ['--user', f'{secured["runAsUser"]}:{secured["runAsGroup"]}', '--group-add', str(secured['fsGroup'])]
    assert secured['runAsNonRoot']
    assert secured['runAsUser']
    found += ['--read-only', '--read-only-tmpfs=false'] if secured['readOnlyRootFilesystem'] else []
    found += [f'--cap-drop={name}' for name in texts(secured, 'capabilities', 'drop')]
    found += [] if secured['allowPrivilegeEscalation'] else ['--security-opt', 'no-new-privileges']
    limits = mapping(container, 'resources', 'limits')
    cores, memory = quantity(limits['cpu']), quantity(limits['memory'])
    assert cores is not None
    assert memory is not None
    found += ['--cpus', str(min(float(cores), os.cpu_count() or 1)), '--memory', f'{int(memory)}b']
    for key, value in _environment(cluster, pod, container).items():
        found += ['--env', f'{key}={value}']
    for mount in mappings(container, 'volumeMounts'):
        found += _mount(engine, pod, name, mount)
    return found


def addressed(address: str) -> list[str]:
    """Options for an IPv4 address, and a hardware address that goes with it: neighbours remember both."""
    return ['--ip', address, '--mac-address', '02:00:' + ':'.join(f'{int(part):02x}' for part in address.split('.'))]


def started(engine: Engine, cluster: Cluster, pod: Pod, name: str, address: str) -> Running:
    """Start a pod."""
    (container,) = pod.all_containers
    # As in a cluster, another container holds the network: a process that ends leaves an address that answers.
    network = ['--network', NETWORK, *addressed(address), '--hostname', name]
    network += ['--dns', HOST, '--dns-search', DOMAIN, '--dns-option', 'ndots:5']
    sandbox = engine.start(f'{name}-sandbox', BASE, network, ['sleep', 'infinity'])
    image, arguments = f'localhost/{text(container, "image")}', texts(container, 'args')
    joined = ['--network', f'container:{sandbox}', *options(engine, cluster, pod, name)]
    full = engine.start(name, image, joined, arguments)
    probes = {kind: Probe.of(pod, container, f'{kind}Probe') for kind in ('startup', 'readiness', 'liveness')}
    return Running(name, full, sandbox, pod.labels, address, whole(pod.spec, 'terminationGracePeriodSeconds'), probes)


def _environment(cluster: Cluster, pod: Pod, container: Any) -> dict[str, str]:
    """With what the kubelet fills in."""
    found = cluster.environment(pod, container)
    for entry in mappings(container, 'env'):
        resource = mapping(entry, 'valueFrom', 'resourceFieldRef')
        if resource:
            amount = quantity(at(container, 'resources', *text(resource, 'resource').split('.')))
            unit = quantity(resource.get('divisor', '1'))
            assert amount is not None
            assert unit is not None
            found[text(entry, 'name')] = str(math.ceil(amount / unit))
        elif at(entry, 'valueFrom', 'secretKeyRef', 'optional') is True:
            continue  # nobody has made it
        else:
            assert 'value' in entry, f'a value that is not understood here: {entry}'
    return found


def _mount(engine: Engine, pod: Pod, name: str, mount: Any) -> list[str]:
    """A volume that lives as long as the pod, or its claim; it is given to the pod's user, as `fsGroup` does."""
    path, volume = text(mount, 'mountPath'), text(mount, 'name')
    claims = [text(entry, 'metadata', 'name') for entry in mappings(pod.owner, 'spec', 'volumeClaimTemplates')]
    if volume not in claims:
        (source,) = (entry for entry in mappings(pod.spec, 'volumes') if text(entry, 'name') == volume)
        assert 'emptyDir' in source, f'a volume that is not understood here: {source}'
    return ['--volume', f'{engine.volume(f"{volume}-{name}")}:{path}:U']

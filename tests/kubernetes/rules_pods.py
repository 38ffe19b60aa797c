"""What stands in the specification of a pod."""

import re
from collections import Counter
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from .cluster import (
    NAME_LABEL,
    Cluster,
    Found,
    Pod,
    at,
    kind,
    mapping,
    mappings,
    matches,
    quantity,
    rule,
    text,
    texts,
    whole,
)
from .rules_workloads import argument

PROBES = ('startupProbe', 'readinessProbe', 'livenessProbe')
_HANDLERS = ('exec', 'grpc', 'httpGet', 'tcpSocket')
_PORT_NAME = re.compile(r'(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?')
_LEAST_STARTUP_SECONDS = {'encoder': 300, 'indexer': 1800}
_MARGIN_SECONDS = 5


def each(cluster: Cluster) -> list[tuple[Pod, dict[str, Any]]]:
    """All containers, with their pods."""
    return [(pod, container) for pod in cluster.all_pods for container in pod.all_containers]


# -- resources --------------------------------------------------------------------------------------------------------


@rule('quantity')
def quantities(cluster: Cluster) -> Found:
    """Numbers with a unit that Kubernetes knows."""
    for pod, container in each(cluster):
        for part in ('requests', 'limits'):
            for key, value in mapping(container, 'resources', part).items():
                if quantity(value) is None:
                    yield pod.owner, f'{key}: {value!r} is no quantity'
        for volume in mappings(pod.spec, 'volumes'):
            size = at(volume, 'emptyDir', 'sizeLimit')
            if size is not None and quantity(size) is None:
                yield pod.owner, f'sizeLimit: {size!r} is no quantity'


@rule('resources')
def requests_and_limits(cluster: Cluster) -> Found:
    """Every container asks for CPU and memory, and is limited in both."""
    for pod, container in each(cluster):
        for part in ('requests', 'limits'):
            if missing := {'cpu', 'memory'} - set(mapping(container, 'resources', part)):
                yield pod.owner, f'{name_of(container)} has no {part} of {min(missing)}'


@rule('resources-order')
def requests_within_limits(cluster: Cluster) -> Found:
    """A request is not above its limit."""
    for pod, container in each(cluster):
        limits = mapping(container, 'resources', 'limits')
        for key, value in mapping(container, 'resources', 'requests').items():
            asked, limit = quantity(value), quantity(limits.get(key))
            if asked is not None and limit is not None and asked > limit and '/' not in key:
                yield pod.owner, f'asks for {value} of {key}, and is limited to {limits[key]}'


@rule('device')
def devices(cluster: Cluster) -> Found:
    """A device is whole, and stands among the limits."""
    for pod, container in each(cluster):
        limits = mapping(container, 'resources', 'limits')
        requests = mapping(container, 'resources', 'requests')
        for key in {one for one in [*limits, *requests] if '/' in one}:
            count = quantity(limits.get(key))
            if count is None or (key in requests and quantity(requests[key]) != count):
                yield pod.owner, f'{key} has to stand among the limits, and no other number among the requests'
            elif count % 1:
                yield pod.owner, f'{key}: {limits[key]} is no whole number'


@rule('resource-field')
def own_limits(cluster: Cluster) -> Found:
    """A variable that tells a limit tells one that there is."""
    for pod, container in each(cluster):
        for entry in mappings(container, 'env'):
            if reference := mapping(entry, 'valueFrom', 'resourceFieldRef'):
                of = text(reference, 'containerName') or text(container, 'name')
                told = [one for one in pod.all_containers if text(one, 'name') == of]
                part, _, key = text(reference, 'resource').partition('.')
                if not told or key not in mapping(told[0], 'resources', part):
                    yield pod.owner, f'{text(entry, "name")} tells {part}.{key} of {of!r}, which is not set'


@rule('threads')
def threads_by_limit(cluster: Cluster) -> Found:
    """A stage would take as many threads as its node has cores."""
    for pod in cluster.pods:
        for container in pod.containers if pod.is_stage else []:
            entries = {text(entry, 'name'): entry for entry in mappings(container, 'env')}
            if missing := {'CLIPFLOW_THREADS', 'OMP_NUM_THREADS'} - set(entries):
                yield pod.owner, f'{min(missing)} is not set'


# -- probes -----------------------------------------------------------------------------------------------------------


@rule('probe')
def probes(cluster: Cluster) -> Found:
    """All three, each with exactly one handler; the worker of the IPUs has nothing to ask whether it is ready."""
    for pod in cluster.pods:
        for container in pod.containers:
            wanted = [one for one in PROBES if (pod.component, one) != ('ipu-worker', 'readinessProbe')]
            if missing := [one for one in wanted if one not in container]:
                yield pod.owner, f'{name_of(container)} has no {missing[0]}'
            for one in PROBES:
                handlers = set(_HANDLERS) & set(mapping(container, one))
                if one in container and len(handlers) != 1:
                    yield pod.owner, f'{one} has {len(handlers)} handlers'


@rule('probe-port')
def ports_of_probes(cluster: Cluster) -> Found:
    """A probe asks a port of its container."""
    for pod in cluster.pods:
        for container in pod.containers:
            ports = Pod(pod.owner, {'spec': {'containers': [container]}}).ports
            for one in PROBES:
                for handler in set(_HANDLERS[1:]) & set(mapping(container, one)):
                    port = at(container, one, handler, 'port')
                    named = isinstance(port, str) and handler != 'grpc'
                    if not (named or whole(port)) or port not in ports:
                        yield pod.owner, f'{one} asks the port {port!r}, which {name_of(container)} does not have'


@rule('probe-success')
def one_success(cluster: Cluster) -> Found:
    """Kubernetes allows no other number for these two."""
    for pod in cluster.pods:
        for container in pod.containers:
            for one in ('startupProbe', 'livenessProbe'):
                if at(container, one, 'successThreshold') not in (None, 1):
                    yield pod.owner, f'{one} has a successThreshold other than 1'


@rule('probe-liveness')
def liveness_is_not_readiness(cluster: Cluster) -> Found:
    """A process that waits for another one is not ready, and must not be killed for it."""
    for pod in cluster.pods:
        for container in pod.containers:
            ready, alive = ({key: at(container, one, key) for key in _HANDLERS} for one in PROBES[1:])
            if any(ready.values()) and ready == alive:
                yield pod.owner, 'livenessProbe asks what readinessProbe asks'


@rule('probe-truth')
def probes_of_ours_ask_what_is_true(cluster: Cluster) -> Found:
    """The service '' is whether a stage can work, 'liveness' whether it answers; of a gateway, /readyz and /healthz."""
    for pod in cluster.pods:
        for container in pod.containers:
            if pod.is_stage:
                asked = [text(container, one, 'grpc', 'service') for one in PROBES]
                if asked != ['', '', 'liveness']:
                    yield pod.owner, f'asks for the health of {asked}'
            elif pod.component == 'gateway':
                asked = [text(container, one, 'httpGet', 'path') for one in PROBES]
                if asked != ['/healthz', '/readyz', '/healthz']:
                    yield pod.owner, f'asks for {asked}'


@rule('probe-patience')
def patience_at_the_start(cluster: Cluster) -> Found:
    """A model takes minutes to load, an index an hour to build."""
    for pod in cluster.pods:
        for container in pod.containers:
            period = whole(container, 'startupProbe', 'periodSeconds', default=10)
            patience = period * whole(container, 'startupProbe', 'failureThreshold', default=3)
            least = _LEAST_STARTUP_SECONDS.get(pod.component, 60)
            if 'startupProbe' in container and patience < least:
                yield pod.owner, f'has {patience} s to start, and may need {least}'


@rule('grace')
def time_to_end(cluster: Cluster) -> Found:
    """Draining, the longest request, and a little more."""
    for pod in cluster.pods:
        for container in pod.containers:
            settings = cluster.environment(pod, container)
            names = ('CLIPFLOW_DRAIN_SECONDS', 'CLIPFLOW_REQUEST_TIMEOUT')
            needed = sum((quantity(settings.get(key, '0')) or Decimal(0)) for key in names) + _MARGIN_SECONDS
            given = whole(pod.spec, 'terminationGracePeriodSeconds', default=30)
            if given < needed:
                yield pod.owner, f'has {given} s to end, and needs {needed}'


# -- ports, volumes, images, variables --------------------------------------------------------------------------------


@rule('port')
def container_ports(cluster: Cluster) -> Found:
    """Numbers up to 65535, short names, nothing twice."""
    for pod in cluster.pods:
        found = [port for container in pod.containers for port in mappings(container, 'ports')]
        for port in found:
            if not 0 < whole(port, 'containerPort') < 65536:
                yield pod.owner, f'{port.get("containerPort")!r} is no port'
            called = port.get('name', 'a')
            if not isinstance(called, str) or len(called) > 15 or not _PORT_NAME.fullmatch(called):
                yield pod.owner, f'{called!r} is no name of a port'
        for key in ('name', 'containerPort'):
            counts = Counter(str(port[key]) for port in found if key in port)
            if twice := [value for value, count in counts.items() if count > 1]:
                yield pod.owner, f'the port {twice[0]} is there twice'


@rule('port-argument')
def ports_agree_with_arguments(cluster: Cluster) -> Found:
    """A process listens where its container says."""
    for pod in cluster.pods:
        if pod.is_stage or pod.component == 'gateway':
            for container in pod.containers:
                listens = argument(container, '--port')
                says = [str(port.get('containerPort')) for port in mappings(container, 'ports')]
                if listens != says:
                    yield pod.owner, f'listens on {listens}, and says {says}'


@rule('mount')
def mounts(cluster: Cluster) -> Found:
    """What is mounted is there, and nothing is mounted over another."""
    for pod, container in each(cluster):
        there = {text(volume, 'name') for volume in mappings(pod.spec, 'volumes')}
        if kind(pod.owner) == 'StatefulSet':
            there |= {text(one, 'metadata', 'name') for one in mappings(pod.owner, 'spec', 'volumeClaimTemplates')}
        found = mappings(container, 'volumeMounts')
        if missing := [text(one, 'name') for one in found if text(one, 'name') not in there]:
            yield pod.owner, f'mounts {missing[0]!r}, which is no volume of it'
        counts = Counter(text(one, 'mountPath').rstrip('/') for one in found)
        if twice := [path for path, count in counts.items() if count > 1]:
            yield pod.owner, f'mounts two volumes at {twice[0]}'
        if any(not text(one, 'mountPath').startswith('/') for one in found):
            yield pod.owner, 'mounts a volume at a path that does not begin with /'


@rule('mount-missing')
def no_idle_volume(cluster: Cluster) -> Found:
    """A volume that nobody mounts is a mistake, and so is a home of models where nothing is mounted."""
    for pod in cluster.all_pods:
        volumes = [text(volume, 'name') for volume in mappings(pod.spec, 'volumes')]
        if twice := [called for called, count in Counter(volumes).items() if count > 1]:
            yield pod.owner, f'has two volumes {twice[0]!r}'
        claims = [text(one, 'metadata', 'name') for one in mappings(pod.owner, 'spec', 'volumeClaimTemplates')]
        used = {text(one, 'name') for container in pod.all_containers for one in mappings(container, 'volumeMounts')}
        if idle := [called for called in [*volumes, *claims] if called not in used]:
            yield pod.owner, f'mounts {idle[0]!r} nowhere'
        for container in pod.containers if pod.component != 'gateway' else []:
            home = cluster.environment(pod, container).get('HF_HOME', '')
            paths = [text(one, 'mountPath') for one in mappings(container, 'volumeMounts')]
            if home and not any(path and PurePosixPath(home).is_relative_to(path) for path in paths):
                yield pod.owner, f'looks for models in {home}, where nothing is mounted'


@rule('writable')
def what_is_written_is_mounted(cluster: Cluster) -> Found:
    """With a root file system for reading only, /tmp and the cache have to be volumes of a limited size."""
    for pod in cluster.all_pods:
        for container in pod.containers:
            paths = {text(mount, 'mountPath') for mount in mappings(container, 'volumeMounts')}
            wanted = {'/tmp'}
            settings = cluster.environment(pod, container)
            wanted |= {settings[key] for key in ('CLIPFLOW_CACHE', 'HOME') if key in settings and pod.is_stage}
            if missing := wanted - paths:
                yield pod.owner, f'{min(missing)} cannot be written'
        for volume in mappings(pod.spec, 'volumes'):
            if 'emptyDir' in volume and at(volume, 'emptyDir', 'sizeLimit') is None:
                yield pod.owner, f'the volume {text(volume, "name")!r} may fill the disk of its node'


@rule('image')
def pinned_images(cluster: Cluster) -> Found:
    """An image has a tag that stays, or a digest."""
    for pod, container in each(cluster):
        image = text(container, 'image')
        called, _, digest = image.partition('@')
        tag = called.rpartition('/')[2].partition(':')[2]
        if not re.fullmatch(r'sha256:[0-9a-f]{64}', digest) and (digest or tag in ('', 'latest')):
            yield pod.owner, f'{image!r} is another image tomorrow'
        policy = container.get('imagePullPolicy', 'IfNotPresent')
        if policy not in ('Always', 'IfNotPresent', 'Never'):
            yield pod.owner, f'{policy!r} is no imagePullPolicy'


@rule('container-name')
def container_names(cluster: Cluster) -> Found:
    """Each container has a name of its own."""
    for pod in cluster.all_pods:
        names = [text(container, 'name') for container in pod.all_containers]
        if (
            not names
            or len(set(names)) != len(names)
            or not all(re.fullmatch(r'[a-z0-9-]{1,63}', one) for one in names)
        ):
            yield pod.owner, f'{names} are no names of containers'


@rule('variable')
def variables(cluster: Cluster) -> Found:
    """A variable is there once, and its value is a text."""
    for pod, container in each(cluster):
        found = mappings(container, 'env')
        counts = Counter(text(entry, 'name') for entry in found)
        if twice := [key for key, count in counts.items() if count > 1 or not key]:
            yield pod.owner, f'the variable {twice[0]!r} is there twice'
        for entry in found:
            if ('value' in entry) == ('valueFrom' in entry) or not isinstance(entry.get('value', ''), str):
                yield pod.owner, f'{text(entry, "name")} needs either a text as value or valueFrom'
    for one in cluster.of('ConfigMap'):
        if wrong := [key for key, value in mapping(one, 'data').items() if not isinstance(value, str)]:
            yield one, f'{wrong[0]} is no text'


@rule('spread')
def pods_are_apart(cluster: Cluster) -> Found:
    """Pods of one part prefer different nodes; the constraint counts their own kind, and lets them start anyway."""
    for pod in cluster.pods:
        constraints = mappings(pod.spec, 'topologySpreadConstraints')
        if 'kubernetes.io/hostname' not in [text(one, 'topologyKey') for one in constraints]:
            yield pod.owner, 'does not care on which nodes its pods are'
        for one in constraints:
            keys = texts(one, 'matchLabelKeys')
            selector = at(one, 'labelSelector')
            if not mapping(selector, 'matchLabels').get(NAME_LABEL) or not matches(selector, pod.labels):
                yield pod.owner, 'a constraint does not count its own pods'
            elif any(key not in pod.labels for key in keys):
                yield pod.owner, 'a constraint goes by labels that the pods do not have'
            if text(one, 'whenUnsatisfiable') != 'ScheduleAnyway' or whole(one, 'maxSkew') < 1:
                yield pod.owner, 'a constraint keeps pods from starting'


def name_of(container: Any) -> str:
    """A container in a word."""
    return f'the container {text(container, "name")!r}'

"""What the restricted profile of pod security wants, and a little more."""

from .cluster import Cluster, Found, Pod, at, labels, mapping, mappings, name, rule, text, texts, whole
from .rules_pods import each, name_of

_VOLUMES = {
    'configMap',
    'csi',
    'downwardAPI',
    'emptyDir',
    'ephemeral',
    'persistentVolumeClaim',
    'projected',
    'secret',
}


def _is_restricted(cluster: Cluster, pod: Pod) -> bool:
    profiles = [labels(one) for one in cluster.of('Namespace') if name(one) == pod.namespace]
    return not any(one.get('pod-security.kubernetes.io/enforce') == 'privileged' for one in profiles)


@rule('host')
def nothing_of_the_host(cluster: Cluster) -> Found:
    """No network, processes, memory, ports or files of the node."""
    for pod in cluster.all_pods:
        if _is_restricted(cluster, pod):
            if shared := [key for key in ('hostNetwork', 'hostPID', 'hostIPC') if pod.spec.get(key)]:
                yield pod.owner, f'has {shared[0]}'
            for volume in mappings(pod.spec, 'volumes'):
                if not set(volume) - {'name'} <= _VOLUMES:
                    yield pod.owner, f'{text(volume, "name")!r} is a volume that the restricted profile forbids'
            for container in pod.all_containers:
                if any('hostPort' in port for port in mappings(container, 'ports')):
                    yield pod.owner, 'takes a port of the host'


@rule('privilege')
def no_privileges(cluster: Cluster) -> Found:
    """What the restricted profile wants of containers."""
    for pod, container in each(cluster):
        context = mapping(container, 'securityContext')
        if context.get('privileged') or context.get('allowPrivilegeEscalation') is not False:
            yield pod.owner, f'{name_of(container)} may gain privileges'
        added = set(texts(context, 'capabilities', 'add')) - {'NET_BIND_SERVICE'}
        if 'ALL' not in texts(context, 'capabilities', 'drop') or (added and _is_restricted(cluster, pod)):
            yield pod.owner, f'{name_of(container)} keeps capabilities'
        profile = at(context, 'seccompProfile', 'type') or at(pod.spec, 'securityContext', 'seccompProfile', 'type')
        if profile not in ('RuntimeDefault', 'Localhost'):
            yield pod.owner, f'{name_of(container)} may call all of the kernel'


@rule('user')
def not_root(cluster: Cluster) -> Found:
    """A user with a number, not root, also where the image says otherwise."""
    for pod, container in each(cluster):
        for key in ('runAsUser', 'runAsNonRoot'):
            value = at(container, 'securityContext', key)
            value = at(pod.spec, 'securityContext', key) if value is None else value
            if (key == 'runAsUser' and whole(value) < 1) or (key == 'runAsNonRoot' and value is not True):
                yield pod.owner, f'{key} is {value!r}'
    for pod in cluster.pods:
        claims = mappings(pod.owner, 'spec', 'volumeClaimTemplates')
        if claims and whole(pod.spec, 'securityContext', 'fsGroup') < 1:
            yield pod.owner, 'could not write its volume: there is no fsGroup'


@rule('root-file-system')
def read_only_root(cluster: Cluster) -> Found:
    """Nothing but volumes can be written."""
    for pod, container in each(cluster):
        if at(container, 'securityContext', 'readOnlyRootFilesystem') is not True:
            yield pod.owner, f'{name_of(container)} can write its own programs'

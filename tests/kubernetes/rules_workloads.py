"""Names, labels, references, and what belongs to a workload."""

import json
import re
from collections import Counter
from typing import Any

from .cluster import (
    WORKLOADS,
    Cluster,
    Found,
    at,
    kind,
    labels,
    mapping,
    mappings,
    matches,
    name,
    namespace,
    quantity,
    rule,
    text,
    texts,
    where,
    whole,
)

_KINDS = {
    'v1': {'Namespace', 'ServiceAccount', 'ConfigMap', 'Secret', 'Service', 'PersistentVolumeClaim'},
    'apps/v1': {*WORKLOADS},
    'batch/v1': {'Job'},
    'policy/v1': {'PodDisruptionBudget'},
    'networking.k8s.io/v1': {'NetworkPolicy', 'Ingress'},
    'autoscaling/v2': {'HorizontalPodAutoscaler'},
    'keda.sh/v1alpha1': {'ScaledObject'},
    'monitoring.coreos.com/v1': {'ServiceMonitor', 'PrometheusRule'},
}
_DNS_LABEL = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
_SERVICE_NAME = re.compile(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?')
_LABEL_PART = re.compile(r'([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?')
_ACCESS_MODES = {'ReadWriteOnce', 'ReadOnlyMany', 'ReadWriteMany', 'ReadWriteOncePod'}


@rule('kind')
def known_kind(cluster: Cluster) -> Found:
    """Kinds that are not in the table are misspelt, or of a removed version."""
    for one in cluster.objects:
        if kind(one) not in _KINDS.get(text(one, 'apiVersion'), set()):
            yield one, f'{one.get("apiVersion")} has no kind {one.get("kind")}, as far as we use it'


@rule('name')
def valid_name(cluster: Cluster) -> Found:
    """Lower case, digits, - and, but for Services, dots."""
    for one in cluster.objects:
        parts = [name(one)] if kind(one) in ('Service', 'Namespace') else name(one).split('.')
        pattern = _SERVICE_NAME if kind(one) == 'Service' else _DNS_LABEL
        if len(name(one)) > 253 or not all(pattern.fullmatch(part) for part in parts):
            yield one, f'{name(one)!r} is no name that Kubernetes allows'


@rule('label')
def valid_label(cluster: Cluster) -> Found:
    """Up to 63 letters, digits, - _ . and a letter or digit at both ends."""
    for one in cluster.objects:
        sets = [
            labels(one),
            labels(at(one, 'spec', 'template')),
            mapping(one, 'spec', 'selector', 'matchLabels'),
            mapping(one, 'spec', 'selector') if kind(one) == 'Service' else {},
        ]
        for key, value in [pair for found in sets for pair in found.items()]:
            prefix, _, short = key.rpartition('/')
            good_key = bool(short) and _LABEL_PART.fullmatch(short) is not None
            good_prefix = not prefix or all(_DNS_LABEL.fullmatch(part) for part in prefix.split('.'))
            if not good_key or not good_prefix or not isinstance(value, str) or not _LABEL_PART.fullmatch(value):
                yield one, f'{key}={value!r} is no label that Kubernetes allows'
                break


@rule('twice')
def object_twice(cluster: Cluster) -> Found:
    """The second of two would replace the first."""
    found = Counter((kind(one), namespace(one), name(one)) for one in cluster.objects)
    for one in cluster.objects:
        if found.pop((kind(one), namespace(one), name(one)), 1) > 1:
            yield one, 'is there twice'


@rule('namespace')
def own_namespace(cluster: Cluster) -> Found:
    """Everything is in a namespace that is made here."""
    made = {name(one) for one in cluster.of('Namespace')}
    for one in cluster.objects:
        if kind(one) != 'Namespace' and namespace(one) not in made:
            yield one, f'is in the namespace {namespace(one)}, which is not made here'


@rule('namespace-profile')
def profile(cluster: Cluster) -> Found:
    """A namespace says how strict it is."""
    for one in cluster.of('Namespace'):
        if labels(one).get('pod-security.kubernetes.io/enforce') not in ('restricted', 'baseline', 'privileged'):
            yield one, 'enforces no profile of pod security'


@rule('selector')
def selector_and_template(cluster: Cluster) -> Found:
    """A workload finds its own pods."""
    for pod in cluster.pods:
        selector = at(pod.owner, 'spec', 'selector')
        if not mapping(selector, 'matchLabels') or not matches(selector, pod.labels):
            yield pod.owner, 'selects other labels than those of its own pods'


@rule('selector-overlap')
def selectors_apart(cluster: Cluster) -> Found:
    """A workload finds nobody else's pods."""
    for pod in cluster.pods:
        selector = at(pod.owner, 'spec', 'selector')
        others = [other for other in cluster.selected(selector, pod.namespace) if other.owner is not pod.owner]
        if mapping(selector, 'matchLabels') and others:
            yield pod.owner, f'selects pods of {where(others[0].owner)} too'


@rule('disruption')
def disruption_budget(cluster: Cluster) -> Found:
    """Exactly one of two ways to say it, about exactly one workload, and an eviction has to be possible."""
    for one in cluster.of('PodDisruptionBudget'):
        given = [key for key in ('minAvailable', 'maxUnavailable') if at(one, 'spec', key) is not None]
        if len(given) != 1:
            yield one, 'needs exactly one of minAvailable and maxUnavailable'
            continue
        chosen = cluster.selected(at(one, 'spec', 'selector'), namespace(one))
        if len(chosen) != 1:
            yield one, f'selects the pods of {len(chosen)} workloads'
            continue
        least = cluster.least(chosen[0].owner)
        value = _of(at(one, 'spec', given[0]), least)
        if (value if given[0] == 'maxUnavailable' else least - value) < 1:
            yield one, f'allows no eviction while there are {least} pods'


def _of(value: Any, total: int) -> int:
    """A number, or a share of a total, rounded up."""
    if isinstance(value, str) and re.fullmatch(r'\d+%', value):
        return -(-int(value[:-1]) * total // 100)
    return value if isinstance(value, int) else 0


@rule('disruption-missing')
def every_workload_has_a_budget(cluster: Cluster) -> Found:
    """Otherwise a drain may take all pods at once."""
    for pod in cluster.pods:
        budgets = cluster.of('PodDisruptionBudget')
        here = [one for one in budgets if namespace(one) == pod.namespace]
        if not any(matches(at(one, 'spec', 'selector'), pod.labels) for one in here):
            yield pod.owner, 'has no PodDisruptionBudget'


@rule('reference')
def references(cluster: Cluster) -> Found:
    """What pods refer to is here, or known to be in the cluster."""
    for pod in cluster.all_pods:
        wanted = [('ServiceAccount', text(pod.spec, 'serviceAccountName'), False)]
        for volume in mappings(pod.spec, 'volumes'):
            wanted += [
                ('ConfigMap', text(volume, 'configMap', 'name'), at(volume, 'configMap', 'optional')),
                ('Secret', text(volume, 'secret', 'secretName'), at(volume, 'secret', 'optional')),
                ('PersistentVolumeClaim', text(volume, 'persistentVolumeClaim', 'claimName'), False),
            ]
        for container in pod.all_containers:
            for source in [*mappings(container, 'envFrom'), *(at(e, 'valueFrom') for e in mappings(container, 'env'))]:
                for key, what in _SOURCES.items():
                    wanted.append((what, text(source, key, 'name'), at(source, key, 'optional')))
        for what, called, optional in wanted:
            if called and optional is not True and not cluster.has(what, called, pod.namespace):
                yield pod.owner, f'refers to {what}/{called}, which is not there'


_SOURCES = {
    'configMapRef': 'ConfigMap',
    'secretRef': 'Secret',
    'configMapKeyRef': 'ConfigMap',
    'secretKeyRef': 'Secret',
}


@rule('reference-key')
def keys_of_references(cluster: Cluster) -> Found:
    """A single value is there, too."""
    for pod in cluster.all_pods:
        for container in pod.all_containers:
            for entry in mappings(container, 'env'):
                reference = mapping(entry, 'valueFrom', 'configMapKeyRef')
                source = cluster.get('ConfigMap', text(reference, 'name'), pod.namespace)
                wanted = source is not None and reference.get('optional') is not True
                if wanted and text(reference, 'key') not in mapping(source, 'data'):
                    yield pod.owner, f'{where(source)} has no {reference.get("key")!r}'


@rule('secret')
def no_secret_in_the_open(cluster: Cluster) -> Found:
    """Secrets do not come with manifests."""
    for one in cluster.of('Secret'):
        yield one, 'is a secret among manifests'
    secret = re.compile(r'(?i)(_KEYS?|TOKEN|PASSWORD|SECRET)$')
    for pod in cluster.all_pods:
        for container in pod.all_containers:
            for key, value in cluster.environment(pod, container).items():
                if value and secret.search(key):
                    yield pod.owner, f'{key} stands there for everybody to read'


@rule('strategy')
def update_goes_on(cluster: Cluster) -> Found:
    """An update that may neither add nor take away a pod never begins."""
    for pod in cluster.pods:
        if kind(pod.owner) == 'Deployment':
            update = mapping(pod.owner, 'spec', 'strategy', 'rollingUpdate')
            if all(update.get(key) in (0, '0%') for key in ('maxSurge', 'maxUnavailable')):
                yield pod.owner, 'allows neither a pod more nor one less'


@rule('strategy-zero')
def no_outage_by_an_update(cluster: Cluster) -> Found:
    """An update waits for the new pod before it ends an old one, but where devices are short."""
    for pod in cluster.pods:
        fewer = at(pod.owner, 'spec', 'strategy', 'rollingUpdate', 'maxUnavailable')
        if kind(pod.owner) == 'Deployment' and not _devices(pod) and fewer not in (0, '0%'):
            yield pod.owner, 'may end a pod before the new one is ready'


@rule('strategy-device')
def no_spare_device(cluster: Cluster) -> Found:
    """A surplus pod would wait for a card for ever."""
    for pod in cluster.pods:
        more = at(pod.owner, 'spec', 'strategy', 'rollingUpdate', 'maxSurge')
        if kind(pod.owner) == 'Deployment' and _devices(pod) and more not in (0, '0%'):
            yield pod.owner, 'starts a pod more in an update, for which there is no device'


def _devices(pod: Any) -> list[str]:
    return [key for one in pod.containers for key in mapping(one, 'resources', 'limits') if '/' in key]


@rule('min-ready')
def replicas_are_known_before_others_go(cluster: Cluster) -> Found:
    """A gateway finds a new replica when its connections come of age (30 s); old ones have to stay so long."""
    for pod in cluster.pods:
        if pod.is_stage and kind(pod.owner) == 'Deployment':
            drains = [cluster.environment(pod, one).get('CLIPFLOW_DRAIN_SECONDS', '0') for one in pod.containers]
            # A deployment that does not drain for long is one where nobody minds.
            long = any(float(value) >= 10 for value in drains if re.fullmatch(r'\d+(\.\d+)?', value))
            if long and whole(pod.owner, 'spec', 'minReadySeconds') < 35:
                yield pod.owner, 'ends old replicas before gateways know new ones'


@rule('volume-shared')
def one_writer_a_volume(cluster: Cluster) -> Found:
    """A volume for one node cannot be mounted by two pods on two nodes."""
    for pod in cluster.pods:
        for claim in cluster.claims(pod):
            modes = texts(claim, 'spec', 'accessModes')
            surge = at(pod.owner, 'spec', 'strategy', 'rollingUpdate', 'maxSurge')
            several = pod.replicas > 1 or (at(pod.owner, 'spec', 'strategy', 'type') != 'Recreate' and surge != 0)
            if kind(pod.owner) == 'Deployment' and several and not {'ReadOnlyMany', 'ReadWriteMany'} & set(modes):
                yield pod.owner, f'several pods would mount {where(claim)}, which is for one node'


@rule('volume-mode')
def known_access_mode(cluster: Cluster) -> Found:
    """Kubernetes knows four, and a claim asks for storage."""
    for one in cluster.of('PersistentVolumeClaim', 'StatefulSet'):
        for claim in [one] if kind(one) == 'PersistentVolumeClaim' else mappings(one, 'spec', 'volumeClaimTemplates'):
            modes = texts(claim, 'spec', 'accessModes')
            if not modes or not set(modes) <= _ACCESS_MODES:
                yield one, f'{modes} are no modes of access'
            if not quantity(at(claim, 'spec', 'resources', 'requests', 'storage')):
                yield one, 'a claim asks for no storage'


@rule('stateful-service')
def stateful_set_has_its_service(cluster: Cluster) -> Found:
    """A StatefulSet names the headless Service of its pods, whose address is told before they are ready."""
    for one in cluster.of('StatefulSet'):
        service = cluster.get('Service', text(one, 'spec', 'serviceName'), namespace(one))
        if service is None or at(service, 'spec', 'clusterIP') != 'None':
            yield one, 'names no headless Service'
        elif not any(pod.owner is one for pod in cluster.behind(service)):
            yield one, f'{where(service)} does not select its pods'
        elif at(service, 'spec', 'publishNotReadyAddresses') is not True:
            yield one, f'{where(service)} tells no address before it is ready, and gRPC would wait longer and longer'


@rule('stateful-retain')
def documents_stay(cluster: Cluster) -> Found:
    """Deleting a StatefulSet deletes no documents."""
    for one in cluster.of('StatefulSet'):
        policy = mapping(one, 'spec', 'persistentVolumeClaimRetentionPolicy')
        if policy.get('whenDeleted') != 'Retain' or policy.get('whenScaled') != 'Retain':
            yield one, 'does not keep its volumes'


@rule('job')
def jobs_end(cluster: Cluster) -> Found:
    """A Job's pod may not be started again once it has done its work."""
    for one in cluster.of('Job'):
        if at(one, 'spec', 'template', 'spec', 'restartPolicy') not in ('OnFailure', 'Never'):
            yield one, 'never ends: its restartPolicy is neither OnFailure nor Never'


@rule('one-writer')
def one_process_a_workspace(cluster: Cluster) -> Found:
    """An indexer is one pod, with a volume of its own at its workspace; one over Milvus keeps nothing."""
    for pod in cluster.pods:
        if pod.component == 'indexer':
            elsewhere = [cluster.environment(pod, one).get('CLIPFLOW_MILVUS_URI') for one in pod.containers]
            if all(elsewhere) and elsewhere:
                continue
            if kind(pod.owner) != 'StatefulSet' or pod.replicas != 1 or cluster.scalers(pod.owner):
                yield pod.owner, 'an indexer is a StatefulSet of one pod'
                continue
            claims = {text(claim, 'metadata', 'name') for claim in mappings(pod.owner, 'spec', 'volumeClaimTemplates')}
            for container in pod.containers:
                paths = {text(m, 'mountPath') for m in mappings(container, 'volumeMounts') if text(m, 'name') in claims}
                if cluster.environment(pod, container).get('CLIPFLOW_WORKSPACE') not in paths:
                    yield pod.owner, 'its workspace is not on its volume'


@rule('shards')
def all_shards(cluster: Cluster) -> Found:
    """The indexers are shards 0 to n - 1, and each knows n."""
    indexers = [pod for pod in cluster.pods if pod.component == 'indexer']
    found = []
    for pod in indexers:
        given = argument(pod.containers[0] if pod.containers else {}, '--uses-with')
        settings = _json(given[0]) if given else {}
        found.append((whole(settings, 'shard'), whole(settings, 'shards', default=1)))
    if sorted(found) != [(number, len(found)) for number in range(len(found))]:
        for pod, (number, of) in zip(indexers, found, strict=True):
            yield pod.owner, f'is shard {number} of {of}, and there are {len(found)} indexers'


@rule('model')
def one_model(cluster: Cluster) -> Found:
    """All stages have the same model."""
    ours = [pod for pod in cluster.pods if pod.is_stage]
    found = [[cluster.environment(pod, one).get('CLIPFLOW_MODEL', '') for one in pod.containers] for pod in ours]
    usual = Counter(model for models in found for model in models).most_common(1)
    for pod, models in zip(ours, found, strict=True):
        if any(model != usual[0][0] for model in models):
            yield pod.owner, f'has the model {models[0]!r}, others have {usual[0][0]!r}'


@rule('account')
def account_without_token(cluster: Cluster) -> Found:
    """Each workload has an account of its own, and no token of it."""
    users = Counter((pod.namespace, text(pod.spec, 'serviceAccountName')) for pod in cluster.all_pods)
    for pod in cluster.all_pods:
        account = text(pod.spec, 'serviceAccountName')
        components = {one.component for one in cluster.all_pods if text(one.spec, 'serviceAccountName') == account}
        if not account or account == 'default' or (users[pod.namespace, account] > 1 and len(components) > 1):
            yield pod.owner, 'has no ServiceAccount of its own'
        if at(pod.spec, 'automountServiceAccountToken') is not False:
            yield pod.owner, 'mounts the token of its ServiceAccount'
    for one in cluster.of('ServiceAccount'):
        if one.get('automountServiceAccountToken') is not False:
            yield one, 'gives its token to pods'


def argument(container: Any, option: str) -> list[str]:
    """What stands behind the last of an option among the arguments of a container."""
    given = texts(container, 'args')
    places = [place for place, value in enumerate(given) if value == option]
    found: list[str] = []
    for value in given[places[-1] + 1 :] if places else []:
        if value.startswith('--'):
            break
        found.append(value)
    return found


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None

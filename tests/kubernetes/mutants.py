"""Mistakes, planted one at a time into manifests that have none."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .cluster import kind, name
from .conftest import Objects

DROP = object()
"""Take away what stands there."""
T, S = ('spec', 'template'), ('spec', 'template', 'spec')
C = (*S, 'containers', 0)
COMPONENT = 'app.kubernetes.io/component'
ENC, GATE, PRE, SHARD, RANK = (
    'Deployment/encoder',
    'Deployment/gateway',
    'Deployment/preprocessor',
    'StatefulSet/indexer-1',
    'Deployment/ranker',
)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        rule: that has to notice it, and no other.
        what: the object, `Kind/name`; names that end with a hash are given without.
        path: where in it.
        value: what stands there instead; a function gets what stood there; `DROP` takes it away.
        chosen: the set of manifests.
    """

    rule: str
    what: str
    path: tuple[str | int, ...]
    value: Any
    chosen: str = 'full'

    @property
    def title(self) -> str:
        """For the list of tests."""
        shown = 'dropped' if self.value is DROP else 'changed' if callable(self.value) else self.value
        return f'{self.rule}: {self.what} {".".join(map(str, self.path[-2:]))} {shown}'[:120]

    def plant(self, good: Objects) -> Objects:
        """A copy of good manifests with this mistake."""
        objects = deepcopy(good)
        target = next(one for one in objects if self._is(one))
        if not self.path:
            objects.remove(target)
            return objects if self.value is DROP else [*objects, *self.value(target)]
        for step in self.path[:-1]:
            target = target.setdefault(step, {}) if isinstance(target, dict) else target[step]
        last: Any = self.path[-1]
        if self.value is DROP:
            del target[last]
        else:
            old = target.get(last) if isinstance(target, dict) else target[last]
            target[last] = self.value(deepcopy(old)) if callable(self.value) else self.value
        return objects

    def _is(self, one: Any) -> bool:
        wanted_kind, _, wanted = self.what.partition('/')
        return kind(one) == wanted_kind and (name(one) == wanted or name(one).startswith(f'{wanted}-'))


def both(*also: Any) -> Callable[[Any], Any]:
    """The list that stood there, and more."""
    return lambda old: [*(old or []), *also]


def variable(called: str, **given: Any) -> Callable[[Any], Any]:
    """The variables that stood there, one of them anew."""
    return lambda old: [*(one for one in old or [] if one['name'] != called), {'name': called, **given}]


def without(called: str) -> Callable[[Any], Any]:
    """The list that stood there, but for the entry of that name."""
    return lambda old: [one for one in old if one['name'] != called]


def text(old: str, new: str) -> Callable[[Any], Any]:
    """The same list of arguments, one of them with another text."""

    def change(found: Any) -> Any:
        assert any(old in value for value in found)
        return [value.replace(old, new) for value in found]

    return change


def again(**changes: Any) -> Callable[[Any], Any]:
    """An object twice, the second one with another name or so."""
    return lambda old: [old, {**deepcopy(old), 'metadata': {**old['metadata'], **changes}}]


def copied(selector: dict[str, str]) -> Callable[[Any], Any]:
    """An object twice, the second one with another name and selector."""
    return lambda old: [
        old,
        {**old, 'metadata': {**old['metadata'], 'name': 'more'}, 'spec': {**old['spec'], 'selector': selector}},
    ]


POLICY = 'NetworkPolicy/'
HPA, SCALED = 'HorizontalPodAutoscaler/encoder', 'ScaledObject/encoder'
METRIC = ('spec', 'metrics', 0)
ALERT = ('spec', 'groups', 0, 'rules', 0)

MUTANTS = [
    # names, labels, kinds
    Mutant('kind', 'Service/encoder', ('apiVersion',), 'v2'),
    Mutant('kind', 'PodDisruptionBudget/encoder', ('apiVersion',), 'policy/v1beta1', 'base'),
    Mutant('kind', 'ConfigMap/clipflow-dashboard', ('kind',), 'ConfigMaps'),
    Mutant('kind', 'Ingress/gateway-http', ('kind',), 'Ingres'),
    Mutant('name', 'PodDisruptionBudget/encoder', ('metadata', 'name'), 'Encoder'),
    Mutant('name', 'PodDisruptionBudget/encoder', ('metadata', 'name'), 'enc_oder'),
    Mutant('name', 'PodDisruptionBudget/encoder', ('metadata', 'name'), '-encoder'),
    Mutant('name', 'PodDisruptionBudget/encoder', ('metadata', 'name'), 'e' * 254),
    Mutant('label', ENC, ('metadata', 'labels', 'note'), 'two words'),
    Mutant('label', ENC, ('metadata', 'labels', 'note'), 'x' * 64),
    Mutant('label', ENC, ('metadata', 'labels', 'bad key'), 'x'),
    Mutant('label', ENC, (*T, 'metadata', 'labels', 'number'), 3),
    Mutant('twice', 'ServiceAccount/encoder', (), lambda old: [old, deepcopy(old)]),
    Mutant('twice', 'NetworkPolicy/dns', (), lambda old: [old, deepcopy(old)]),
    Mutant('namespace', 'ServiceAccount/encoder', (), again(namespace='elsewhere')),
    Mutant('namespace', 'ConfigMap/clipflow-dashboard', ('metadata', 'namespace'), DROP),
    Mutant(
        'namespace-profile',
        'Namespace/clipflow',
        ('metadata', 'labels', 'pod-security.kubernetes.io/enforce'),
        'strict',
    ),
    # workloads
    Mutant('selector', ENC, ('spec', 'selector', 'matchLabels', 'app'), 'encoder'),
    Mutant('selector', ENC, ('spec', 'selector', 'matchLabels', COMPONENT), 'encode'),
    Mutant('selector-overlap', ENC, ('spec', 'selector', 'matchLabels'), {'app.kubernetes.io/name': 'clipflow'}),
    Mutant('selector-overlap', SHARD, ('spec', 'selector', 'matchLabels', 'clipflow/shard'), DROP),
    Mutant('disruption', 'PodDisruptionBudget/encoder', ('spec', 'minAvailable'), 1),
    Mutant('disruption', 'PodDisruptionBudget/encoder', ('spec', 'maxUnavailable'), 0),
    Mutant('disruption', 'PodDisruptionBudget/encoder', ('spec', 'maxUnavailable'), '0%'),
    Mutant('disruption', 'PodDisruptionBudget/encoder', ('spec', 'maxUnavailable'), DROP),
    Mutant(
        'disruption',
        'PodDisruptionBudget/indexer-1',
        ('spec',),
        lambda old: {'minAvailable': 1, 'selector': old['selector']},
    ),
    Mutant(
        'disruption',
        'PodDisruptionBudget/encoder',
        ('spec',),
        lambda old: {'minAvailable': 2, 'selector': old['selector']},
    ),
    Mutant('disruption-missing', 'PodDisruptionBudget/ranker', (), DROP),
    Mutant('disruption-missing', 'PodDisruptionBudget/indexer-2', (), DROP),
    Mutant('reference', ENC, (*C, 'envFrom', 0, 'configMapRef', 'name'), 'settings', 'dev'),
    Mutant('reference', ENC, (*C, 'env'), variable('X', valueFrom={'secretKeyRef': {'name': 'no', 'key': 'x'}})),
    Mutant('reference', 'PersistentVolumeClaim/models', (), DROP),
    Mutant('reference', 'ServiceAccount/encoder', (), DROP),
    Mutant(
        'reference-key',
        ENC,
        (*C, 'env'),
        variable('X', valueFrom={'configMapKeyRef': {'name': 'clipflow-dashboard', 'key': 'no.json'}}),
    ),
    Mutant('secret', GATE, (*C, 'env'), variable('CLIPFLOW_API_KEYS', value='abc:write')),
    Mutant('secret', ENC, (*C, 'env'), variable('HF_TOKEN', value='hf_abc')),
    Mutant('secret', 'ConfigMap/clipflow-settings', ('data', 'CLIPFLOW_API_KEY'), 'abc'),
    Mutant('secret', 'ConfigMap/clipflow-dashboard', (), lambda old: [old, {**old, 'kind': 'Secret'}]),
    Mutant('strategy', PRE, ('spec', 'strategy', 'rollingUpdate', 'maxSurge'), 0),
    Mutant('strategy', PRE, ('spec', 'strategy', 'rollingUpdate'), {'maxSurge': '0%', 'maxUnavailable': '0%'}),
    Mutant('strategy', ENC, ('spec', 'strategy', 'rollingUpdate', 'maxUnavailable'), 0),
    Mutant('strategy-zero', PRE, ('spec', 'strategy', 'rollingUpdate', 'maxUnavailable'), 1),
    Mutant('strategy-zero', GATE, ('spec', 'strategy'), {'type': 'Recreate'}),
    Mutant('strategy-zero', RANK, ('spec', 'strategy'), DROP),
    Mutant('strategy-device', ENC, ('spec', 'strategy', 'rollingUpdate', 'maxSurge'), 1),
    Mutant('min-ready', PRE, ('spec', 'minReadySeconds'), DROP),
    Mutant('min-ready', ENC, ('spec', 'minReadySeconds'), 5),
    Mutant('volume-shared', 'PersistentVolumeClaim/models', ('spec', 'accessModes'), ['ReadWriteOnce']),
    Mutant('volume-mode', 'PersistentVolumeClaim/models', ('spec', 'accessModes'), ['ReadOnlyMany', 'ReadMany']),
    Mutant('volume-mode', SHARD, ('spec', 'volumeClaimTemplates', 0, 'spec', 'accessModes'), ['readWriteOnce']),
    Mutant('volume-mode', SHARD, ('spec', 'volumeClaimTemplates', 0, 'spec', 'resources'), {}),
    Mutant('stateful-service', SHARD, ('spec', 'serviceName'), 'indexer'),
    Mutant('stateful-service', SHARD, ('spec', 'serviceName'), 'indexer-0'),
    Mutant('stateful-service', SHARD, ('spec', 'serviceName'), DROP),
    Mutant('stateful-service', 'Service/indexer-1', ('spec', 'publishNotReadyAddresses'), DROP),
    Mutant('stateful-retain', SHARD, ('spec', 'persistentVolumeClaimRetentionPolicy'), DROP),
    Mutant('stateful-retain', SHARD, ('spec', 'persistentVolumeClaimRetentionPolicy', 'whenScaled'), 'Delete'),
    Mutant('job', 'Job/reindex-switch', (*S, 'restartPolicy'), 'Always', 'reindex'),
    Mutant('job', 'Job/reindex-prepare', (*S, 'restartPolicy'), DROP, 'reindex'),
    Mutant(
        'reference', 'Job/reindex-switch', (*S, 'volumes', 0, 'persistentVolumeClaim', 'claimName'), 'data', 'reindex'
    ),
    Mutant('user', 'Job/reindex-prepare', (*S, 'securityContext', 'runAsUser'), 0, 'reindex'),
    Mutant('account', 'Job/reindex-prepare', (*S, 'serviceAccountName'), 'indexer', 'reindex'),
    Mutant('one-writer', SHARD, ('spec', 'replicas'), 2),
    Mutant('one-writer', SHARD, (*C, 'env'), variable('CLIPFLOW_WORKSPACE', value='/tmp/data')),
    Mutant('one-writer', SHARD, (*C, 'env'), without('CLIPFLOW_WORKSPACE')),
    Mutant('shards', SHARD, (*C, 'args'), text('"shard": 1', '"shard": 2')),
    Mutant('shards', SHARD, (*C, 'args'), text('"shards": 3', '"shards": 4')),
    Mutant('shards', SHARD, (*C, 'args'), text('{"shard', '{shard')),
    Mutant(
        'one-writer',
        'Deployment/indexer',
        (*C, 'env'),
        lambda env: [entry for entry in env if entry['name'] != 'CLIPFLOW_MILVUS_URI'],
        'milvus',
    ),
    Mutant('shards', 'StatefulSet/indexer', (*C, 'args'), both('--uses-with', '{"shard": 0, "shards": 2}'), 'base'),
    Mutant('model', ENC, (*C, 'env'), variable('CLIPFLOW_MODEL', value='ViT-L-14::openai')),
    Mutant('model', SHARD, (*C, 'env'), variable('CLIPFLOW_MODEL', value='ViT-L-14::openai')),
    Mutant('account', ENC, (*S, 'serviceAccountName'), 'gateway'),
    Mutant('account', ENC, (*S, 'serviceAccountName'), DROP),
    Mutant('account', ENC, (*S, 'automountServiceAccountToken'), True),
    Mutant('account', ENC, (*S, 'automountServiceAccountToken'), DROP),
    Mutant('account', 'ServiceAccount/encoder', ('automountServiceAccountToken',), DROP),
    # resources
    Mutant('quantity', ENC, (*C, 'resources', 'limits', 'memory'), '4GiB'),
    Mutant('quantity', ENC, (*C, 'resources', 'requests', 'cpu'), 'one'),
    Mutant('quantity', ENC, (*S, 'volumes', 0, 'emptyDir', 'sizeLimit'), '1 Gi', 'base'),
    Mutant('resources', PRE, (*C, 'resources', 'limits', 'memory'), DROP),
    Mutant('resources', PRE, (*C, 'resources', 'requests'), {'cpu': '1'}),
    Mutant('resources-order', ENC, (*C, 'resources', 'requests', 'memory'), '64Gi'),
    Mutant('resources-order', ENC, (*C, 'resources', 'requests', 'cpu'), '4001m'),
    Mutant('device', ENC, (*C, 'resources', 'limits', 'nvidia.com/gpu'), '0.5'),
    Mutant('device', ENC, (*C, 'resources', 'requests', 'nvidia.com/gpu'), '2'),
    Mutant('device', RANK, (*C, 'resources', 'requests', 'nvidia.com/gpu'), '1'),
    Mutant('device', 'Deployment/ipu-worker', (*C, 'resources', 'limits', 'graphcore.ai/ipu'), '500m', 'ipu'),
    Mutant(
        'resource-field',
        RANK,
        (*C, 'env'),
        variable('CLIPFLOW_THREADS', valueFrom={'resourceFieldRef': {'containerName': 'x', 'resource': 'limits.cpu'}}),
    ),
    Mutant(
        'resource-field',
        RANK,
        (*C, 'env'),
        variable('OMP_NUM_THREADS', valueFrom={'resourceFieldRef': {'resource': 'limits.cpus'}}),
    ),
    Mutant('threads', ENC, (*C, 'env'), without('CLIPFLOW_THREADS')),
    Mutant('threads', SHARD, (*C, 'env'), without('OMP_NUM_THREADS')),
    # probes
    Mutant('probe', 'Deployment/triton', (*C, 'startupProbe'), DROP, 'served'),
    Mutant('probe', 'Deployment/triton', (*C, 'livenessProbe', 'httpGet'), DROP, 'served'),
    Mutant('probe', ENC, (*C, 'livenessProbe', 'exec'), {'command': ['true']}),
    Mutant('probe', GATE, (*C, 'readinessProbe', 'tcpSocket'), {'port': 'http'}),
    Mutant('probe-port', ENC, (*C, 'startupProbe', 'grpc', 'port'), 8081),
    Mutant('probe-port', ENC, (*C, 'startupProbe', 'grpc', 'port'), 'grpc'),
    Mutant('probe-port', GATE, (*C, 'readinessProbe', 'httpGet', 'port'), 'web'),
    Mutant('probe-port', GATE, (*C, 'livenessProbe', 'httpGet', 'port'), DROP),
    Mutant('probe-success', ENC, (*C, 'livenessProbe', 'successThreshold'), 2),
    Mutant('probe-success', GATE, (*C, 'startupProbe', 'successThreshold'), 3),
    Mutant(
        'probe-liveness', 'Deployment/triton', (*C, 'livenessProbe', 'httpGet', 'path'), '/v2/health/ready', 'served'
    ),
    Mutant('probe-truth', ENC, (*C, 'startupProbe', 'grpc', 'service'), 'liveness'),
    Mutant('probe-truth', ENC, (*C, 'readinessProbe', 'grpc', 'service'), 'ready'),
    Mutant('probe-truth', GATE, (*C, 'startupProbe', 'httpGet', 'path'), '/readyz'),
    Mutant('probe-truth', GATE, (*C, 'readinessProbe', 'httpGet', 'path'), '/livez'),
    Mutant('probe-patience', ENC, (*C, 'startupProbe', 'failureThreshold'), 3),
    Mutant('probe-patience', SHARD, (*C, 'startupProbe', 'periodSeconds'), 1),
    Mutant('probe-patience', GATE, (*C, 'startupProbe', 'failureThreshold'), DROP),
    Mutant('grace', ENC, (*S, 'terminationGracePeriodSeconds'), DROP),
    Mutant('grace', GATE, (*S, 'terminationGracePeriodSeconds'), 140),
    Mutant('grace', 'ConfigMap/clipflow-settings', ('data', 'CLIPFLOW_REQUEST_TIMEOUT'), '600'),
    # ports
    Mutant('port', 'Deployment/triton', (*C, 'ports'), both({'name': 'more', 'containerPort': 70000}), 'served'),
    Mutant(
        'port', 'Deployment/triton', (*C, 'ports'), both({'name': 'much-too-long-name', 'containerPort': 9}), 'served'
    ),
    Mutant('port', 'Deployment/triton', (*C, 'ports'), both({'name': 'Upper', 'containerPort': 9}), 'served'),
    Mutant('port', 'Deployment/triton', (*C, 'ports'), both({'name': '9000', 'containerPort': 9}), 'served'),
    Mutant('port', 'Deployment/triton', (*C, 'ports'), both({'name': 'again', 'containerPort': 8001}), 'served'),
    Mutant('port-argument', ENC, (*C, 'args'), text('8080', '8090')),
    Mutant('port-argument', GATE, (*C, 'args'), lambda old: [one for one in old if one != '51000']),
    Mutant('port-argument', GATE, (*C, 'ports'), both({'name': 'more', 'containerPort': 9090})),
    # volumes
    Mutant('mount', ENC, (*C, 'volumeMounts'), both({'name': 'none', 'mountPath': '/none'})),
    Mutant('mount', ENC, (*C, 'volumeMounts'), both({'name': 'cache', 'mountPath': '/tmp/'})),
    Mutant('mount', ENC, (*C, 'volumeMounts'), both({'name': 'cache', 'mountPath': 'more'})),
    Mutant('mount-missing', ENC, (*S, 'volumes'), both({'name': 'idle', 'emptyDir': {'sizeLimit': '1Gi'}})),
    Mutant('mount-missing', ENC, (*C, 'volumeMounts'), without('models')),
    Mutant('mount-missing', 'ConfigMap/clipflow-settings', ('data', 'HF_HOME'), '/hub'),
    Mutant(
        'mount-missing',
        'Job/reindex-prepare',
        S,
        lambda old: {
            **old,
            'volumes': without('models')(old['volumes']),
            'containers': [
                {**one, 'volumeMounts': without('models')(one['volumeMounts'])} for one in old['containers']
            ],
        },
        'changing',
    ),
    Mutant(
        'mount-missing',
        SHARD,
        ('spec', 'volumeClaimTemplates'),
        lambda old: [*old, {**old[0], 'metadata': {'name': 'more'}}],
    ),
    Mutant('writable', 'ConfigMap/clipflow-settings', ('data', 'CLIPFLOW_CACHE'), '/root/.cache'),
    Mutant('writable', 'ConfigMap/clipflow-settings', ('data', 'HOME'), '/home/clipflow'),
    Mutant(
        'writable',
        ENC,
        (*S, 'volumes'),
        lambda old: [one | ({'emptyDir': {}} if one['name'] == 'tmp' else {}) for one in old],
    ),
    # images and variables
    Mutant('image', ENC, (*C, 'image'), 'registry.example.com:5000/clipflow/encoder'),
    Mutant('image', ENC, (*C, 'image'), 'clipflow-encoder:latest'),
    Mutant('image', ENC, (*C, 'image'), 'clipflow-encoder@sha256:123'),
    Mutant('image', ENC, (*C, 'imagePullPolicy'), 'always'),
    Mutant('container-name', 'Deployment/triton', (*C, 'name'), 'Triton', 'served'),
    Mutant('variable', ENC, (*C, 'env'), both({'name': 'CLIPFLOW_DEVICE', 'value': 'cpu'})),
    Mutant('variable', ENC, (*C, 'env'), variable('CLIPFLOW_BATCH_SIZE', value=32)),
    Mutant('variable', ENC, (*C, 'env'), variable('CLIPFLOW_BATCH_SIZE')),
    Mutant('variable', 'ConfigMap/clipflow-settings', ('data', 'CLIPFLOW_LOG_REQUESTS'), True),
    # security
    Mutant('host', ENC, (*S, 'hostNetwork'), True),
    Mutant('host', ENC, (*S, 'hostIPC'), True),
    Mutant(
        'host',
        ENC,
        (*S, 'volumes'),
        lambda old: [{'name': 'tmp', 'hostPath': {'path': '/tmp'}} if one['name'] == 'tmp' else one for one in old],
    ),
    Mutant('host', GATE, (*C, 'ports', 0, 'hostPort'), 51000),
    Mutant('privilege', ENC, (*C, 'securityContext', 'allowPrivilegeEscalation'), DROP),
    Mutant('privilege', ENC, (*C, 'securityContext', 'privileged'), True),
    Mutant('privilege', ENC, (*C, 'securityContext', 'capabilities', 'drop'), ['NET_RAW']),
    Mutant('privilege', ENC, (*C, 'securityContext', 'capabilities', 'add'), ['IPC_LOCK']),
    Mutant('privilege', ENC, (*S, 'securityContext', 'seccompProfile'), DROP),
    Mutant('privilege', ENC, (*C, 'securityContext', 'seccompProfile'), {'type': 'Unconfined'}),
    Mutant('user', ENC, (*S, 'securityContext', 'runAsNonRoot'), DROP),
    Mutant('user', ENC, (*S, 'securityContext', 'runAsUser'), 0),
    Mutant('user', ENC, (*C, 'securityContext', 'runAsUser'), 0),
    Mutant('user', SHARD, (*S, 'securityContext', 'fsGroup'), DROP),
    Mutant('root-file-system', ENC, (*C, 'securityContext', 'readOnlyRootFilesystem'), DROP),
    Mutant('spread', ENC, (*S, 'topologySpreadConstraints'), DROP),
    Mutant('spread', ENC, (*S, 'topologySpreadConstraints', 0, 'topologyKey'), 'topology.kubernetes.io/zone'),
    Mutant('spread', ENC, (*S, 'topologySpreadConstraints', 0, 'labelSelector'), DROP),
    Mutant('spread', ENC, (*S, 'topologySpreadConstraints', 1, 'whenUnsatisfiable'), 'DoNotSchedule'),
    Mutant('spread', ENC, (*S, 'topologySpreadConstraints', 0, 'matchLabelKeys'), ['component']),
    # Services, Ingresses, what the gateway is told
    Mutant('service', 'Service/ranker', (), copied({COMPONENT: 'rank'})),
    Mutant('service', 'Service/indexer-1', (), copied({COMPONENT: 'indexer'})),
    Mutant('service', 'Service/ranker', (), copied({})),
    Mutant('service-port', 'Service/ranker', ('spec', 'ports', 0, 'targetPort'), 'http'),
    Mutant('service-port', 'Service/gateway', ('spec', 'ports', 0, 'port'), 70000, 'base'),
    Mutant('service-port', 'Service/gateway', ('spec', 'ports', 0, 'name'), DROP, 'base'),
    Mutant('service-missing', 'Service/gateway', (), DROP, 'base'),
    Mutant('headless', 'Service/encoder', ('spec', 'publishNotReadyAddresses'), True),
    Mutant(
        'ingress',
        'Ingress/gateway-http',
        ('spec', 'rules', 0, 'http', 'paths', 0, 'backend', 'service', 'name'),
        'ranker',
    ),
    Mutant(
        'ingress',
        'Ingress/gateway-http',
        ('spec', 'rules', 0, 'http', 'paths', 0, 'backend', 'service', 'port'),
        {'number': 80},
    ),
    Mutant('ingress', 'Ingress/gateway-http', ('spec', 'tls'), DROP),
    Mutant('ingress', 'Ingress/gateway-http', ('spec', 'rules', 0, 'http'), DROP),
    Mutant('addresses', GATE, (*C, 'args'), text('dns:///encoder:8080', 'encoder:8080')),
    Mutant('addresses', GATE, (*C, 'args'), text('dns:///encoder:8080', 'dns:///encoder:8081')),
    Mutant('addresses', GATE, (*C, 'args'), text('dns:///encoder:8080', 'dns:///encoders:8080')),
    Mutant('addresses', GATE, (*C, 'args'), text('dns:///encoder:8080', 'dns:///gateway:8080')),
    Mutant('headless-port', 'Service/ranker', ('spec', 'ports'), both({'name': 'x', 'port': 80, 'targetPort': 'grpc'})),
    Mutant('graph', GATE, (*C, 'args'), text('"ranker": ["end-gateway"]', '"ranking": ["end-gateway"]')),
    Mutant('graph', GATE, (*C, 'args'), text(', "indexer_2"]', ']')),
    Mutant('graph', GATE, (*C, 'args'), text('["end-gateway"]', '[]')),
    Mutant('gateway-retries', GATE, (*C, 'args'), lambda old: [one for one in old if one not in ('--retries', '0')]),
    # policies
    Mutant('policy-deny', POLICY + 'default-deny', (), DROP),
    Mutant('policy-deny', POLICY + 'default-deny', ('spec', 'policyTypes'), ['Egress']),
    Mutant('policy-deny', POLICY + 'default-deny', ('spec', 'podSelector'), {'matchLabels': {COMPONENT: 'encoder'}}),
    Mutant('policy-dns', POLICY + 'dns', ('spec', 'egress', 0, 'ports'), [{'protocol': 'UDP', 'port': 53}]),
    Mutant('policy-dns', POLICY + 'dns', (), DROP),
    Mutant('policy-dns', POLICY + 'dns', ('spec', 'egress', 0, 'to', 1), DROP),
    Mutant(
        'policy-dns', POLICY + 'dns', ('spec', 'egress', 0, 'to', 0, 'namespaceSelector', 'matchLabels'), {'name': 'x'}
    ),
    Mutant('policy-port', POLICY + 'gateway', ('spec', 'ingress', 0, 'ports', 0, 'port'), 0),
    Mutant('policy-port', POLICY + 'gateway', ('spec', 'ingress', 0, 'ports', 0, 'port'), 'web'),
    Mutant('policy-port', POLICY + 'gateway', ('spec', 'egress', 0, 'ports'), both({'protocol': 'TCP', 'port': 8081})),
    Mutant('policy-port', POLICY + 'gateway', ('spec', 'egress', 0, 'ports'), both({'protocol': 'HTTP', 'port': 8080})),
    Mutant(
        'policy-selects',
        POLICY + 'dns',
        (),
        lambda old: [
            old,
            {
                **old,
                'metadata': {**old['metadata'], 'name': 'more'},
                'spec': {**old['spec'], 'podSelector': {'matchLabels': {'a': 'b'}}},
            },
        ],
    ),
    Mutant(
        'policy-selects',
        POLICY + 'stages',
        ('spec', 'ingress', 0, 'from'),
        both({'podSelector': {'matchLabels': {'a': 'b'}}}),
    ),
    Mutant(
        'policy-path',
        POLICY + 'stages',
        ('spec', 'podSelector', 'matchExpressions', 0, 'values'),
        ['encoder', 'ranker'],
    ),
    Mutant(
        'policy-path',
        POLICY + 'gateway',
        ('spec', 'egress', 0, 'to', 0, 'podSelector', 'matchExpressions', 0, 'values'),
        ['encoder'],
    ),
    Mutant('policy-path', POLICY + 'encoder-to-triton', (), DROP, 'served'),
    Mutant('policy-path', POLICY + 'triton', (), DROP, 'served'),
    Mutant('policy-path', ENC, (*C, 'env'), variable('CLIPFLOW_KSERVE_URL', value='127.0.0.1:8001'), 'served'),
    Mutant('policy-path', POLICY + 'encoder-to-ipu-worker', (), DROP, 'ipu'),
    Mutant('policy-closed', POLICY + 'stages', ('spec', 'ingress', 0, 'from'), DROP),
    Mutant('policy-closed', POLICY + 'stages', ('spec', 'ingress', 0, 'from'), both({'podSelector': {}})),
    Mutant(
        'policy-closed', POLICY + 'stages', ('spec', 'ingress', 0, 'from'), both({'ipBlock': {'cidr': '0.0.0.0/0'}})
    ),
    Mutant('policy-closed', POLICY + 'triton', ('spec', 'ingress', 0, 'from', 0, 'podSelector'), {}, 'served'),
    # scalers, monitors, alerts
    Mutant('scaler-range', HPA, ('spec', 'maxReplicas'), 1),
    Mutant('scaler-range', HPA, ('spec', 'maxReplicas'), DROP),
    Mutant('scaler-range', SCALED, ('spec', 'maxReplicaCount'), 1, 'served'),
    Mutant('scaler-target', HPA, ('spec', 'scaleTargetRef', 'kind'), 'Deploymint'),
    Mutant('scaler-target', HPA, (), again(name='second')),
    Mutant('scaler-target', 'ScaledObject/encoder', (), again(name='second'), 'served'),
    Mutant('scaler-replicas', ENC, ('spec', 'replicas'), 2),
    Mutant('scaler-replicas', ENC, ('spec', 'replicas'), 2, 'served'),
    Mutant('scaler-metric', HPA, ('spec', 'metrics'), []),
    Mutant('scaler-metric', HPA, (*METRIC, 'type'), 'Pods'),
    Mutant('scaler-metric', HPA, (*METRIC, 'resource', 'target', 'type'), 'AverageValue'),
    Mutant('scaler-metric', HPA, (*METRIC, 'resource', 'name'), 'gpu'),
    Mutant('scaler-trigger', SCALED, ('spec', 'triggers'), [], 'served'),
    Mutant('scaler-trigger', SCALED, ('spec', 'triggers', 0, 'metadata', 'threshold'), 8, 'served'),
    Mutant('scaler-trigger', SCALED, ('spec', 'triggers', 0, 'metadata', 'query'), DROP, 'served'),
    Mutant('scaler-trigger', SCALED, ('spec', 'triggers', 0, 'metricType'), 'Average', 'served'),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'endpoints', 0, 'port'), 'monitoring'),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'endpoints', 0, 'interval'), '30'),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'selector', 'matchLabels', COMPONENT), 'door'),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'selector'), DROP),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'endpoints', 0, 'authorization'), DROP),
    Mutant('monitor', 'ServiceMonitor/clipflow', ('spec', 'endpoints', 0, 'authorization', 'credentials', 'name'), 'x'),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'expr'), ''),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'expr'), 'absent(clipflow_ready'),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'for'), '5 minutes'),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'record'), 'x'),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'alert'), 'ClipflowSlow'),
    Mutant('alert', 'PrometheusRule/clipflow', (*ALERT, 'annotations', 'runbook'), 'docs/operations.md'),
]

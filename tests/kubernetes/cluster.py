"""Objects as they come out of kustomize, and what the rules want to know of them.

Every reader takes odd input: where something is missing or of another type it finds nothing, and never raises.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

NAME_LABEL, COMPONENT_LABEL = 'app.kubernetes.io/name', 'app.kubernetes.io/component'
STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker')
WORKLOADS = ('Deployment', 'StatefulSet', 'DaemonSet')
_QUANTITY = re.compile(r'(\d+(?:\.\d*)?|\.\d+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|)')
_FACTORS = {'': Decimal(1), 'm': Decimal('0.001')} | {
    unit + binary: Decimal(1024 if binary else 1000) ** power
    for power, unit in enumerate('KMGTPE', start=1)
    for binary in ('', 'i')
}
_FACTORS['k'] = _FACTORS.pop('K')


@dataclass(frozen=True)
class Fault:
    """A rule that an object breaks."""

    rule: str
    where: str
    sentence: str


Found = Iterator[tuple[Any, str]]
"""Objects, and in a sentence what is wrong with each."""
RULES: dict[str, Callable[['Cluster'], Found]] = {}


def rule(name: str) -> Callable[[Callable[['Cluster'], Found]], Callable[['Cluster'], Found]]:
    """Enter a rule under its name."""

    def enter(function: Callable[['Cluster'], Found]) -> Callable[['Cluster'], Found]:
        assert name not in RULES
        RULES[name] = function
        return function

    return enter


def at(value: Any, *path: str | int) -> Any:
    """What stands at a path, or None."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def mapping(value: Any, *path: str | int) -> dict[str, Any]:
    """The mapping at a path; only its entries with texts as keys."""
    found = at(value, *path)
    return {key: entry for key, entry in found.items() if isinstance(key, str)} if isinstance(found, dict) else {}


def mappings(value: Any, *path: str | int) -> list[dict[str, Any]]:
    """The mappings in the list at a path."""
    found = at(value, *path)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def texts(value: Any, *path: str | int) -> list[str]:
    """The texts in the list at a path."""
    found = at(value, *path)
    return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []


def text(value: Any, *path: str | int) -> str:
    """The text at a path, or an empty one."""
    found = at(value, *path)
    return found if isinstance(found, str) else ''


def whole(value: Any, *path: str | int, default: int = 0) -> int:
    """The whole number at a path."""
    found = at(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else default


def quantity(value: Any) -> Decimal | None:
    """Kubernetes' way to write a number; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    found = _QUANTITY.fullmatch(str(value))
    return Decimal(found[1]) * _FACTORS[found[2]] if found else None


def kind(value: Any) -> str:
    """The kind of an object."""
    return text(value, 'kind')


def name(value: Any) -> str:
    """The name of an object."""
    return text(value, 'metadata', 'name')


def namespace(value: Any) -> str:
    """The namespace of an object; `default` without one."""
    return text(value, 'metadata', 'namespace') or 'default'


def labels(value: Any) -> dict[str, Any]:
    """The labels of an object."""
    return mapping(value, 'metadata', 'labels')


def where(value: Any) -> str:
    """An object in a word."""
    return f'{kind(value) or "?"}/{name(value) or "?"}'


def matches(selector: Any, found: dict[str, Any]) -> bool:
    """Whether a label selector matches labels; an empty one matches all."""
    if not isinstance(selector, dict) or not set(selector) <= {'matchLabels', 'matchExpressions'}:
        return False
    if any(found.get(key) != value for key, value in mapping(selector, 'matchLabels').items()):
        return False
    for entry in mappings(selector, 'matchExpressions'):
        there, values = found.get(text(entry, 'key')), texts(entry, 'values')
        holds = {
            'In': there in values,
            'NotIn': there not in values,
            'Exists': there is not None,
            'DoesNotExist': there is None,
        }
        if not holds.get(text(entry, 'operator'), False):
            return False
    return True


@dataclass(frozen=True)
class Pod:
    """The pods of one workload."""

    owner: dict[str, Any]
    template: dict[str, Any]

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Their specification."""
        return mapping(self.template, 'spec')

    @cached_property
    def labels(self) -> dict[str, Any]:
        """Their labels."""
        return labels(self.template)

    @property
    def namespace(self) -> str:
        """Where they are."""
        return namespace(self.owner)

    @cached_property
    def component(self) -> str:
        """Which part of the service they are."""
        return text(self.labels, COMPONENT_LABEL)

    @property
    def is_stage(self) -> bool:
        """Whether they are one of our Executors."""
        return self.component in STAGES

    @cached_property
    def containers(self) -> list[dict[str, Any]]:
        """The containers that stay."""
        return mappings(self.spec, 'containers')

    @property
    def all_containers(self) -> list[dict[str, Any]]:
        """With those that run first."""
        return [*mappings(self.spec, 'initContainers'), *self.containers]

    @cached_property
    def ports(self) -> dict[Any, int]:
        """Port numbers, by name and by number."""
        found: dict[Any, int] = {}
        for container in self.containers:
            for port in mappings(container, 'ports'):
                number = whole(port, 'containerPort')
                found |= {number: number} | ({text(port, 'name'): number} if text(port, 'name') else {})
        return found

    @property
    def replicas(self) -> int:
        """How many there are, without a scaler."""
        return whole(self.owner, 'spec', 'replicas', default=1)


@dataclass(frozen=True)
class Cluster:
    """All objects that are applied together.

    Args:
        objects: as YAML gives them.
        outside: `Kind/name` of what is in the cluster already.
    """

    objects: list[dict[str, Any]]
    outside: frozenset[str] = field(default_factory=frozenset)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The objects of some kinds."""
        return [one for one in self.objects if kind(one) in kinds]

    def get(self, wanted: str, called: str, inside: str) -> dict[str, Any] | None:
        """One object."""
        return next((one for one in self.of(wanted) if name(one) == called and namespace(one) == inside), None)

    def has(self, wanted: str, called: str, inside: str) -> bool:
        """Whether there is such an object, or one outside, or a StatefulSet that makes it."""
        made = {
            f'PersistentVolumeClaim/{text(claim, "metadata", "name")}-{name(one)}-{number}'
            for one in self.of('StatefulSet')
            for claim in mappings(one, 'spec', 'volumeClaimTemplates')
            for number in range(whole(one, 'spec', 'replicas', default=1))
        }
        return f'{wanted}/{called}' in self.outside | made or self.get(wanted, called, inside) is not None

    @cached_property
    def pods(self) -> list[Pod]:
        """The pods of all workloads that stay."""
        return [Pod(one, mapping(one, 'spec', 'template')) for one in self.of(*WORKLOADS)]

    @cached_property
    def all_pods(self) -> list[Pod]:
        """With those of Jobs, which end."""
        return [*self.pods, *(Pod(one, mapping(one, 'spec', 'template')) for one in self.of('Job'))]

    def selected(self, selector: Any, inside: str) -> list[Pod]:
        """The pods that a label selector matches."""
        return [pod for pod in self.pods if pod.namespace == inside and matches(selector, pod.labels)]

    def behind(self, service: Any) -> list[Pod]:
        """The pods of a Service."""
        wanted = mapping(service, 'spec', 'selector')
        return self.selected({'matchLabels': wanted}, namespace(service)) if wanted else []

    def scalers(self, owner: Any) -> list[dict[str, Any]]:
        """What decides about the number of a workload's pods."""
        return [
            one
            for one in self.of('HorizontalPodAutoscaler', 'ScaledObject')
            if namespace(one) == namespace(owner)
            and text(one, 'spec', 'scaleTargetRef', 'name') == name(owner)
            and (text(one, 'spec', 'scaleTargetRef', 'kind') or 'Deployment') == kind(owner)
        ]

    def least(self, owner: Any) -> int:
        """The smallest number of a workload's pods."""
        for one in self.scalers(owner):
            key = 'minReplicas' if kind(one) == 'HorizontalPodAutoscaler' else 'minReplicaCount'
            return whole(one, 'spec', key, default=1 if key == 'minReplicas' else 0)
        return whole(owner, 'spec', 'replicas', default=1)

    def environment(self, pod: Pod, container: Any) -> dict[str, str]:
        """The variables of a container whose values are known here."""
        found: dict[str, str] = {}
        for entry in mappings(container, 'envFrom'):
            source = self.get('ConfigMap', text(entry, 'configMapRef', 'name'), pod.namespace)
            found |= {key: value for key, value in mapping(source, 'data').items() if isinstance(value, str)}
        for entry in mappings(container, 'env'):
            reference = mapping(entry, 'valueFrom', 'configMapKeyRef')
            data = mapping(self.get('ConfigMap', text(reference, 'name'), pod.namespace), 'data')
            if 'value' in entry:
                found[text(entry, 'name')] = text(entry, 'value')
            elif isinstance(value := data.get(text(reference, 'key')), str):
                found[text(entry, 'name')] = value
        return found

    def claims(self, pod: Pod) -> list[dict[str, Any]]:
        """The PersistentVolumeClaims that pods mount, as far as they are here."""
        named = [text(entry, 'persistentVolumeClaim', 'claimName') for entry in mappings(pod.spec, 'volumes')]
        found = [self.get('PersistentVolumeClaim', claim, pod.namespace) for claim in named if claim]
        return [claim for claim in found if claim]


def check(objects: Iterable[Any], outside: Iterable[str] = ()) -> list[Fault]:
    """All rules that objects break."""
    cluster = Cluster([one for one in objects if isinstance(one, dict)], frozenset(outside))
    return [Fault(key, where(one), sentence) for key, tested in RULES.items() for one, sentence in tested(cluster)]

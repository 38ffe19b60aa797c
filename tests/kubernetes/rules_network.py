"""Who finds whom, and who may speak to whom."""

import json
import re
from typing import Any

from .cluster import (
    STAGES,
    Cluster,
    Found,
    Pod,
    at,
    kind,
    mapping,
    mappings,
    matches,
    name,
    namespace,
    rule,
    text,
    texts,
    where,
    whole,
)
from .rules_workloads import argument

_ADDRESS = re.compile(r'dns:///([a-z0-9-]+):(\d+)')


# -- Services ---------------------------------------------------------------------------------------------------------


@rule('service')
def service_selects_one_workload(cluster: Cluster) -> Found:
    """A Service without pods answers nobody; one of two workloads answers at random."""
    for one in cluster.of('Service'):
        found = cluster.behind(one)
        if len(found) != 1:
            yield one, f'selects the pods of {len(found)} workloads'


@rule('service-port')
def ports_of_services(cluster: Cluster) -> Found:
    """A port of a Service leads to one of the pods, has a name of its own, and is a number up to 65535."""
    for one in cluster.of('Service'):
        ports = mappings(one, 'spec', 'ports')
        names = [text(port, 'name') for port in ports]
        if not ports or '' in names or len(set(names)) != len(names):
            yield one, 'needs ports, each with a name'
        for port in ports:
            target = port.get('targetPort', port.get('port'))
            if not 0 < whole(port, 'port') < 65536:
                yield one, f'{port.get("port")!r} is no port'
            for pod in cluster.behind(one):
                if not isinstance(target, str | int) or target not in pod.ports:
                    yield one, f'leads to the port {target!r}, which {where(pod.owner)} does not have'


@rule('service-missing')
def every_workload_has_a_service(cluster: Cluster) -> Found:
    """Pods with ports have to be found."""
    served = [id(pod.owner) for one in cluster.of('Service') for pod in cluster.behind(one)]
    for pod in cluster.pods:
        if pod.ports and id(pod.owner) not in served:
            yield pod.owner, 'has ports, and no Service'


@rule('headless')
def stages_are_headless(cluster: Cluster) -> Found:
    """One connection to a virtual address would stay with one replica; and replicas that cannot work are left out."""
    for one in cluster.of('Service'):
        found = cluster.behind(one)
        if any(pod.is_stage for pod in found) and at(one, 'spec', 'clusterIP') != 'None':
            yield one, 'gives one address for all replicas'
        hidden = at(one, 'spec', 'publishNotReadyAddresses') is not True
        if any(kind(pod.owner) == 'Deployment' for pod in found) and not hidden:
            yield one, 'tells the addresses of replicas that are not ready'


@rule('headless-port')
def ports_of_headless_services(cluster: Cluster) -> Found:
    """Behind a headless Service nothing leads from one port to another: pods listen on the port itself."""
    for one in cluster.of('Service'):
        for port in mappings(one, 'spec', 'ports') if at(one, 'spec', 'clusterIP') == 'None' else []:
            target = port.get('targetPort', port.get('port'))
            for pod in cluster.behind(one):
                if isinstance(target, str | int) and pod.ports.get(target, port.get('port')) != port.get('port'):
                    yield one, f'{port.get("port")} is not the port on which its pods listen'


@rule('ingress')
def backends(cluster: Cluster) -> Found:
    """An Ingress leads to a port of a gateway's Service."""
    for one in cluster.of('Ingress'):
        paths = [path for entry in mappings(one, 'spec', 'rules') for path in mappings(entry, 'http', 'paths')]
        if not paths:
            yield one, 'leads nowhere'
        for path in paths:
            target = mapping(path, 'backend', 'service')
            service = cluster.get('Service', text(target, 'name'), namespace(one))
            wanted = mapping(target, 'port')
            there = [
                port
                for port in mappings(service, 'spec', 'ports')
                if wanted and wanted in ({'name': port.get('name')}, {'number': port.get('port')})
            ]
            if not there or {pod.component for pod in cluster.behind(service)} != {'gateway'}:
                yield one, f'leads to {target}, which is no port of the gateway'
        hosts = {text(entry, 'host') for entry in mappings(one, 'spec', 'rules')}
        secured = {host for entry in mappings(one, 'spec', 'tls') for host in texts(entry, 'hosts')}
        if hosts != secured:
            yield one, 'has a host without a certificate'


# -- what the gateway is told -----------------------------------------------------------------------------------------


def _told(pod: Pod, option: str) -> dict[str, Any] | None:
    given = argument(pod.containers[0] if pod.containers else {}, option)
    try:
        found = json.loads(given[0]) if given else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@rule('addresses')
def addresses_of_stages(cluster: Cluster) -> Found:
    """The gateway asks DNS for all replicas of a headless Service that is there."""
    for pod in cluster.pods:
        if pod.component == 'gateway':
            addresses = _told(pod, '--deployments-addresses')
            if not addresses:
                yield pod.owner, 'is told no addresses'
            for stage, given in (addresses or {}).items():
                for address in given if isinstance(given, list) else [None]:
                    found = _ADDRESS.fullmatch(str(address))
                    service = cluster.get('Service', found[1], pod.namespace) if found else None
                    ports = [whole(port, 'port') for port in mappings(service, 'spec', 'ports')]
                    headless = at(service, 'spec', 'clusterIP') == 'None'
                    if found is None or not headless or int(found[2]) not in ports:
                        yield pod.owner, f'the address {address!r} of {stage} is no port of a headless Service'


@rule('graph')
def graph_and_addresses(cluster: Cluster) -> Found:
    """Every stage of the graph has an address, every address a stage, and every workload of ours is among them."""
    for pod in cluster.pods:
        if pod.component == 'gateway':
            graph = _told(pod, '--graph-description') or {}
            addresses = set(_told(pod, '--deployments-addresses') or {})
            inside = {stage for stage in graph if stage != 'start-gateway'}
            following = {stage for after in graph.values() if isinstance(after, list) for stage in map(str, after)}
            if inside != addresses or following - {'end-gateway'} != inside or 'end-gateway' not in following:
                yield pod.owner, 'graph and addresses are about different stages'
            named = {stage.replace('_', '-') for stage in addresses}
            for other in cluster.pods:
                if other.is_stage and other.namespace == pod.namespace and name(other.owner) not in named:
                    yield other.owner, 'is not among the stages of the gateway'


@rule('gateway-retries')
def gateway_repeats_nothing(cluster: Cluster) -> Found:
    """Jina would send writes again that may have been done."""
    for pod in cluster.pods:
        if pod.component == 'gateway' and argument(pod.containers[0] if pod.containers else {}, '--retries') != ['0']:
            yield pod.owner, 'lets Jina repeat requests'


# -- policies ---------------------------------------------------------------------------------------------------------


def _policies(cluster: Cluster, pod: Pod, direction: str) -> list[dict[str, Any]]:
    """The policies that isolate pods in a direction, Ingress or Egress."""
    return [
        one
        for one in cluster.of('NetworkPolicy')
        if namespace(one) == pod.namespace
        and direction in texts(one, 'spec', 'policyTypes')
        and matches(at(one, 'spec', 'podSelector'), pod.labels)
    ]


def _is_peer(cluster: Cluster, peer: Any, pod: Pod, home: str) -> bool:
    """Whether a peer of a policy in the namespace `home` is these pods."""
    if not isinstance(peer, dict) or 'ipBlock' in peer:
        return False
    if 'namespaceSelector' in peer:
        found = [mapping(one, 'metadata', 'labels') for one in cluster.of('Namespace') if name(one) == pod.namespace]
        known = {'kubernetes.io/metadata.name': pod.namespace} | (found[0] if found else {})
        if not matches(peer['namespaceSelector'], known):
            return False
    elif pod.namespace != home:
        return False
    return matches(peer.get('podSelector', {}), pod.labels)


def _has_port(entry: Any, to: Pod, number: int) -> bool:
    ports = mappings(entry, 'ports')
    return not ports or any(
        port.get('protocol', 'TCP') == 'TCP' and to.ports.get(port.get('port'), port.get('port')) == number
        for port in ports
        if isinstance(port.get('port'), str | int)
    )


def may_speak(cluster: Cluster, sender: Pod, to: Pod, number: int) -> bool:
    """Whether policies let pods speak to a TCP port of others."""
    for mine, other, direction, peers in ((sender, to, 'Egress', 'to'), (to, sender, 'Ingress', 'from')):
        policies = _policies(cluster, mine, direction)
        allowed = [
            entry
            for policy in policies
            for entry in mappings(policy, 'spec', direction.lower())
            if peers not in entry
            or any(_is_peer(cluster, peer, other, mine.namespace) for peer in mappings(entry, peers))
        ]
        if policies and not any(_has_port(entry, to, number) for entry in allowed):
            return False
    return True


@rule('policy-deny')
def nothing_is_open_by_default(cluster: Cluster) -> Found:
    """All pods of a restricted namespace are isolated both ways, those of another one at least inwards."""
    for pod in cluster.pods:
        spaces = [mapping(one, 'metadata', 'labels') for one in cluster.of('Namespace') if name(one) == pod.namespace]
        strict = any(one.get('pod-security.kubernetes.io/enforce') == 'restricted' for one in spaces)
        for direction in ('Ingress', 'Egress') if strict else ('Ingress',):
            if not any(at(one, 'spec', 'podSelector') == {} for one in _policies(cluster, pod, direction)):
                yield pod.owner, f'{direction} is open where no policy names it'


@rule('policy-dns')
def names_can_be_resolved(cluster: Cluster) -> Found:
    """Isolated pods reach DNS, by UDP and by TCP, also where a cache on the node answers."""
    for pod in cluster.pods:
        policies = _policies(cluster, pod, 'Egress')
        entries = [entry for policy in policies for entry in mappings(policy, 'spec', 'egress')]
        for protocol in ('UDP', 'TCP'):
            peers = [
                peer
                for entry in entries
                for port in mappings(entry, 'ports')
                if (port.get('protocol', 'TCP'), port.get('port')) == (protocol, 53)
                for peer in mappings(entry, 'to')
            ]
            pods = [
                peer
                for peer in peers
                if matches(at(peer, 'namespaceSelector'), {'kubernetes.io/metadata.name': 'kube-system'})
            ]
            nodes = [peer for peer in peers if at(peer, 'ipBlock', 'cidr') == '169.254.0.0/16']
            if policies and not (pods and nodes):
                yield pod.owner, f'cannot ask DNS by {protocol}'


@rule('policy-port')
def ports_of_policies(cluster: Cluster) -> Found:
    """Policies are about ports that there are."""
    for one in cluster.of('NetworkPolicy'):
        for direction, peers in (('ingress', 'from'), ('egress', 'to')):
            for entry in mappings(one, 'spec', direction):
                own = cluster.selected(at(one, 'spec', 'podSelector'), namespace(one))
                other = [
                    pod
                    for pod in cluster.pods
                    if any(_is_peer(cluster, peer, pod, namespace(one)) for peer in mappings(entry, peers))
                ]
                for port in mappings(entry, 'ports'):
                    value = port.get('port')
                    numeric = isinstance(value, int) and not isinstance(value, bool)
                    pods = own if direction == 'ingress' else other
                    if (numeric and not 0 < value < 65536) or not (numeric or isinstance(value, str)):
                        yield one, f'{value!r} is no port'
                    elif pods and not any(value in pod.ports for pod in pods):
                        yield one, f'is about the port {value!r}, which the pods do not have'
                    elif port.get('protocol', 'TCP') not in ('TCP', 'UDP', 'SCTP'):
                        yield one, f'{port["protocol"]!r} is no protocol'


@rule('policy-selects')
def policies_are_about_somebody(cluster: Cluster) -> Found:
    """A policy for nobody, or from nobody, is misspelt."""
    for one in cluster.of('NetworkPolicy'):
        if not cluster.selected(at(one, 'spec', 'podSelector'), namespace(one)):
            yield one, 'is about no pods'
        for direction, peers in (('ingress', 'from'), ('egress', 'to')):
            for entry in mappings(one, 'spec', direction):
                for peer in mappings(entry, peers):
                    if 'podSelector' in peer and not any(
                        _is_peer(cluster, peer, pod, namespace(one)) for pod in cluster.pods
                    ):
                        yield one, 'names pods that are not there'


@rule('policy-path')
def calls_can_pass(cluster: Cluster) -> Found:
    """The gateway reaches every stage, and an encoder the server of its model."""
    for pod in cluster.pods:
        for other in cluster.pods:
            if pod.component == 'gateway' and other.is_stage and other.namespace == pod.namespace:
                for number in set(other.ports.values()):
                    if not may_speak(cluster, pod, other, number):
                        yield other.owner, f'cannot be reached by {where(pod.owner)}'
            settings = cluster.environment(pod, pod.containers[0] if pod.containers else {})
            if pod.component == 'encoder' and settings.get('CLIPFLOW_RUNTIME') == 'kserve':
                service, _, number_text = settings.get('CLIPFLOW_KSERVE_URL', '').partition(':')
                called, _, space = service.partition('.')
                found = cluster.get('Service', called, space or pod.namespace)
                if other in cluster.behind(found) if found else other is pod:
                    if not number_text.isdigit() or found is None:
                        yield pod.owner, f'{settings.get("CLIPFLOW_KSERVE_URL")!r} is no Service here'
                    elif not may_speak(cluster, pod, other, int(number_text)):
                        yield pod.owner, f'cannot reach {where(other.owner)}'


@rule('policy-closed')
def only_the_gateway_is_reachable(cluster: Cluster) -> Found:
    """A stage is called by gateways only, a server of models by encoders only."""
    allowed = {stage: {'gateway'} for stage in STAGES}
    for pod in cluster.pods:
        if pod.component == 'gateway':
            continue
        for policy in _policies(cluster, pod, 'Ingress'):
            for entry in mappings(policy, 'spec', 'ingress'):
                peers = mappings(entry, 'from')
                called = {
                    other.component
                    for other in cluster.pods
                    if any(_is_peer(cluster, peer, other, pod.namespace) for peer in peers)
                }
                if not peers or any('podSelector' not in peer for peer in peers):
                    yield pod.owner, f'{where(policy)} lets anybody in'
                elif called - allowed.get(pod.component, {'encoder'}):
                    yield pod.owner, f'{where(policy)} lets {sorted(called)} in'

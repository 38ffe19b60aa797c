"""Scalers, monitors and alerts."""

import re
from typing import Any

from .cluster import Cluster, Found, at, kind, labels, mapping, mappings, matches, name, namespace, rule, text, whole

_METRICS = {
    'Resource': 'resource',
    'ContainerResource': 'containerResource',
    'Pods': 'pods',
    'Object': 'object',
    'External': 'external',
}
_TARGETS = {'Utilization': 'averageUtilization', 'AverageValue': 'averageValue', 'Value': 'value'}
_DURATION = re.compile(r'(\d+(ms|s|m|h|d|w|y))+')


def _target(cluster: Cluster, scaler: Any) -> dict[str, Any] | None:
    reference = mapping(scaler, 'spec', 'scaleTargetRef')
    wanted = text(reference, 'kind') or ('Deployment' if kind(scaler) == 'ScaledObject' else '')
    return cluster.get(wanted, text(reference, 'name'), namespace(scaler))


@rule('scaler-range')
def least_and_most(cluster: Cluster) -> Found:
    """From one pod at least to more than that: nothing would wake a stage of which there is none."""
    for one in cluster.of('HorizontalPodAutoscaler', 'ScaledObject'):
        suffix = 'Count' if kind(one) == 'ScaledObject' else ''
        default = 0 if suffix else 1
        least = whole(one, 'spec', f'minReplica{suffix or "s"}', default=default)
        most = whole(one, 'spec', f'maxReplica{suffix or "s"}', default=100 if suffix else 0)
        if not 1 <= least <= most:
            yield one, f'scales from {least} to {most}'


@rule('scaler-target')
def target_is_there(cluster: Cluster) -> Found:
    """What is scaled is there, and scaled by nothing else."""
    for one in cluster.of('HorizontalPodAutoscaler', 'ScaledObject'):
        target = _target(cluster, one)
        if target is None:
            yield one, 'scales what is not there'
        elif len(cluster.scalers(target)) > 1:
            yield one, f'is not the only one that scales {name(target)}'


@rule('scaler-replicas')
def no_replicas_beside_a_scaler(cluster: Cluster) -> Found:
    """With a number of its own, each apply would undo what the scaler did."""
    for pod in cluster.pods:
        if cluster.scalers(pod.owner) and 'replicas' in mapping(pod.owner, 'spec'):
            yield pod.owner, 'has a number of replicas beside a scaler'


@rule('scaler-metric')
def metrics(cluster: Cluster) -> Found:
    """A metric has the block of its type, and one target that fits; use of CPU is a share of a request."""
    for one in cluster.of('HorizontalPodAutoscaler'):
        found = mappings(one, 'spec', 'metrics')
        if not found:
            yield one, 'has no metric'
        for metric in found:
            block = _METRICS.get(text(metric, 'type'), '?')
            target = mapping(metric, block, 'target')
            key = _TARGETS.get(text(target, 'type'), '?')
            if set(metric) != {'type', block} or set(target) != {'type', key}:
                yield one, f'a metric of the type {metric.get("type")!r} is not complete'
            elif key == 'averageUtilization':
                resource = text(metric, block, 'name')
                own = _target(cluster, one)
                containers = mappings(own, 'spec', 'template', 'spec', 'containers')
                if not all(resource in mapping(container, 'resources', 'requests') for container in containers):
                    yield one, f'goes by the use of {resource}, of which no request tells the whole'


@rule('scaler-trigger')
def triggers(cluster: Cluster) -> Found:
    """KEDA wants texts, and what a trigger needs."""
    for one in cluster.of('ScaledObject'):
        found = mappings(one, 'spec', 'triggers')
        if not found:
            yield one, 'has no trigger'
        for trigger in found:
            data = mapping(trigger, 'metadata')
            if not text(trigger, 'type') or any(not isinstance(value, str) for value in data.values()):
                yield one, 'a trigger needs a type and texts'
            elif text(trigger, 'type') == 'prometheus' and not {'serverAddress', 'query', 'threshold'} <= set(data):
                yield one, 'a trigger does not say where, what and how much'
            elif trigger.get('metricType', 'AverageValue') not in ('AverageValue', 'Value'):
                yield one, f'{trigger["metricType"]!r} is no metricType of it'


@rule('monitor')
def monitors(cluster: Cluster) -> Found:
    """A monitor selects Services with the port that it names, and has a key where gateways demand one."""
    keys = {
        text(entry, 'valueFrom', 'secretKeyRef', 'name')
        for pod in cluster.pods
        for container in pod.containers
        for entry in mappings(container, 'env')
        if entry.get('name') == 'CLIPFLOW_API_KEYS' and at(entry, 'valueFrom', 'secretKeyRef', 'optional') is False
    }
    for one in cluster.of('ServiceMonitor'):
        services = [
            service
            for service in cluster.of('Service')
            if namespace(service) == namespace(one) and matches(at(one, 'spec', 'selector'), labels(service))
        ]
        endpoints = mappings(one, 'spec', 'endpoints')
        if not services or not endpoints or not mapping(one, 'spec', 'selector'):
            yield one, 'watches nothing'
        for endpoint in endpoints:
            if keys and text(endpoint, 'authorization', 'credentials', 'name') not in keys:
                yield one, 'has no key, which the gateway demands'
            for service in services:
                if text(endpoint, 'port') not in [text(port, 'name') for port in mappings(service, 'spec', 'ports')]:
                    yield one, f'{name(service)} has no port {endpoint.get("port")!r}'
            interval = endpoint.get('interval', '30s')
            if not isinstance(interval, str) or not _DURATION.fullmatch(interval):
                yield one, f'{interval!r} is no duration'


@rule('alert')
def alerts(cluster: Cluster) -> Found:
    """An alert has an expression, a duration, a severity and a run-book; no two have one name."""
    for one in cluster.of('PrometheusRule'):
        entries = [entry for group in mappings(one, 'spec', 'groups') for entry in mappings(group, 'rules')]
        names = [text(entry, 'alert') for entry in entries]
        if not entries or len(set(names)) != len(names):
            yield one, 'has no rules, or two of one name'
        if any(not text(group, 'name') for group in mappings(one, 'spec', 'groups')):
            yield one, 'a group has no name'
        for entry in entries:
            if ('alert' in entry) == ('record' in entry) or not text(entry, 'expr').strip():
                yield one, 'a rule needs an expression, and is either an alert or a record'
            elif text(entry, 'expr').count('(') != text(entry, 'expr').count(')'):
                yield one, f'{text(entry, "alert")}: brackets do not match'
            elif not _DURATION.fullmatch(str(entry.get('for', '1m'))):
                yield one, f'{entry["for"]!r} is no duration'
            elif 'alert' in entry and not (
                text(entry, 'labels', 'severity')
                and text(entry, 'annotations', 'summary')
                and text(entry, 'annotations', 'runbook') == f'docs/operations.md#{text(entry, "alert").lower()}'
            ):
                yield one, f'{text(entry, "alert")} says neither how bad it is nor what to do'

"""What the gateway counts, and what the stages say of themselves, for Prometheus."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

_REMEMBERED_SECONDS = 60.0

Status = Mapping[str, Mapping[str, Any]]
"""What each stage says of itself, by its name."""

_GAUGES = {
    'waiting': ('queue_length', 'Requests that wait or run in a stage'),
    'documents': ('documents', 'Stored documents'),
    'recent': ('index_recent', 'Vectors that are not in the FAISS part of the index yet'),
    'dead': ('index_dead', 'Slots of deleted vectors in the index'),
    'cached_texts': ('cached_texts', 'Texts whose embeddings are kept in memory'),
}
_COUNTERS = {
    'items': ('encoded_items', 'Items that have passed through the model'),
    'cache_hits': ('cache_hits', 'Texts whose embedding was in memory'),
    'cache_misses': ('cache_misses', 'Texts whose embedding was not in memory'),
}


class Metrics:
    """Everything under `clipflow_`, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            'clipflow_requests', 'Requests by endpoint and code', ['endpoint', 'code'], registry=self._registry
        )
        self._seconds = Histogram(
            'clipflow_request_seconds',
            'From arrival to answer',
            ['endpoint'],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            'clipflow_stage_seconds', 'One call of a stage', ['stage'], buckets=_SECONDS, registry=self._registry
        )
        self._answers = Counter('clipflow_http_answers', 'Answers by HTTP', ['status'], registry=self._registry)
        self.in_flight = Gauge('clipflow_in_flight', 'Requests inside the Flow', registry=self._registry)
        self._registry.register(_Told(self))
        self._last: dict[tuple[str, str], tuple[float, Mapping[str, Any]]] = {}
        self.told: Mapping[tuple[str, str], Mapping[str, Any]] = {}

    def request(self, endpoint: str, code: str, seconds: float, stages: Iterable[tuple[str, float]]) -> None:
        """One answer.

        Args:
            endpoint: of the Flow, one of those known; so that nobody makes series at will.
            code: of the error; `ok` without.
            seconds: in all.
            stages: seconds of each stage that was called.
        """
        self._requests.labels(endpoint, code).inc()
        self._seconds.labels(endpoint).observe(seconds)
        for stage, taken in stages:
            self._stages.labels(stage).observe(taken)

    def http_answer(self, status: int) -> None:
        """One answer by HTTP, also to what never reaches the Flow: without a key, too often, too large."""
        self._answers.labels(str(status)).inc()

    def note(self, stages: Status) -> None:
        """What the stages say now, as `/status` tells it: of each one replica, another one each time."""
        now = time.monotonic()
        self._last |= {(stage, str(told.get('replica', ''))): (now, told) for stage, told in stages.items()}
        self._last = {key: one for key, one in self._last.items() if one[0] > now - _REMEMBERED_SECONDS}

    def text(self, stages: Status) -> bytes:
        """In Prometheus' text format, with all replicas that were met within a minute.

        Args:
            stages: as for `note`; empty if they cannot be asked, and then nothing is told of them.
        """
        self.note(stages)
        self.told = {key: told for key, (_, told) in self._last.items()} if stages else {}
        return generate_latest(self._registry)


class _Told(Collector):
    """A collector of what the stages said last."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        told, labels = self._metrics.told, ['stage', 'replica']
        ready = GaugeMetricFamily('clipflow_ready', 'Whether a stage can work', labels=labels)
        for key, found in told.items():
            ready.add_metric(key, float(bool(found.get('ready'))))
        yield ready
        for name, (metric, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(f'clipflow_{metric}', text, labels=labels)
            for key, found in told.items():
                if name in found:
                    gauge.add_metric(key, float(found[name]))
            yield gauge
        for name, (metric, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f'clipflow_{metric}', text, labels=labels)
            for key, found in told.items():
                if name in found:
                    counter.add_metric(key, float(found[name]))
            yield counter
        sizes = HistogramMetricFamily(
            'clipflow_batch_size', 'Items that passed through the model at once', labels=labels
        )
        for key, found in told.items():
            if counts := found.get('batch_sizes'):
                buckets, total = [], 0.0
                for most, count in counts:
                    total += count
                    buckets.append((f'{most:g}', total))
                sizes.add_metric(key, [*buckets, ('+Inf', total)], float(found['items']))
        yield sizes

"""What the gateway counts, and what the stages say of themselves, for Prometheus."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

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
        self.in_flight = Gauge('clipflow_in_flight', 'Requests inside the Flow', registry=self._registry)
        self._registry.register(_Told(self))
        self.told: Status = {}

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

    def text(self, stages: Status) -> bytes:
        """In Prometheus' text format; `stages` as `/status` tells them, empty if they cannot be asked."""
        self.told = stages
        return generate_latest(self._registry)


class _Told(Collector):
    """A collector of what the stages said last."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        told = self._metrics.told
        ready = GaugeMetricFamily('clipflow_ready', 'Whether a stage can work', labels=['stage'])
        for stage, found in told.items():
            ready.add_metric([stage], float(bool(found.get('ready'))))
        yield ready
        for name, (metric, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(f'clipflow_{metric}', text, labels=['stage'])
            for stage, found in told.items():
                if name in found:
                    gauge.add_metric([stage], float(found[name]))
            yield gauge
        for name, (metric, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f'clipflow_{metric}', text, labels=['stage'])
            for stage, found in told.items():
                if name in found:
                    counter.add_metric([stage], float(found[name]))
            yield counter
        sizes = HistogramMetricFamily('clipflow_batch_size', 'Items that passed through the model at once')
        for found in told.values():
            if counts := found.get('batch_sizes'):
                buckets, total = [], 0.0
                for most, count in counts:
                    total += count
                    buckets.append((f'{most:g}', total))
                sizes.add_metric([], [*buckets, ('+Inf', total)], float(found['items']))
        yield sizes

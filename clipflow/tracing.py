"""OpenTelemetry traces, when they are switched on: one span for a request in the gateway, and one in each stage.

How a span finds its parent travels as a W3C `traceparent`: in the header or metadata of the caller, then in the
parameters of the request. Without an endpoint nothing of OpenTelemetry is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

parent: ContextVar[str] = ContextVar('traceparent', default='')
"""Of the HTTP request that is being answered."""
_tracer: Any = None
_provider: Any = None


def start(endpoint: str, stage: str) -> None:
    """Send the spans of this process to a collector.

    Args:
        endpoint: host and port that take OTLP by gRPC; empty: no traces.
        stage: of this process.
    """
    global _tracer, _provider  # noqa: PLW0603 - a process has one, as OpenTelemetry wants it
    if not endpoint:
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    secure = endpoint.startswith('https://')
    exporter = OTLPSpanExporter(endpoint.rpartition('://')[2], insecure=not secure)
    _provider = TracerProvider(resource=Resource.create({'service.name': 'clipflow', 'clipflow.stage': stage}))
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    _tracer = _provider.get_tracer('clipflow')


def stop() -> None:
    """Send what is left."""
    if _provider is not None:
        _provider.shutdown()


@contextmanager
def span(name: str, caller: str, **attributes: Any) -> Iterator[str]:
    """A span around the block.

    Args:
        name: of the span.
        caller: `traceparent` of the caller; may be empty.
        attributes: of the span.

    Yields:
        `traceparent` for those that are called; empty when traces are off.
    """
    if _tracer is None:
        yield ''
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    context = propagator.extract({'traceparent': caller}) if caller else None
    with _tracer.start_as_current_span(name, context=context, attributes=attributes):
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        yield carrier.get('traceparent', '')

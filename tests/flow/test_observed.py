"""What an operator sees: metrics, traces, and log lines with one request id through all stages."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from clipflow import ROOT
from clipflow_client import Client
from service import Service, png, until

STAGES = ['preprocessor', 'encoder', 'indexer', 'ranker']


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.spans: list[tuple[str, Span]] = []

    def Export(  # noqa: N802 - gRPC's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            for group in request.resource_spans:
                attributes = {a.key: a.value.string_value for a in group.resource.attributes}
                stage = attributes['clipflow.stage']
                self.spans += [(stage, span) for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope='module')
def collector() -> Iterator[tuple[Collector, str]]:
    found = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    yield found, f'127.0.0.1:{port}'
    server.stop(None)


@pytest.fixture(scope='module')
def observed(tmp_path_factory: pytest.TempPathFactory, collector: tuple[Collector, str]) -> Iterator[Service]:
    settings = {'RUNTIME': 'fake', 'LOG_FORMAT': 'json', 'LOG_REQUESTS': 'true', 'OTLP_ENDPOINT': collector[1]}
    with Service(tmp_path_factory.mktemp('observed'), settings) as running:
        yield running


@pytest.fixture
def web(observed: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=observed.http, timeout=60, trust_env=False) as client:
        yield client


def samples(web: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics, by name and labels; there is one replica of each stage, and its name is left away."""
    reply = web.get('/metrics')
    assert reply.headers['content-type'].startswith('text/plain')
    return {
        (sample.name, tuple(sorted(pair for pair in sample.labels.items() if pair[0] != 'replica'))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_metrics_count_requests_errors_stages_batches_and_documents(web: httpx.Client, observed: Service) -> None:
    before = samples(web)
    web.post('/v1/documents', json={'documents': [{'id': f'd{n}', 'text': f'text {n}'} for n in range(5)]})
    for _ in range(3):
        assert web.post('/v1/search', json={'text': 'text 1'}).status_code == 200
    assert web.post('/v1/search', json={'text': 'x', 'relevance': 7}).status_code == 400
    assert web.post('/v1/search', json={'text': 'x', 'id': 'y'}).status_code == 400
    assert web.get('/nothing').status_code == 404
    with Client(observed.grpc) as client:
        client.search('text 2')
    # /metrics asks the stages at most once a second.
    key = ('clipflow_documents', (('stage', 'indexer'),))
    after = until(lambda: found if (found := samples(web)).get(key) == 5 else None, 60, 'documents are counted')

    def grown(name: str, **labels: str) -> float:
        place = (name, tuple(sorted(labels.items())))
        return after.get(place, 0) - before.get(place, 0)

    assert grown('clipflow_requests_total', endpoint='/search', code='ok') == 4
    assert grown('clipflow_requests_total', endpoint='/search', code='invalid-parameter') == 1
    assert grown('clipflow_request_seconds_count', endpoint='/search') == 5
    answers = {status: grown('clipflow_http_answers_total', status=status) for status in ('400', '404')}
    assert answers == {'400': 2, '404': 1}
    assert grown('clipflow_stage_seconds_count', stage='ranker') >= 5
    assert grown('clipflow_batch_size_count', stage='encoder') >= 2
    items = grown('clipflow_encoded_items_total', stage='encoder')
    assert grown('clipflow_batch_size_sum', stage='encoder') == items >= 7
    assert grown('clipflow_cache_hits_total', stage='encoder') >= 2
    assert {after['clipflow_ready', (('stage', stage),)] for stage in STAGES} == {1.0}
    assert after['clipflow_in_flight', ()] >= 0


def test_an_unknown_endpoint_makes_no_series_of_its_own(web: httpx.Client) -> None:
    web.post('/post', json={'exec_endpoint': '/nonsense-41', 'data': []})
    names = {labels for name, labels in samples(web) if name == 'clipflow_requests_total'}
    assert (('code', 'not-found'), ('endpoint', 'unknown')) in names
    assert 'nonsense' not in web.get('/metrics').text


def test_the_dashboard_asks_for_metrics_that_there_are(web: httpx.Client) -> None:
    dashboard = json.loads((ROOT / 'k8s' / 'components' / 'monitoring' / 'dashboard.json').read_text())
    asked = {
        name
        for panel in dashboard['panels']
        for target in panel.get('targets', [])
        for name in re.findall(r'clipflow_\w+', target['expr'])
    }
    web.post('/v1/search', json={'text': 'x'})
    assert len(asked) > 10
    assert asked - {name for name, _ in samples(web)} == set()


def test_one_trace_passes_all_stages(web: httpx.Client, collector: tuple[Collector, str]) -> None:
    trace = '4bf92f3577b34da6a3ce929d0e0e4736'
    headers = {'traceparent': f'00-{trace}-00f067aa0ba902b7-01'}
    assert web.post('/v1/search', json={'text': 'x'}, headers=headers).status_code == 200

    def ours() -> dict[str, Span]:
        return {stage: span for stage, span in collector[0].spans if span.trace_id.hex() == trace}

    spans = until(lambda: found if len(found := ours()) == 5 else None, 60, 'five spans have arrived')
    assert set(spans) == {'gateway', *STAGES}
    assert (spans['gateway'].name, spans['gateway'].parent_span_id.hex()) == ('/search', '00f067aa0ba902b7')
    assert {spans[stage].parent_span_id for stage in STAGES} == {spans['gateway'].span_id}


def test_a_request_has_one_id_in_all_logs(web: httpx.Client, observed: Service) -> None:
    reply = web.post('/v1/search', json={'text': 'x'}, headers={'X-Request-ID': 'order-4711'})
    assert reply.headers['x-request-id'] == 'order-4711'

    def lines() -> dict[str, str]:
        found = [json.loads(line) for line in observed.lines if line.startswith('{')]
        return {line['stage']: line['message'] for line in found if line.get('request') == 'order-4711'}

    told = until(lambda: found if len(found := lines()) == 5 else None, 60, 'five lines are written')
    assert set(told) == {'gateway', *STAGES}
    assert told['gateway'].startswith('/search ok in ')
    for odd in ('two words', 'a' * 200, 'ü'):
        given = web.get('/healthz', headers={'X-Request-ID': odd.encode()}).headers['x-request-id']
        assert re.fullmatch('[0-9a-f]{32}', given)


def test_pictures_and_texts_are_in_no_log(web: httpx.Client, observed: Service, tmp_path: Path) -> None:
    web.post('/v1/search', json={'text': 'very private words'})
    web.post('/v1/search', files={'image': png('red')})
    web.post('/v1/search', json={'text': 'more private words', 'limit': -1})
    assert 'private' not in observed.log

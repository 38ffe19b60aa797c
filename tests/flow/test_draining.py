"""A process that is told to stop says so, answers what it has taken, and ends; health tells the truth before."""

import json
import os
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from docarray import Document
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clipflow.errors import Overloaded
from clipflow_client import Client
from forms import long
from service import Service, flow_with, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / 'workspace', {'RUNTIME': 'fake', 'DRAIN_SECONDS': '6'}) as service:
        yield service


def listening_port(pid: int) -> int:
    """The one TCP port on which a process listens."""
    held = {os.readlink(path) for path in Path(f'/proc/{pid}/fd').iterdir() if path.is_symlink()}
    tables = (Path(f'/proc/{pid}/net/{name}').read_text() for name in ('tcp', 'tcp6'))
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    (port,) = {
        int(line[1].rpartition(':')[2], 16) for line in lines if line[3] == '0A' and f'socket:[{line[9]}]' in held
    }
    return port


def health(port: int, name: str = '') -> int:
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=30).status)


@contextmanager
def held_writes(service: Service) -> Iterator[None]:
    """The indexer's writes wait for ours to end."""
    with closing(sqlite3.connect(service.workspace / 'indexer' / '0' / 'documents.db', isolation_level=None)) as db:
        db.execute('BEGIN IMMEDIATE')
        try:
            yield
        finally:
            db.execute('ROLLBACK')


def wait_until_inside(service: Service, stage: str, count: int = 1) -> None:
    """Until a stage has requests that it has not answered."""

    def waiting() -> bool:
        with Client(service.grpc) as client:
            return int(client.status()[stage]['waiting']) >= count

    until(waiting, 60, f'{count} requests are inside the {stage}')


def test_a_stage_that_is_told_to_stop_answers_what_is_inside_and_meanwhile_is_not_ready(service: Service) -> None:
    pid = service.pids['indexer']
    port = listening_port(pid)
    assert health(port) == SERVING
    with ThreadPoolExecutor() as pool, Client(service.grpc, retries=0) as client:
        with held_writes(service):
            stored = pool.submit(client.index, [Document(id='kept', text='kept')])
            wait_until_inside(service, 'indexer')
            os.kill(pid, signal.SIGTERM)
            until(lambda: health(port) == NOT_SERVING, 20, 'the indexer says that it is not ready')
            assert health(port, 'liveness') == SERVING
            assert not stored.done()
        assert [outcome.error for outcome in stored.result(timeout=60)] == [None]
    assert '(exit code 0)' in service.wait_for('clipflow: indexer died')
    service.wait_for('clipflow: indexer is ready')
    assert service.stored_ids() == {'kept'}


def test_a_stage_takes_requests_until_callers_have_learned_of_its_end(service: Service) -> None:
    pid = service.pids['encoder']
    port = listening_port(pid)
    os.kill(pid, signal.SIGTERM)
    until(lambda: health(port) == NOT_SERVING, 20, 'the encoder says that it is not ready')
    channel = grpc.insecure_channel(f'127.0.0.1:{port}')
    with channel:
        reply = channel.unary_unary('/jina.JinaInfoRPC/_status')(b'', timeout=30)
    assert reply


def index_by_http(service: Service) -> dict[str, object]:
    body = b'{"documents": [{"id": "by-http", "text": "kept"}]}'
    request = urllib.request.Request(f'{service.http}/v1/documents', body, {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, object] = json.loads(reply.read())
    return found


def test_the_gateway_answers_what_is_inside_by_http_and_grpc_and_meanwhile_is_not_ready(service: Service) -> None:
    assert readiness(service) == 200
    with ThreadPoolExecutor() as pool, Client(service.grpc, retries=0) as client:
        with held_writes(service):
            by_http = pool.submit(index_by_http, service)
            by_grpc = pool.submit(client.index, [Document(id='by-grpc', text='kept')])
            wait_until_inside(service, 'indexer', 2)
            os.kill(service.pids['gateway'], signal.SIGTERM)
            until(lambda: readiness(service) == 503, 20, 'the gateway says that it is not ready')
        assert [outcome.error for outcome in by_grpc.result(timeout=60)] == [None]
        assert 'by-http' in json.dumps(by_http.result(timeout=60))
    assert '(exit code 0)' in service.wait_for('clipflow: gateway died')
    service.wait_for('clipflow: gateway is ready')
    assert service.stored_ids() == {'by-http', 'by-grpc'}


def readiness(service: Service) -> int:
    try:
        with urllib.request.urlopen(f'{service.http}/readyz', timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_service_that_is_full_stays_ready_and_lets_it_be_seen(tmp_path: Path) -> None:
    with (
        Service(tmp_path / 'workspace', {'RUNTIME': 'fake', 'MAX_IN_FLIGHT': '1'}) as service,
        Client(service.grpc, retries=0) as client,
        ThreadPoolExecutor() as pool,
    ):
        with held_writes(service):
            stored = pool.submit(client.index, [Document(id='kept', text='kept')])
            until(lambda: queue_length(service) == 1, 60, 'the queue of the indexer is told')
            with pytest.raises(Overloaded):
                client.search('kept')
            # Else Kubernetes would send nothing here any more, and no scaler would know why.
            assert readiness(service) == 200
            asked = httpx.post(f'{service.http}/post', json={'exec_endpoint': '/status'}, timeout=10, trust_env=False)
            assert 'overloaded' in asked.text
        assert [outcome.error for outcome in stored.result(timeout=60)] == [None]


def queue_length(service: Service) -> float | None:
    """Of the indexer, as Prometheus is told."""
    with urllib.request.urlopen(f'{service.http}/metrics', timeout=60) as reply:
        lines = [line for line in reply.read().decode().splitlines() if 'queue_length{' in line and '"indexer"' in line]
    return float(lines[0].split()[-1]) if lines else None


@long
def test_no_search_fails_while_one_of_two_encoders_is_replaced(tmp_path: Path) -> None:
    flow = flow_with(tmp_path, {'encoder': {'replicas': 2}})
    with Service(tmp_path / 'workspace', {'RUNTIME': 'fake'}, flow) as service:
        service.post('/index', Document(id='kept', text='kept'))
        stop, answers, faults = threading.Event(), [], []

        def ask() -> None:
            with Client(service.grpc, retries=0) as client:
                while not stop.is_set():
                    begun = time.monotonic()
                    try:
                        client.search('kept')
                        answers.append(time.monotonic() - begun)
                    except Exception as error:
                        faults.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        replicas = [name for name in service.pids if name.startswith('encoder')]
        assert len(replicas) == 2
        for number in (signal.SIGTERM, signal.SIGKILL):
            for name in replicas:
                enough = len(answers) + 20
                until(lambda enough=enough: len(answers) > enough, 30, 'searches are answered')
                os.kill(service.pids[name], number)
                service.wait_for(f'clipflow: {name} is ready', 60)
        stop.set()
        asker.join(timeout=30)
        assert not faults, faults[:3]
        assert max(answers) < 5

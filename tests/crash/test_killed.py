"""kill -9: of the indexer while it writes, of each stage, of the whole launcher. Nothing acknowledged is lost."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docarray import Document
from jina import Client as JinaClient

from clipflow_client import Client
from service import Service, png, until

from .writer import Writer, assert_kept

STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker', 'gateway')
KILLS = 5
"""One more within a minute, and the launcher gives the stage up."""
SEED = 20261124


def test_an_indexer_that_is_killed_while_it_writes_loses_nothing_and_revives_nothing(tmp_path: Path) -> None:
    moments = random.Random(SEED)
    stored: set[str] = set()
    deleted: set[str] = set()
    failed = 0
    for life in range(2):
        service = Service(tmp_path, {'RUNTIME': 'fake'})
        service.wait_for('clipflow: serving')
        try:
            assert_kept(service, stored, deleted)
            for kill in range(KILLS):
                with Writer(service, life * KILLS + kill) as writer:
                    wanted = moments.randint(3, 30)
                    until(lambda w=writer, n=wanted: w.requests >= n, 60, 'the writer gets on')  # type: ignore[misc]
                    time.sleep(moments.random() * 0.01)  # so that it hits any moment of a request
                    service.kill('indexer')
                    service.wait_until_ready_again('indexer')
                stored = (stored | writer.stored) - writer.deleted
                deleted |= writer.deleted
                failed += len(writer.errors)
                assert {error.retryable for error in writer.errors} <= {True}, writer.errors
                assert_kept(service, stored, deleted)
        finally:
            service.process.kill()
            service.process.wait()
            service.wait_until_gone(5)
    assert len(stored) > 100
    assert len(deleted) > 10
    assert failed > 0


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of which every test kills something."""
    with Service(tmp_path_factory.mktemp('killed'), {'RUNTIME': 'fake'}) as running:
        running.post('/index', Document(id='a', text='a'))
        yield running


@pytest.mark.parametrize('stage', STAGES)
def test_our_client_gets_its_answer_although_a_stage_is_killed(service: Service, stage: str) -> None:
    with Client(service.grpc) as client:
        assert [match.id for match in client.search('a')] == ['a']
        service.kill(stage)
        assert [match.id for match in client.search('a')] == ['a']
        service.wait_until_ready_again(stage)
        assert [outcome.error for outcome in client.index([Document(id='a', text='a')])] == [None]
    assert [match.id for match in service.matches('a')] == ['a']
    assert JinaClient(host='127.0.0.1', port=service.port).is_flow_ready()


def test_http_tells_the_truth_while_a_stage_is_away(service: Service) -> None:
    with httpx.Client(base_url=service.http, timeout=30, trust_env=False) as client:
        assert client.get('/readyz').status_code == 200
        service.kill('encoder')
        answer = until(lambda: (r := client.get('/readyz')).status_code == 503 and r, 5, 'readyz says no')
        assert answer.json()['code'] == 'not-ready'
        assert answer.headers['retry-after'] == '1'
        search = client.post('/v1/search', json={'text': 'a'})
        assert search.status_code in (200, 503)
        if search.status_code == 503:
            assert (search.json()['code'], search.headers['retry-after']) == ('unavailable', '1')
        assert client.get('/healthz').status_code == 200
        service.wait_until_ready_again('encoder')
        until(lambda: client.get('/readyz').status_code == 200, 5, 'readyz says yes')
        assert client.post('/v1/search', json={'text': 'a'}).status_code == 200


def test_the_model_is_loaded_again_within_the_retries_of_a_client(model_service: Service, photographs: Path) -> None:
    model_service.post('/clear')
    with Client(model_service.grpc) as client:
        client.index([photographs / 'chelsea.png'])
        model_service.kill('encoder')
        assert client.search('a cat')[0].tags == {}
        model_service.wait_until_ready_again('encoder')


def test_a_launcher_that_is_killed_leaves_no_process_and_nothing_is_lost(tmp_path: Path) -> None:
    service = Service(tmp_path, {'RUNTIME': 'fake'})
    service.wait_for('clipflow: serving')
    assert service.processes() >= {service.process.pid, *service.pids.values()}
    with Writer(service) as writer:
        until(lambda: writer.requests >= 30, 60, 'the writer gets on')
        service.process.kill()
        service.process.wait()
        service.wait_until_gone(5)
    with Service(tmp_path, {'RUNTIME': 'fake'}) as again:
        assert_kept(again, writer.stored, writer.deleted)
        again.post('/index', Document(id='new', blob=png()))
        assert again.matches(Document(blob=png()))[0].id == 'new'


def test_a_stage_that_dies_again_and_again_stops_the_service_and_is_named(tmp_path: Path) -> None:
    service = Service(tmp_path, {'RUNTIME': 'fake'})
    service.wait_for('clipflow: serving')
    for _ in range(KILLS):
        service.kill('ranker')
        service.wait_until_ready_again('ranker')
    service.kill('ranker')
    assert service.wait_until_ended(20) == 1
    assert service.lines[-1] == f'clipflow: unavailable: the stage ranker died {KILLS + 1} times within a minute\n'
    service.wait_until_gone(5)

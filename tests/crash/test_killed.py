"""kill -9: of the indexer while it writes, of each stage, of the whole launcher. Nothing acknowledged is lost."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docarray import Document
from jina import Client as JinaClient

from clipflow.errors import NotReady, Unavailable
from clipflow.store import layout
from clipflow_client import Client
from forms import long
from service import Lives, Service, png, until

from .writer import Writer, assert_kept

STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker', 'gateway')
KILLS = 5
"""One more within a minute, and the launcher gives the stage up."""
SEED = 20261124


class Killed:
    """An indexer that is killed again and again while it writes, and what its documents must be."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.deleted: set[str] = set()
        self.met = 0
        """Kills while a request was on its way."""
        self._writers = 0
        self._moments = random.Random(SEED)

    def kill(self, service: Service) -> None:
        """Once; afterwards everything is as it was acknowledged."""
        with Writer(service, self._writers) as writer:
            wanted = self._moments.randint(3, 30)
            until(lambda: writer.requests >= wanted, 60, 'the writer gets on')
            time.sleep(self._moments.random() * 0.01)  # so that it hits any moment of a request
            self.met += writer.waits
            service.kill('indexer')
            service.wait_until_ready_again('indexer')
        self._writers += 1
        self.stored = (self.stored | writer.stored) - writer.deleted
        self.deleted |= writer.deleted
        assert {error.retryable for error in writer.errors} <= {True}, writer.errors
        self.assert_kept(service)

    def assert_kept(self, service: Service) -> None:
        """See `assert_kept`."""
        assert_kept(service, self.stored, self.deleted)

    def assert_worth_the_name(self, kills: int) -> None:
        """There was much of everything."""
        assert len(self.stored) > 10 * kills
        assert len(self.deleted) > kills
        assert self.met > 0


@pytest.fixture(scope='module')
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with Lives(tmp_path_factory.mktemp('killed')) as shared:
        yield shared


@pytest.fixture
def service(lives: Lives) -> Service:
    """A service with one document, of which every test kills something."""
    running = lives.service()
    running.post('/clear')
    running.post('/index', Document(id='a', text='a'))
    return running


def test_an_indexer_that_is_killed_while_it_writes_loses_nothing_and_revives_nothing(service: Service) -> None:
    killed, kills = Killed(), 0
    # Between two requests the kill is met by nobody: then once more.
    while kills < 3 or (not killed.met and kills < KILLS):
        killed.kill(service)
        kills += 1
    killed.assert_worth_the_name(kills)


@long
def test_nothing_is_lost_or_revived_after_the_death_of_the_launcher_either(tmp_path: Path) -> None:
    killed = Killed()
    for _ in range(2):
        own = Service(tmp_path, {'RUNTIME': 'fake'})
        own.wait_for('clipflow: serving')
        try:
            killed.assert_kept(own)
            for _ in range(KILLS):
                killed.kill(own)
        finally:
            own.process.kill()
            own.process.wait()
            own.wait_until_gone(60)
    killed.assert_worth_the_name(2 * KILLS)


@pytest.mark.parametrize('stage', STAGES)
def test_our_client_gets_its_answer_although_a_stage_is_killed(service: Service, stage: str) -> None:
    with Client(service.grpc, retries=20) as client:
        assert [match.id for match in client.search('a')] == ['a']
        service.kill(stage)
        assert [match.id for match in client.search('a')] == ['a']
        service.wait_until_ready_again(stage)
        assert [outcome.error for outcome in client.index([Document(id='a', text='a')])] == [None]
    assert [match.id for match in service.matches('a')] == ['a']
    until(lambda: JinaClient(host='127.0.0.1', port=service.port).is_flow_ready(), 60, 'Jina finds it ready')


def test_http_tells_the_truth_while_a_stage_is_away(service: Service) -> None:
    with httpx.Client(base_url=service.http, timeout=120, trust_env=False) as client:
        assert client.get('/readyz').status_code == 200
        service.kill('encoder')
        answer = until(lambda: (r := client.get('/readyz')).status_code == 503 and r, 60, 'readyz says no')
        assert answer.json()['code'] == 'not-ready'
        assert answer.headers['retry-after'] == '1'
        search = client.post('/v1/search', json={'text': 'a'})
        assert search.status_code in (200, 503)
        if search.status_code == 503:
            assert (search.json()['code'], search.headers['retry-after']) == ('unavailable', '1')
        assert client.get('/healthz').status_code == 200
        service.wait_until_ready_again('encoder')
        until(lambda: client.get('/readyz').status_code == 200, 60, 'readyz says yes')
        assert client.post('/v1/search', json={'text': 'a'}).status_code == 200


def test_the_model_is_loaded_again_within_the_retries_of_a_client(model_service: Service, photographs: Path) -> None:
    model_service.post('/clear')
    with Client(model_service.grpc) as client, Client(model_service.grpc, timeout=240, retries=60) as patient:
        client.index([photographs / 'chelsea.png'])
        model_service.kill('encoder')
        begun = time.monotonic()
        try:
            found, waited = client.search('a cat'), 0.0
        except (NotReady, Unavailable):
            waited = time.monotonic() - begun
            found = patient.search('a cat')
        assert found[0].tags == {}
        model_service.wait_until_ready_again('encoder')
    # Where others have the processors it may take longer; alone it would have been in time.
    assert not waited or processor_seconds(model_service.pids['encoder']) < waited


def processor_seconds(pid: int) -> float:
    """What a process has taken so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def test_a_launcher_that_is_killed_leaves_no_process_and_nothing_is_lost(service: Service, lives: Lives) -> None:
    assert service.processes() >= {service.process.pid, *service.pids.values()}
    with Writer(service) as writer:
        until(lambda: writer.requests >= 30, 60, 'the writer gets on')
        service.process.kill()
        service.process.wait()
        service.wait_until_gone(60)
    again = lives.service()
    assert again is not service
    assert_kept(again, writer.stored, writer.deleted)
    again.post('/index', Document(id='new', blob=png()))
    assert again.matches(Document(blob=png()))[0].id == 'new'


def test_a_stage_that_dies_again_and_again_stops_the_service_and_is_named(service: Service) -> None:
    # Where another test has killed it within this minute, fewer times are enough.
    before = service.log.count('clipflow: ranker died')
    begun = time.monotonic()
    for _ in range(KILLS + 1):
        service.kill('ranker')
        if 'the stage ranker died' in service.wait_for('ranker died', 60):
            break
        service.wait_for('clipflow: ranker is ready')
        if time.monotonic() > begun + 50:
            pytest.skip('so many starts take longer than a minute here; the rule is in tests/unit/border')
    assert service.wait_until_ended() == 1
    assert service.lines[-1] == f'clipflow: unavailable: the stage ranker died {KILLS + 1} times within a minute\n'
    assert KILLS - before <= service.log.count('clipflow: ranker died') - before <= KILLS
    service.wait_until_gone(60)


@long
def test_a_stage_that_dies_at_every_start_stops_the_service_after_five_tries(service: Service) -> None:
    damaged = service.workspace / layout.GENERATION
    damaged.write_text('not a name')
    try:
        service.kill('indexer')
        assert service.wait_until_ended(300) == 1
    finally:
        damaged.unlink()
    assert service.log.count('the indexer cannot start: internal: ') == KILLS
    said = f'the stage indexer did not start, {KILLS} times in a row; its own message stands above'
    assert service.lines[-1] == f'clipflow: unavailable: {said}\n'
    service.wait_until_gone(60)

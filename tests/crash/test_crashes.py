"""Real processes are killed: what was acknowledged stays, what was deleted stays away, nothing is left over."""

import itertools
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docarray import Document

from clipflow.errors import ClipflowError
from clipflow_client import Client
from forms import long
from service import Lives, Service, png, spied_on, until

STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker', 'gateway')


@pytest.fixture(scope='module')
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with Lives(tmp_path_factory.mktemp('running')) as shared:
        yield shared


@pytest.fixture
def running(lives: Lives) -> Service:
    """A service with the fake session; of earlier tests there may be documents."""
    return lives.service()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    """The same for one test alone."""
    with Service(tmp_path / 'workspace', {'RUNTIME': 'fake'}) as service:
        yield service


def test_nothing_acknowledged_is_lost_when_the_indexer_is_killed_again_and_again(running: Service) -> None:
    chance = random.Random(7)
    stored: set[str] = set()
    deleted: set[str] = set()
    stop = threading.Event()
    faults: list[BaseException] = []

    def write() -> None:
        number = 0
        with Client(running.grpc, retries=20) as client:
            while not stop.is_set():
                names = [f'{number}-{i}' for i in range(8)]
                number += 1
                try:
                    outcomes = client.index([Document(id=name, text=name) for name in names])
                    stored.update(outcome.id for outcome in outcomes if outcome.error is None)
                    gone = names[:2]
                    stored.difference_update(gone)  # in between nothing is promised
                    client.delete(gone)
                    deleted.update(gone)
                except ClipflowError as error:
                    faults.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(4):
        before = len(stored)
        threshold = before + chance.randrange(8, 80)
        deadline = time.monotonic() + 120
        while len(stored) < threshold:
            assert time.monotonic() < deadline, 'writing does not go on'
            stop.wait(0.01)
        running.kill('indexer')
        running.wait_until_ready_again('indexer')
    stop.set()
    writer.join(timeout=60)
    assert not faults
    assert len(deleted) > 10
    found = running.stored_ids()
    assert stored <= found
    assert not deleted & found


@long  # test_killed.py kills one that writes
def test_a_killed_launcher_leaves_no_process_and_no_document_is_lost(own: Service) -> None:
    with Client(own.grpc) as client:
        assert [outcome.error for outcome in client.index([Document(id='kept', text='a cat')])] == [None]
    own.process.kill()
    own.process.wait(timeout=60)
    own.wait_until_gone(60)
    with Service(own.workspace, {'RUNTIME': 'fake'}) as again:
        assert again.stored_ids() == {'kept'}


@long  # test_killed.py kills each, with fewer retries
def test_each_stage_is_started_again_and_the_next_search_succeeds(running: Service) -> None:
    with Client(running.grpc, retries=20) as client:
        client.index([Document(id='cat', text='a cat')])
        for stage in STAGES:
            running.kill(stage)
            assert [match.id for match in client.search('a cat')] == ['cat'], stage
            running.wait_until_ready_again(stage)


def _failed(tmp_path: Path, **settings: str) -> tuple[int, str]:
    service = Service(tmp_path / 'workspace', {'RUNTIME': 'fake', **settings})
    return service.wait_until_ended(), service.log


def test_a_model_that_is_not_there_stops_the_start_with_stage_and_cause(tmp_path: Path) -> None:
    code, log = _failed(tmp_path, MODEL='/no/such/model')
    assert code != 0
    assert "cannot start: not-found: there is no model directory '/no/such/model'" in log
    assert 'did not start' in log
    assert 'Traceback' not in log


@long  # tests/unit/test_settings.py says the same of the settings alone
def test_a_variable_that_jina_left_in_place_is_refused(tmp_path: Path) -> None:
    code, log = _failed(tmp_path, MODEL='$MODEL')
    assert code != 0
    assert 'the variable $MODEL is not set' in log


def test_a_second_service_on_the_same_workspace_is_refused(running: Service) -> None:
    service = Service(running.workspace, {'RUNTIME': 'fake'})
    code, log = service.wait_until_ended(), service.log
    assert code != 0
    assert 'the indexer cannot start: conflict: another process serves the workspace' in log
    assert 'Traceback' not in log


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, log = _failed(tmp_path, HTTP_PORT=port)
    assert code != 0
    assert f'cannot listen on 127.0.0.1:{port}' in log
    assert 'Traceback' not in log


def test_no_foreign_host_is_looked_up(model_service: Service, foreign_contacts: Path) -> None:
    with Client(model_service.grpc) as client:
        client.index([Document(id='red', blob=png('red'))])
        assert [match.id for match in client.search(png('red'), limit=1)] == ['red']
    assert not foreign_contacts.exists(), foreign_contacts.read_text()


@long
def test_no_foreign_host_is_looked_up_with_the_fake_session_either(tmp_path: Path) -> None:
    contacts = tmp_path / 'contacts'
    with pytest.MonkeyPatch.context() as patch:
        spied_on(patch, tmp_path / 'site', contacts)
        service = Service(tmp_path / 'workspace', {'RUNTIME': 'fake'})
    with service, Client(service.grpc) as client:
        client.index([Document(id='red', blob=png('red'))])
        assert [match.id for match in client.search(png('red'))] == ['red']
    assert not contacts.exists(), contacts.read_text()


def _signalled_while_it_indexes(service: Service, number: int, name: str) -> set[str]:
    """Its end, and the ids that were acknowledged before."""
    stored: set[str] = set()
    started = threading.Event()

    def write() -> None:
        with Client(service.grpc, retries=0) as client:
            try:
                for outcome in client.index_iter(Document(id=f'{name} {i}', text=f'{i}') for i in range(100_000)):
                    if outcome.error is None:
                        stored.add(outcome.id)
                        started.set()
            except ClipflowError:
                pass  # the service is going, as it should

    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(60)
    begun = time.monotonic()
    assert service.terminate(number) == 0
    # What does not stop within eight seconds is killed; the rest is for a machine that is busy.
    assert time.monotonic() - begun < 20
    writer.join(timeout=60)
    service.wait_until_gone(60)
    assert stored
    return stored


def _assert_there(service: Service, ids: set[str]) -> None:
    some = sorted(ids)[:10_000]
    with Client(service.grpc) as client:
        assert set(client.get(some)) == set(some)


def test_a_signal_during_indexing_stops_within_ten_seconds_and_loses_nothing(lives: Lives) -> None:
    first = _signalled_while_it_indexes(lives.service(), signal.SIGTERM, 'first')
    _assert_there(lives.service(), first)
    second = _signalled_while_it_indexes(lives.service(), signal.SIGINT, 'second')
    _assert_there(lives.service(), first)
    _assert_there(lives.service(), second)


def test_more_signals_while_it_stops_change_nothing(lives: Lives) -> None:
    service = lives.service()
    service.post('/index', Document(id='kept', text='kept'))
    service.process.terminate()
    service.wait_for('clipflow: stopping', 60)
    more = itertools.cycle((signal.SIGTERM, signal.SIGINT))
    process = service.process
    until(lambda: process.poll() is not None or process.send_signal(next(more)), 60, 'it has ended')
    assert process.returncode == 0
    service.wait_until_gone(60)
    assert 'Traceback' not in service.log
    _assert_there(lives.service(), {'kept'})


def test_a_service_whose_lines_nobody_reads_any_more_still_stops(running: Service) -> None:
    assert running.process.stderr is not None
    # As after `clipflow serve 2>&1 | head`; the descriptor, because a thread of ours reads the file object.
    os.dup2(os.open(os.devnull, os.O_RDONLY), running.process.stderr.fileno())
    running.process.terminate()
    assert running.process.wait(timeout=60) == 0
    running.wait_until_gone(60)

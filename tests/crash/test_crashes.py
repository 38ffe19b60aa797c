"""Real processes are killed: what was acknowledged stays, what was deleted stays away, nothing is left over."""

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
from service import Service, png

STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker', 'gateway')
SPY = """
import os, socket
def noted(call):
    def wrapper(host, *args, **kwargs):
        name = host[0] if isinstance(host, tuple) else host
        if isinstance(name, bytes):
            name = name.decode()
        if name not in (None, '', 'localhost', '0.0.0.0', '::1') and not str(name).startswith('127.'):
            with open(os.environ['CONTACTS'], 'a') as file:
                print(name, file=file)
        return call(host, *args, **kwargs)
    return wrapper
socket.getaddrinfo = noted(socket.getaddrinfo)
socket.gethostbyname = noted(socket.gethostbyname)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    """A service with the fake session and a workspace of its own."""
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
        deadline = time.monotonic() + 30
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


def test_a_killed_launcher_leaves_no_process_and_no_document_is_lost(running: Service) -> None:
    with Client(running.grpc) as client:
        assert [outcome.error for outcome in client.index([Document(id='kept', text='a cat')])] == [None]
    running.process.kill()
    running.process.wait(timeout=10)
    running.wait_until_gone(5)
    with Service(running.workspace, {'RUNTIME': 'fake'}) as again:
        assert again.stored_ids() == {'kept'}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_indexing_stops_within_ten_seconds_and_loses_nothing(running: Service, number: int) -> None:
    stored: set[str] = set()
    started = threading.Event()

    def write() -> None:
        with Client(running.grpc, retries=0) as client:
            try:
                for outcome in client.index_iter(Document(id=str(i), text=str(i)) for i in range(100_000)):
                    if outcome.error is None:
                        stored.add(outcome.id)
                        started.set()
            except ClipflowError:
                pass  # the service is going, as it should

    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(20)
    begun = time.monotonic()
    assert running.terminate(number) == 0
    assert time.monotonic() - begun < 10
    writer.join(timeout=30)
    running.wait_until_gone(2)
    with Service(running.workspace, {'RUNTIME': 'fake'}) as again, Client(again.grpc) as client:
        assert stored
        assert set(client.get(sorted(stored)[:10_000])) >= set(sorted(stored)[:10_000])


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


def test_a_variable_that_jina_left_in_place_is_refused(tmp_path: Path) -> None:
    code, log = _failed(tmp_path, MODEL='$MODEL')
    assert code != 0
    assert 'the variable $MODEL is not set' in log


def test_a_second_service_on_the_same_workspace_is_refused(running: Service, tmp_path: Path) -> None:
    code, log = _failed(tmp_path)
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


@pytest.mark.parametrize('runtime', ['fake', 'auto'])
def test_no_foreign_host_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(SPY)
    contacts = tmp_path / 'contacts'
    monkeypatch.setenv('CONTACTS', str(contacts))
    monkeypatch.delenv('JINA_OPTOUT_TELEMETRY', raising=False)
    monkeypatch.delenv('NO_VERSION_CHECK', raising=False)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'site'), prepend=':')
    # With an empty cache: a model that has to be exported first is exported too.
    settings = {'RUNTIME': runtime, 'CACHE': str(tmp_path / 'cache')}
    with Service(tmp_path / 'workspace', settings) as service, Client(service.grpc) as client:
        client.index([Document(id='red', blob=png('red'))])
        assert [match.id for match in client.search(png('red'))] == ['red']
    assert not contacts.exists(), contacts.read_text()


def test_a_service_whose_lines_nobody_reads_any_more_still_stops(tmp_path: Path) -> None:
    service = Service(tmp_path / 'workspace', {'RUNTIME': 'fake'})
    service.wait_for('clipflow: serving')
    assert service.process.stderr is not None
    # As after `clipflow serve 2>&1 | head`; the descriptor, because a thread of ours reads the file object.
    os.dup2(os.open(os.devnull, os.O_RDONLY), service.process.stderr.fileno())
    service.process.terminate()
    assert service.process.wait(timeout=20) == 0
    service.wait_until_gone(5)

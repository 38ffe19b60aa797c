"""The indexer over Milvus Lite, in an environment of its own: its congruence tests, and a service with it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from docarray import Document

from clipflow import ROOT
from clipflow.errors import InvalidFilter, InvalidParameter, ModelMismatch, NotFound, Unavailable
from environments import milvus
from forms import long
from service import Service, error_of, free_port, png, until

pytestmark = long

SECRET = 'root:a-secret-that-nobody-may-see'
COLOURS = ('red', 'green', 'blue')


@pytest.fixture(scope='module')
def python() -> Path:
    """The interpreter with pymilvus."""
    return milvus()


def test_it_is_congruent_with_the_other_index(python: Path) -> None:
    command = [str(python), '-m', 'pytest', '--noconftest', '-q', '-p', 'no:cacheprovider']
    done = subprocess.run(
        [*command, 'tests/congruence/test_milvus.py'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "client"}'},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert ' passed' in done.stdout
    assert 'skipped' not in done.stdout


class Indexer:
    """The room, started as its README says, over Milvus Lite in a workspace."""

    def __init__(self, python: Path, workspace: Path, port: int) -> None:
        self._python, self._workspace, self.port = python, workspace, port
        self.said = workspace / 'indexer.log'
        workspace.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Again, too."""
        uses = ROOT / 'executors' / 'milvus_indexer' / 'config.yml'
        options = ['--native', '--name', 'indexer', '--host', '127.0.0.1', '--port', str(self.port)]
        environment = {
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'CLIPFLOW_WORKSPACE': str(self._workspace),
            'CLIPFLOW_MILVUS_INDEX': 'FLAT',
            'CLIPFLOW_MILVUS_TOKEN': SECRET,
            'CLIPFLOW_LOG_REQUESTS': '1',
        }
        with self.said.open('a') as log:
            command = [str(self._python.with_name('jina')), 'executor', '--uses', str(uses), *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._workspace)

    def end(self, number: int) -> None:
        """By a signal."""
        self.process.send_signal(number)
        self.process.wait(timeout=60)


@pytest.fixture(scope='module')
def indexer(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexer]:
    running = Indexer(python, tmp_path_factory.mktemp('milvus'), free_port())
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


@pytest.fixture(scope='module')
def _running(indexer: Indexer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The committed Flow, with the port of this indexer."""
    flow = yaml.safe_load((ROOT / 'flows' / 'milvus.yml').read_text(encoding='utf-8'))
    for part in [flow['gateway'], *flow['executors']]:
        if part.get('external'):
            part['port'] = indexer.port
        else:
            part['uses'] = str((ROOT / 'flows' / part['uses']).resolve())
    work = tmp_path_factory.mktemp('flow')
    path = work / 'flow.yml'
    path.write_text(yaml.safe_dump(flow, sort_keys=False), encoding='utf-8')
    with Service(work / 'workspace', {'RUNTIME': 'fake'}, flow=path) as running:
        yield running


@pytest.fixture
def service(_running: Service) -> Service:
    """With nine texts and three pictures."""
    _running.post('/clear')
    docs = [Document(id=f't{n}', text=f'text {n}', tags={'n': n, 'shop': {'city': COLOURS[n % 3]}}) for n in range(9)]
    docs += [Document(id=f'p-"{colour}"', blob=png(colour), tags={'color': colour}) for colour in COLOURS]
    assert not any('__error__' in doc.tags for doc in _running.post('/index', docs))
    return _running


def test_it_stores_finds_filters_changes_and_deletes(service: Service) -> None:
    assert [match.id for match in service.matches('text 4', limit=1)] == ['t4']
    assert [match.id for match in service.matches(Document(blob=png('green')), limit=1)] == ['p-"green"']
    near = service.matches('text 4', limit=5, filter={'shop__city': 'blue'}, include=['tags', 'percentile'])
    assert {match.id for match in near} == {'t2', 't5', 't8'}
    assert all(match.tags['shop'] == {'city': 'blue'} for match in near)
    order = [match.id for match in service.matches('text 4', limit=50)]
    shares = {match.id: match.scores['percentile'].value for match in near}
    assert shares == pytest.approx({name: (11 - order.index(name)) / 12 for name in shares})
    (picture,) = service.matches(Document(blob=png('red')), limit=1, include=['thumbnail', 'embedding', 'key'])
    assert picture.blob[:4] == b'RIFF'
    assert picture.embedding is not None
    assert [doc.id for doc in service.post('/get', None, {'keys': [picture.tags['__key__']]})] == [picture.id]

    changed = service.post('/update', [Document(id='t1', tags={'n': None, 'new': True}), Document(id='none')])
    assert error_of(changed[1]).code == 'not-found'
    assert service.post('/get', None, {'ids': ['t1']})[0].tags == {'new': True, 'shop': {'city': 'green'}}
    (facets,) = service.post('/facets', None, {'filter': {'color': {'$exists': True}}})
    assert [facet['tag'] for facet in facets.tags['facets']] == ['color']

    assert service.post('/delete', None, {'filter': {'n': {'$gte': 6}}})[0].tags['deleted'] == 3
    assert service.post('/delete', [Document(id='p-"red"'), Document(id='none')])[0].tags['deleted'] == 1
    assert service.stored_ids() == {'t0', 't1', 't2', 't3', 't4', 't5', 'p-"green"', 'p-"blue"'}
    assert 'p-"red"' not in {match.id for match in service.matches('text 4', limit=50)}
    pages = [service.post('/get', None, {'limit': 3, 'offset': offset}) for offset in (0, 3, 6)]
    assert [doc.id for page in pages for doc in page] == sorted(service.stored_ids())


def test_what_milvus_cannot_do_is_said_in_a_sentence(service: Service) -> None:
    with pytest.raises(InvalidFilter, match='pattern'):
        service.post('/search', Document(text='a'), {'filter': {'shop__city': {'$regex': '^b'}}})
    with pytest.raises(InvalidParameter, match='16,384'):
        service.post('/search', Document(text='a'), {'offset': 19_000})
    with pytest.raises(NotFound, match='snapshot'):
        service.post('/snapshot')
    reply = service.post('/index', [Document(id='long', text='ä' * 40_000), Document(id='short', text='a')])
    assert [doc.tags.get('__error__', {}).get('code') for doc in reply] == ['too-large', None]
    with pytest.raises(ModelMismatch):
        service.post('/encode/another', Document(text='a'))


def test_by_http_and_with_feedback_it_is_as_ever(service: Service) -> None:
    with httpx.Client(base_url=service.http, timeout=60, trust_env=False) as http:
        found = http.post('/v1/search', json={'text': 'text 4', 'limit': 2}).json()
        assert [match['id'] for match in found['matches']][:1] == ['t4']
    kept = service.post('/feedback', Document(text='text 4'), {'shown': ['t4', 't1'], 'clicked': ['t4']})
    assert kept[0].tags['stored'] == 1
    assert service.post('/feedback/stats')[0].tags['entries'] >= 1


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM], ids=['killed', 'stopped'])
def test_everything_is_there_after_the_indexer_has_ended(service: Service, indexer: Indexer, number: int) -> None:
    before = service.stored_ids()
    indexer.end(number)
    indexer.start()

    def found() -> set[str]:
        assert indexer.process.poll() is None, indexer.said.read_text()[-2000:]
        try:
            return service.stored_ids()
        except Unavailable:
            return set()

    assert until(found, 180, 'the indexer is back') == before
    assert [match.id for match in service.matches('text 7', limit=1)] == ['t7']
    assert len(service.matches('text 7', limit=50, filter={'n': {'$lt': 4}})) == 4


def test_the_status_and_the_log_hold_no_secret(service: Service, indexer: Indexer) -> None:
    (told,) = (doc.tags for doc in service.post('/status') if doc.id == 'indexer')
    assert (told['documents'], told['kind'], told['vectors']) == (12, 'milvus FLAT', 'float')
    assert told['milvus'].endswith('milvus.db')
    assert SECRET not in str(told) + indexer.said.read_text() + service.log

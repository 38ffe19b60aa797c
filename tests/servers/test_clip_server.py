"""flows/clip-server.yml with clip-as-service's own CLIPEncoder, in an environment of its own."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from docarray import Document, DocumentArray
from jina import Client

from clipflow import ROOT
from clipflow.errors import InvalidDocument, InvalidParameter, ModelMismatch, Unavailable
from environments import environment_by
from forms import long
from service import Service, error_codes, error_of, free_port, picture, png, until

pytestmark = long

SETUP = ROOT.parent / 'shared' / 'peers' / 'clip-as-service' / 'setup.sh'
EXTERNAL = ROOT / 'executors' / 'clip_server' / 'external' / 'encoder.yml'


class ClipServer:
    """The foreign encoder, with a tiny model."""

    def __init__(self, work: Path, port: int) -> None:
        self.port = port
        self.said = work / 'clip-server.log'
        python = environment_by('clip-server', SETUP)
        script = Path(__file__).with_name('clip_server_executor.py')
        command = [str(python), str(script), str(work / 'weights.pt'), str(EXTERNAL), str(port)]
        with self.said.open('w') as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=work)

    def wait_until_started(self) -> None:
        def started() -> bool:
            assert self.process.poll() is None, self.said.read_text()[-2000:]
            with socket.socket() as probe:  # it listens when the model is loaded
                return probe.connect_ex(('127.0.0.1', self.port)) == 0

        until(started, 120, 'clip-as-service is ready')

    def vectors(self, *docs: Document) -> np.ndarray:
        """What it says when it is asked directly, brought to unit length."""
        reply = Client(host='127.0.0.1', port=self.port).post('/encode', DocumentArray(docs))
        found = np.asarray(reply.embeddings, dtype=np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope='module')
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClipServer]:
    server = ClipServer(tmp_path_factory.mktemp('clip-server'), free_port())
    try:
        server.wait_until_started()
        yield server
    finally:
        server.stop()


def flow(directory: Path, port: int) -> Path:
    """The committed Flow, with the port of this server."""
    variant = yaml.safe_load((ROOT / 'flows' / 'clip-server.yml').read_text(encoding='utf-8'))
    for part in [variant['gateway'], *variant['executors']]:
        if part.get('external'):
            part['port'] = port
        else:
            part['uses'] = str((ROOT / 'flows' / part['uses']).resolve())
    path = directory / 'flow.yml'
    path.write_text(yaml.safe_dump(variant, sort_keys=False), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def service(foreign: ClipServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    work = tmp_path_factory.mktemp('flow')
    with Service(work / 'workspace', flow=flow(work, foreign.port)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(service: Service) -> None:
    service.post('/clear')


def test_its_vectors_are_stored_and_found(service: Service, foreign: ClipServer) -> None:
    colours = ('red', 'green', 'blue')
    docs = [Document(id=colour, blob=png(colour), uri=f'file:///nowhere/{colour}.png') for colour in colours]
    docs.append(Document(id='words', text='a cat on a mat'))
    reply = service.post('/index', docs)
    assert set(error_codes(reply).values()) == {None}
    assert all(not doc.blob for doc in reply)
    stored = {doc.id: doc for doc in service.post('/get', None, {'include': ['embedding', 'thumbnail', 'uri']})}
    expected = foreign.vectors(*(Document(blob=png(colour)) for colour in colours))
    for colour, vector in zip(colours, expected, strict=True):
        assert np.abs(stored[colour].embedding - vector).max() < 1e-5
        assert stored[colour].uri == f'file:///nowhere/{colour}.png'
        assert stored[colour].blob[:4] == b'RIFF'
    assert stored['words'].text == 'a cat on a mat'
    match = service.matches(Document(blob=png('green')))[0]
    assert (match.id, round(match.scores['cosine'].value, 4)) == ('green', 1.0)
    assert service.matches('a cat on a mat')[0].id == 'words'


def test_a_tensor_is_encoded_as_the_picture_that_it_is(service: Service, foreign: ClipServer) -> None:
    image = picture('teal', (90, 70))
    found = service.one('/encode', Document(tensor=np.asarray(image)))
    assert found.tensor is None
    expected = foreign.vectors(Document(blob=png('teal', (90, 70))))[0]
    assert np.abs(found.embedding - expected).max() < 1e-5
    kept = service.one('/encode', Document(tensor=np.asarray(image)), {'drop_image_content': False})
    assert np.array_equal(kept.tensor, np.asarray(image))


def test_one_bad_document_fails_alone_and_no_uri_is_read(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / 'secret.png'
    secret.write_bytes(png('red'))
    docs = [
        Document(id='good', blob=png('red')),
        Document(id='damaged', blob=png('red')[:60], uri=secret.as_uri()),
        Document(id='file', uri=secret.as_uri()),
        Document(id='ready', embedding=np.arange(32), uri=secret.as_uri(), text='kept as it is'),
        Document(id='zero', embedding=np.zeros(32)),
    ]
    reply = {doc.id: doc for doc in service.post('/index', docs)}
    assert {name: error_of(reply[name]).code for name in ('damaged', 'file', 'zero')} == {
        'damaged': 'undecodable',
        'file': 'forbidden-source',
        'zero': 'invalid-document',
    }
    assert reply['file'].uri == secret.as_uri()
    assert service.stored_ids() == {'good', 'ready'}
    ready = service.one('/get', Document(id='ready'), {'include': ['embedding', 'uri']})
    assert (ready.text, ready.uri) == ('kept as it is', secret.as_uri())
    assert np.abs(ready.embedding - np.arange(32) / np.linalg.norm(np.arange(32))).max() < 1e-6
    # The other endpoints do not reach the foreign encoder: it would read the file.
    update = Document(id='good', uri=secret.as_uri(), tags={'a': 1})
    assert error_codes(service.post('/update', update)) == {'good': None}
    assert service.one('/get', Document(id='good', uri=secret.as_uri())).tags['a'] == 1


def test_it_ranks_as_it_does_alone(service: Service) -> None:
    doc = Document(blob=png('red'), matches=[Document(text='a cat'), Document(text='red'), Document(blob=png('blue'))])
    ranked = service.one('/rank', doc)
    scores = [match.scores['clip_score'].value for match in ranked.matches]
    assert scores == sorted(scores, reverse=True)
    assert abs(sum(scores) - 1) < 1e-5
    assert all(not match.blob for match in ranked.matches)
    with pytest.raises(InvalidDocument, match='content'):
        service.post('/rank', Document(id='root', text='a', matches=[Document(id='empty')]))


def test_what_it_cannot_do_is_refused_in_a_sentence(service: Service) -> None:
    service.post('/index', Document(id='red', blob=png('red')))
    with pytest.raises(InvalidParameter, match='does not classify'):
        service.post('/classify', Document(text='a cat'), {'labels': ['cat', 'dog']})
    with pytest.raises(InvalidParameter, match='templates'):
        service.post('/search', Document(text='a cat'), {'templates': ['a photo of {}']})
    with pytest.raises(ModelMismatch, match='ViT-B-32::openai'):
        service.post('/encode/RN50::openai', Document(text='a cat'))
    assert service.one('/encode/ViT-B-32::openai', Document(text='a cat')).embedding.shape == (32,)
    parts = Document(chunks=[Document(text='a cat'), Document(text='a dog')])
    assert set(error_codes(service.post('/search', parts)).values()) == {'invalid-document'}


def test_the_status_names_it(service: Service) -> None:
    stages = {doc.id: doc.tags for doc in service.post('/status')}
    assert stages['encoder']['runtime'] == 'clip-server'
    assert (stages['encoder']['ready'], stages['encoder']['dimension']) == (True, 32)
    assert stages['encoder']['model'] == stages['indexer']['model'] == 'ViT-B-32::openai'
    assert httpx.get(f'{service.http}/readyz', timeout=60).status_code == 200


def test_the_flow_is_ready_only_while_it_runs(foreign: ClipServer, tmp_path: Path) -> None:
    port = free_port()
    first = ClipServer(tmp_path, port)
    first.wait_until_started()
    with Service(tmp_path / 'workspace', flow=flow(tmp_path, port)) as service:
        service.post('/index', Document(id='red', blob=png('red')))
        first.process.kill()
        first.process.wait()
        with pytest.raises(Unavailable, match='clip_server cannot be reached'):
            service.matches('red')
        until(lambda: httpx.get(f'{service.http}/readyz', timeout=60).status_code == 503, 60, 'it says no')
        again = ClipServer(tmp_path, port)
        try:
            again.wait_until_started()
            until(lambda: httpx.get(f'{service.http}/readyz', timeout=60).status_code == 200, 60, 'it says yes')
            assert service.matches(Document(blob=png('red')))[0].id == 'red'
        finally:
            again.stop()


def test_a_model_of_ours_is_refused_by_this_flow_and_its_model_by_ours(foreign: ClipServer, tmp_path: Path) -> None:
    mini = str(ROOT / 'models' / 'clip-mini')
    service = Service(tmp_path / 'one', {'MODEL': mini}, flow(tmp_path, foreign.port))
    assert service.wait_until_ended() != 0
    assert 'this Flow takes the vectors of clip-as-service' in service.log
    service = Service(tmp_path / 'two', {'MODEL': 'clip-server::ViT-B-32::openai'})
    assert service.wait_until_ended() != 0
    assert 'runs in clip-as-service: serve flows/clip-server.yml' in service.log

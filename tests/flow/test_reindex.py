"""`clipflow reindex` while a service runs: it changes model and vectors between two requests."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from docarray import Document, DocumentArray
from safetensors.torch import load_file, save_file

from clipflow import ROOT
from clipflow.errors import ClipflowError
from clipflow.store import generations
from clipflow_client import Client
from service import Service, error_codes, png

COLOURS = ('red', 'green', 'blue', 'white', 'yellow', 'cyan')


@pytest.fixture(scope='module')
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip-mini with weights that are a little different: other vectors, another fingerprint."""
    directory = tmp_path_factory.mktemp('model') / 'other'
    shutil.copytree(ROOT / 'models' / 'clip-mini', directory)
    (weights,) = directory.glob('*.safetensors')
    tensors = load_file(weights)
    generator = torch.Generator().manual_seed(1)
    for name, value in tensors.items():
        if 'projection' in name and value.is_floating_point() and value.numel() > 1:
            tensors[name] = value + value.std() * torch.randn(value.shape, generator=generator)
    save_file(tensors, weights, {'format': 'pt'})
    return directory


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


def reindex(workspace: Path, model: Path, **more: str) -> 'subprocess.Popen[str]':
    """The command, in a process of its own."""
    command = [sys.executable, '-m', 'clipflow.cli.main', 'reindex', str(model)]
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(workspace), **more}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_service_goes_on_while_its_documents_get_another_model(service: Service, other: Path) -> None:
    docs = DocumentArray([Document(id=colour, blob=png(colour)) for colour in COLOURS])
    docs.extend(Document(id=f't{n}', text=f'a text about {n}') for n in range(200))
    assert set(error_codes(service.post('/index', docs)).values()) == {None}
    query = Document(text='a red square')
    # Each answer holds the query's vector and those of its matches: all must be of one model.
    before = service.one('/search', query, {'include': ['embedding'], 'limit': 3})

    running = reindex(service.workspace, other)
    stop, answers, written, failures = threading.Event(), [before], [], []

    def search() -> None:
        while not stop.is_set():
            try:
                answers.append(service.one('/search', query, {'include': ['embedding'], 'limit': 3}))
            except (ClipflowError, AssertionError) as error:
                failures.append(error)

    def write() -> None:
        while not stop.is_set():
            name = f'w{len(written)}'
            try:
                reply = service.one('/index', Document(id=name, text=f'written meanwhile {name}'))
                failures.extend([reply.tags['__error__']] if '__error__' in reply.tags else [])
                written.append(name)
            except (ClipflowError, AssertionError) as error:
                failures.append(error)

    threads = [threading.Thread(target=search), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    said, complained = running.communicate(timeout=180)
    stop.set()
    for thread in threads:
        thread.join()
    assert running.returncode == 0, complained
    assert failures == []
    assert f'{len(COLOURS)} of them from thumbnails' in said
    assert written

    told = {doc.id: doc.tags for doc in service.post('/status')}
    assert told['encoder']['model'] == told['indexer']['model'] == 'other'
    after = service.one('/search', query, {'include': ['embedding'], 'limit': 3})
    assert float(before.embedding @ after.embedding) < 0.99
    for answer in (*answers, after):
        first = before if float(answer.embedding @ before.embedding) > 0.999 else after
        np.testing.assert_allclose(answer.embedding, first.embedding, atol=1e-3)
        for match in answer.matches:
            cosine = float(match.embedding @ answer.embedding)
            assert cosine == pytest.approx(match.scores['cosine'].value, abs=1e-5)
    assert service.stored_ids() == {doc.id for doc in docs} | set(written)
    assert [path.name for path in service.workspace.iterdir() if path.is_dir()] == [
        generations.current(service.workspace).name
    ]

    # A stage that dies is started again under the new model.
    service.kill('encoder')
    service.wait_until_ready_again('encoder')
    with Client(service.grpc) as client:  # tries again until the gateway has seen it
        assert client.status()['encoder']['model'] == 'other'


def test_a_model_that_does_not_start_leaves_everything_as_it_was(service: Service, other: Path, tmp_path: Path) -> None:
    service.post('/index', DocumentArray([Document(id='a', text='a text')]))
    # The command has the model in another runtime, in which the service cannot load it.
    refused = reindex(service.workspace, other, CLIPFLOW_RUNTIME='fake')
    hidden = other.with_name('hidden')
    service.wait_for('starting the stages')
    other.rename(hidden)
    try:
        _, complained = refused.communicate(timeout=120)
    finally:
        hidden.rename(other)
    assert refused.returncode == 1
    assert 'does not start under the new model' in complained
    assert service.one('/index', Document(id='b', text='another')).id == 'b'
    assert service.stored_ids() == {'a', 'b'}
    assert generations.current(service.workspace) == service.workspace / 'indexer'


def test_without_a_service_the_documents_change_at_once(service: Service, other: Path) -> None:
    service.post('/index', DocumentArray([Document(id='a', text='a text'), Document(id='b', embedding=np.ones(384))]))
    service.terminate()
    missing = reindex(service.workspace, other)
    _, complained = missing.communicate(timeout=120)
    assert (missing.returncode, '--drop-missing' in complained) == (1, True)
    assert generations.current(service.workspace) == service.workspace / 'indexer'
    command = [sys.executable, '-m', 'clipflow.cli.main', 'reindex', str(other), '--drop-missing']
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(service.workspace)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, '1 documents' in done.stdout) == (0, True), done.stderr
    with Service(service.workspace, {'MODEL': str(other)}) as again:
        assert again.stored_ids() == {'a'}

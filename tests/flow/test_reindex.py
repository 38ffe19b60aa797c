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
from forms import long
from service import Service, error_codes, png, until

TORCH = {'RUNTIME': 'torch'}
"""The others would export both models first."""
MINI = ROOT / 'models' / 'clip-mini'
COLOURS = ('red', 'green', 'blue', 'white', 'yellow', 'cyan')


def varied(directory: Path, seed: int) -> Path:
    """clip-mini with weights that are a little different: other vectors, another fingerprint."""
    shutil.copytree(MINI, directory)
    (weights,) = directory.glob('*.safetensors')
    tensors = load_file(weights)
    generator = torch.Generator().manual_seed(seed)
    for name, value in tensors.items():
        if name.endswith('_projection.weight'):  # of the towers; elsewhere are variances, which must not get below zero
            tensors[name] = value + value.std() * torch.randn(value.shape, generator=generator)
    save_file(tensors, weights, {'format': 'pt'})
    return directory


@pytest.fixture(scope='module')
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return varied(tmp_path_factory.mktemp('model') / 'other', 1)


@pytest.fixture(scope='module')
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp('reindex'), TORCH) as running:
        yield running


@pytest.fixture
def service(_service: Service) -> Service:
    """With one model or the other, and without documents; the last of the tests ends it."""
    _service.post('/clear')
    return _service


def reindex(workspace: Path, model: Path, *flags: str, **more: str) -> 'subprocess.Popen[str]':
    """The command, in a process of its own."""
    command = [sys.executable, '-m', 'clipflow.cli.main', 'reindex', str(model), *flags]
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(workspace), 'CLIPFLOW_RUNTIME': 'torch', **more}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def folders(service: Service) -> set[str]:
    """Of the workspace."""
    return {path.name for path in service.workspace.iterdir() if path.is_dir()}


def test_a_model_that_does_not_start_leaves_everything_as_it_was(service: Service, tmp_path: Path) -> None:
    hidden, third = tmp_path / 'hidden', varied(tmp_path / 'third', 2)
    service.post('/index', DocumentArray([Document(id='a', text='a text')]))
    before = generations.current(service.workspace)
    # The command has the model in another runtime, in which the service cannot load it.
    refused = reindex(service.workspace, third, CLIPFLOW_RUNTIME='fake')
    service.wait_for('starting the stages')
    third.rename(hidden)
    try:
        _, complained = refused.communicate(timeout=120)
    finally:
        hidden.rename(third)
    assert refused.returncode == 1
    assert 'does not start under the new model' in complained
    assert service.one('/index', Document(id='b', text='another')).id == 'b'
    assert service.stored_ids() == {'a', 'b'}
    assert generations.current(service.workspace) == before


def test_a_service_goes_on_while_its_documents_get_another_model(service: Service, other: Path) -> None:
    docs = DocumentArray([Document(id=colour, blob=png(colour)) for colour in COLOURS])
    docs.extend(Document(id=f't{n}', text=f'a text about {n}') for n in range(200))
    assert set(error_codes(service.post('/index', docs)).values()) == {None}
    query = Document(text='a red square')
    # Each answer holds the query's vector and those of its matches: all must be of one model.
    before = service.one('/search', query, {'include': ['embedding'], 'limit': 3})

    served, folders_before = generations.current(service.workspace), folders(service)
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
    said, complained = running.communicate(timeout=240)
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
    # The vectors of before are gone; what another test has left of a model that never served is none of them.
    assert folders(service) == folders_before - {served.name} | {generations.current(service.workspace).name}
    assert generations.current(service.workspace) != served

    # A stage that dies is started again under the new model.
    service.kill('encoder')
    service.wait_until_ready_again('encoder')
    with Client(service.grpc) as client:  # tries again until the gateway has seen it
        assert client.status()['encoder']['model'] == 'other'


@long
def test_a_command_that_is_killed_while_the_service_changes_leaves_nothing_for_ever(
    service: Service, other: Path
) -> None:
    service.post('/index', DocumentArray([Document(id='a', text='a text')]))
    model = {doc.id: doc.tags for doc in service.post('/status')}['encoder']['model']
    before = generations.current(service.workspace)
    running = reindex(service.workspace, MINI if model == 'other' else other)
    service.wait_for('starting the stages')
    running.kill()
    running.communicate(timeout=30)
    until(lambda: service.one('/index', Document(id='b', text='another')).id == 'b', 120, 'writes go on')
    assert generations.current(service.workspace) != before
    generations.cleared(service.workspace)
    assert not before.exists()
    assert service.stored_ids() == {'a', 'b'}


@long
def test_without_a_service_the_documents_change_at_once(service: Service, other: Path) -> None:
    service.post('/index', DocumentArray([Document(id='a', text='a text'), Document(id='b', embedding=np.ones(384))]))
    model = {doc.id: doc.tags for doc in service.post('/status')}['encoder']['model']
    target = MINI if model == 'other' else other
    before = generations.current(service.workspace)
    service.terminate()
    missing = reindex(service.workspace, target)
    _, complained = missing.communicate(timeout=120)
    assert (missing.returncode, '--drop-missing' in complained) == (1, True)
    assert generations.current(service.workspace) == before
    done = reindex(service.workspace, target, '--drop-missing')
    said, complained = done.communicate(timeout=120)
    assert (done.returncode, '1 documents' in said) == (0, True), complained
    with Service(service.workspace, {'MODEL': str(target), **TORCH}) as again:
        assert again.stored_ids() == {'a'}

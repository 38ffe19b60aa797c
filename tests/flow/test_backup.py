"""`clipflow backup` of a service that is written to, and another service on what is put back."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from docarray import Document, DocumentArray

from clipflow.backup.restore import found, restore
from clipflow.store import generations
from clipflow.store.reading import Documents
from crash.writer import Writer
from service import Service, until
from unit.backup.places import unnoticed

FAKE = {'RUNTIME': 'fake'}


def run(*given: str, workspace: Path) -> 'subprocess.CompletedProcess[str]':
    environment = {**os.environ, 'CLIPFLOW_WORKSPACE': str(workspace)}
    command = [sys.executable, '-m', 'clipflow.cli.main', *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def vectors(service: Service, ids: list[str]) -> dict[str, np.ndarray]:
    return {doc.id: doc.embedding for doc in service.post('/get', None, {'ids': ids, 'include': ['embedding']})}


def answers(service: Service) -> list[list[tuple[str, float]]]:
    """Ids and scores for some queries."""
    rows = np.random.default_rng(5).normal(size=(6, 32))
    queries = DocumentArray([Document(embedding=row) for row in rows])
    found = service.post('/search', queries, {'limit': 30})
    return [[(match.id, match.scores['cosine'].value) for match in doc.matches] for doc in found]


def test_a_service_is_backed_up_while_it_is_written_to_and_comes_back(tmp_path: Path) -> None:
    target, first, second = tmp_path / 'backups', tmp_path / 'first', tmp_path / 'second'
    with Service(tmp_path / 'workspace', FAKE) as service:
        service.post('/index', DocumentArray([Document(id=f'd{n}', text=f'text {n}') for n in range(1500)]))
        with Writer(service) as writer:
            until(lambda: writer.requests >= 10, 60, 'the writer gets on')
            stored, deleted = set(writer.stored), set(writer.deleted)
            done = run('backup', str(target), workspace=service.workspace)
            assert done.returncode == 0, done.stderr
            requests = writer.requests
            until(lambda: writer.requests >= requests + 10, 60, 'it writes on')
        assert writer.errors == []
        backup, told = found(str(target))
        restore(first, backup, told, told.model.fingerprint, unnoticed)
        store = Documents(generations.current(first) / '0')
        there = store.ids()
        assert {f'd{n}' for n in range(1500)} <= there
        # What was deleted meanwhile may be there or not.
        assert stored & writer.stored <= there
        assert deleted & there == set()
        assert len(writer.stored - there) > 0
        ids = sorted((stored & writer.stored) | {'d0', 'd1499'})
        copies = store.by_ids(ids, vectors=True)
        for name, vector in vectors(service, ids).items():
            np.testing.assert_array_equal(copies[name].vector, vector)
        store.close()

        service.post('/snapshot')
        service.post('/index', DocumentArray([Document(id=f'later {n}', text=f'more {n}') for n in range(20)]))
        service.post('/feedback', Document(text='text 3'), {'shown': ['d3', 'd4'], 'clicked': ['d3']})
        done = run('backup', str(target), '--keep', '1', workspace=service.workspace)
        assert done.returncode == 0, done.stderr
        assert f'removed {backup.address.rpartition("/")[2]}' in done.stdout
        before, count = answers(service), len(service.stored_ids())
        refused = run('restore', str(target), '--force', workspace=service.workspace)
        assert refused.returncode == 1
        assert 'clipflow: conflict: another process serves the workspace' in refused.stderr
        shown = run('backup', '--list', str(target), workspace=service.workspace)
        assert f'  {count:,} documents, ' in shown.stdout
        assert len(shown.stdout.splitlines()) == 1

    done = run('restore', str(target), workspace=second)
    assert done.returncode == 0, done.stderr
    assert f'{count:,} documents of ' in done.stdout
    with Service(second, FAKE) as again:
        assert answers(again) == before
        told = {doc.id: doc.tags for doc in again.post('/status')}
        assert 'from a snapshot, 20 later changes' in told['indexer']['start']
        reply = again.one('/feedback', Document(text='text 3'), {'shown': ['d3'], 'clicked': ['d3']})
        assert reply.tags['stored'] == 1
    assert (second / 'feedback' / '0.db').is_file()

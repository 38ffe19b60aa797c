"""The commands, variables and probes of the manifests, as processes on this host."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from safetensors.numpy import load_file, save_file

from clipflow import ROOT
from clipflow.errors import BY_CODE
from clipflow_client import Client
from service import png, until

from .processes import PROBES, Processes, Searches
from .test_manifests import Build


@pytest.fixture
def processes(built: Build, tmp_path: Path) -> Iterator[Processes]:
    running = Processes(built('changing'), tmp_path)
    try:
        yield running
    except BaseException:
        print('\n'.join(path.read_text(errors='replace')[-2000:] for path in tmp_path.glob('*.log')))
        raise
    finally:
        running.end()


def another_model(folder: Path) -> Path:
    """clip-mini with other weights."""
    shutil.copytree(ROOT / 'models' / 'clip-mini', folder)
    (weights,) = folder.glob('*.safetensors')
    chance, tensors = np.random.default_rng(1), load_file(weights)
    for called, value in tensors.items():
        if called.endswith('_projection.weight'):
            tensors[called] = value + (value.std() * chance.normal(size=value.shape)).astype(value.dtype)
    save_file(tensors, weights, {'format': 'pt'})
    return folder


def test_a_service_starts_by_its_manifests_gets_another_model_by_jobs_and_ends(
    processes: Processes, tmp_path: Path
) -> None:
    everything: list[Any] = [(room, which) for room in processes.pods for which in PROBES]
    until(lambda: all(processes.passes(*one) for one in everything), 200, 'all probes pass')
    model = another_model(tmp_path / 'other')
    processes.own |= {'NEXT_MODEL': str(model)}
    address = f'127.0.0.1:{processes.ports["gateway"][51000]}'
    with Client(address) as client, Searches(address, retries=0) as once, Searches(address, retries=100) as again:
        docs = [Document(id=f'd{number}', text=f'a text about {number}') for number in range(50)]
        docs += [Document(id=colour, blob=png(colour)) for colour in ('red', 'green', 'blue')]
        assert {outcome.error for outcome in client.index(docs)} == {None}
        assert '53 documents are embedded' in processes.run('reindex-prepare')
        # What comes or goes after that is taken by the second Job.
        client.index([Document(id='late', text='a late text')])
        client.delete(['d0'])
        assert set(once.codes) == {''}

        assert processes.stop('indexer') == [0]
        assert '53 documents are under the model' in processes.run('reindex-switch')
        processes.own |= {'CLIPFLOW_MODEL': str(model)}
        processes.start('indexer')
        # The indexer has the new model, and the encoder not yet.
        until(lambda: 'not-ready' in once.codes, 120, 'a search is told that the models differ')
        others = ('encoder', 'preprocessor', 'ranker')
        assert processes.stop(*others) == [0, 0, 0]
        for room in others:
            processes.start(room)
        until(lambda: set(once.codes[-20:]) == {''}, 120, 'searches are answered')
        stages = client.status()
        assert stages['encoder']['model'] == stages['indexer']['model'] == 'other'
        kept = ({doc.id for doc in docs} | {'late'}) - {'d0'}
        assert set(client.get(sorted(kept))) == kept
        assert [client.search(query)[0].id for query in ('a text about 7', png('red'))] == ['d7', 'red']
    # Nobody was told what may not be tried again, and who tries again was told nothing.
    assert all(BY_CODE[code].retryable for code in set(once.codes) - {''}), set(once.codes)
    assert set(again.codes) == {''}
    assert processes.end() == dict.fromkeys(processes.pods, 0)

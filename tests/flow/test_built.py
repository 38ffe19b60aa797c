"""`clipflow build`, then the service: it opens what was built at once, and answers like one that was given the same."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from folders import unit, written

from clipflow import ROOT
from clipflow.bulk import exchange
from service import Service

COUNT, DIMENSION, SHARDS = 4000, 32, 3
VECTORS = unit(np.random.default_rng(0).normal(size=(COUNT, DIMENSION)))
QUERIES = unit(np.random.default_rng(1).normal(size=(4, DIMENSION)))


def cli(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, '-m', 'clipflow.cli.main', *arguments],
        env={'PATH': '', 'HOME': str(place), 'CLIPFLOW_WORKSPACE': str(place), 'CLIPFLOW_RUNTIME': 'fake'},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {'image_path': [f'/photos/{n}.jpg' for n in range(COUNT)], 'price': [n % 50 for n in range(COUNT)]}
    return written(tmp_path_factory.mktemp('vectors'), VECTORS.astype(np.float16), columns, size=1500)


@pytest.fixture(scope='module')
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    place = tmp_path_factory.mktemp('built')
    cli(place, 'build', str(folder), '--workspace', str(place), '--kind', 'ivf', '--shards', str(SHARDS))
    settings = {'RUNTIME': 'fake', 'INDEX_KIND': 'ivf'}
    with Service(place, settings, flow=ROOT / 'flows' / 'sharded.yml') as running:
        yield running


def answers(service: Service, **asked: Any) -> tuple[list[str], list[float]]:
    """Ids with their tags, and cosines, of all queries."""
    docs = [Document(embedding=query) for query in QUERIES]
    found = service.post('/search', docs, {'nprobe': 4096, **asked})
    matches = [match for doc in found for match in doc.matches]
    names = [f'{match.id} {match.tags["price"]}' for match in matches]
    return names, [match.scores['cosine'].value for match in matches]


ASKED: list[dict[str, Any]] = [{}, {'limit': 200}, {'filter': {'price': 7}}, {'group_by': 'price', 'limit': 30}]


def test_answers_are_those_of_a_service_that_has_indexed_the_same(folder: Path, built: Service, fake: Service) -> None:
    # That they are those after `load` too is in tests/unit/bulk/test_build.py.
    for records in exchange.read(folder):
        fake.post(
            '/index', [Document(id=r.id, uri=r.uri, embedding=r.vector, tags=json.loads(r.tags)) for r in records]
        )
    for asked in ASKED:
        names, scores = answers(built, **asked)
        expected_names, expected_scores = answers(fake, **asked)
        assert len(names) > len(QUERIES)
        assert names == expected_names
        assert scores == pytest.approx(expected_scores, abs=2e-6)


def test_no_index_is_built_at_the_start_and_documents_can_be_added(built: Service) -> None:
    states = [doc.tags for doc in built.post('/status') if 'kind' in doc.tags]
    assert len(states) == SHARDS
    for state in states:
        assert 'from a snapshot, 0 later changes' in state['start']
        assert (state['kind'], state.get('task')) == ('ivf', None)
    assert sum(state['documents'] for state in states) == COUNT
    built.post('/index', Document(id='new', embedding=QUERIES[0]))
    assert built.matches(Document(embedding=QUERIES[0]), limit=1)[0].id == 'new'
    built.post('/delete', None, {'ids': ['new']})


def test_filter_asks_a_service_too(built: Service) -> None:
    listed = cli(built.workspace, 'filter', '--host', built.grpc, '--query', 'a cat', '--num-results', '5', '--list')
    rows = list(csv.DictReader(io.StringIO(listed)))
    expected = built.matches('a cat', limit=5)
    assert [row['id'] for row in rows] == [match.id for match in expected]
    near = cli(built.workspace, 'filter', '--host', built.grpc, '--query', 'a cat', '--threshold', '0.5', '--list')
    scores = [float(row['score']) for row in csv.DictReader(io.StringIO(near))]
    expected = built.matches('a cat', limit=4000, min_score=0.5)
    assert scores == pytest.approx([match.scores['cosine'].value for match in expected], abs=1e-6)

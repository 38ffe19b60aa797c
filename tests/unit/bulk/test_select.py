"""The best of a folder against a sort of all scores; copies of files, and of what there are none."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import unit, written

from clipflow import ROOT
from clipflow.bulk import mapped, select
from clipflow.bulk.mapped import Mapped
from clipflow.bulk.select import Found
from clipflow.errors import DimensionMismatch, InvalidDocument, InvalidParameter, ReadOnly, StorageFull
from forms import long
from service import png

COUNT = 1500
VECTORS = unit(np.random.default_rng(0).normal(size=(COUNT, 32)))
VECTORS[700] = VECTORS[20]
QUERY = unit(np.random.default_rng(1).normal(size=(1, 32)))[0]
NAMES = [f'{n}.jpg' for n in range(COUNT)]


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    columns = {'image_path': NAMES, 'caption': [f'c{n}' for n in range(COUNT)]}
    return Mapped(written(tmp_path_factory.mktemp('source'), VECTORS, columns))


@pytest.mark.parametrize(('most', 'threshold'), [(1, None), (100, None), (5000, None), (None, 0.2), (None, 0.99)])
@pytest.mark.parametrize('query', [QUERY, VECTORS[20]], ids=['other', 'stored twice'])
def test_the_best_are_those_of_a_sort_of_all_scores(
    source: Mapped, query: Any, most: int | None, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, 'BLOCK', 256)
    told: list[int] = []
    found = select.best(source, query, most, threshold, told.append)
    scores = VECTORS.astype(np.float64) @ query.astype(np.float64)
    order = sorted(range(COUNT), key=lambda n: (-round(scores[n], 6), n))
    expected = [n for n in order if threshold is None or scores[n] >= threshold][:most]
    assert [one.id for one in found] == [NAMES[n] for n in expected]
    assert [one.text for one in found] == [f'c{n}' for n in expected]
    assert [one.score for one in found] == pytest.approx([scores[n] for n in expected], abs=2e-6)
    assert sum(told) == COUNT


def test_a_query_of_another_dimension_is_refused(source: Mapped) -> None:
    with pytest.raises(DimensionMismatch, match=r'vectors of 16 dimensions, .* of 32'):
        select.best(source, QUERY[:16], 3, None, lambda count: None)


def test_the_metadata_of_a_plain_folder_are_found_by_their_places(tmp_path: Path) -> None:
    np.save(tmp_path / 'vectors.npy', VECTORS[:50])
    lines = [json.dumps({'id': f'id {n}', 'uri': f'{n}.png'}) for n in range(50)]
    (tmp_path / 'documents.jsonl').write_text('\n'.join(lines) + '\n')
    found = select.best(Mapped(tmp_path), VECTORS[33], 1, None, lambda count: None)
    assert (found[0].id, found[0].uri) == ('id 33', '33.png')
    (tmp_path / 'documents.jsonl').write_text('\n'.join(lines[:40]) + '\n')
    with pytest.raises(InvalidDocument, match='40 rows for 50 vectors'):
        select.best(Mapped(tmp_path), VECTORS[33], 1, None, lambda count: None)


def found_at(*uris: str) -> list[Found]:
    return [Found(0.5, f'id {n}', uri, '') for n, uri in enumerate(uris)]


def test_files_are_copied_what_is_missing_is_told_and_equal_names_are_kept_apart(tmp_path: Path) -> None:
    for folder in ('a', 'b', 'c'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'cat.jpg').write_bytes(folder.encode())
    os.mkfifo(tmp_path / 'pipe.jpg')
    results = found_at(
        str(tmp_path / 'a' / 'cat.jpg'),
        '/nowhere/dog.jpg',
        (tmp_path / 'b' / 'cat.jpg').as_uri(),
        'https://example.org/cat.jpg',
        'c/cat.jpg',
        str(tmp_path / 'pipe.jpg'),
        'x' * 5000,
        'nul\0.jpg',
        '',
    )
    told = [(one.uri, reason) for one, reason in select.copy(results, tmp_path, tmp_path / 'out')]
    assert [uri for uri, _ in told] == [results[n].uri for n in (1, 3, 5, 6, 7, 8)]
    assert {reason for uri, reason in told if not uri.startswith('https')} == {'there is no such file'}
    copied = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert copied == {'cat.jpg': b'a', 'cat-2.jpg': b'b', 'cat-3.jpg': b'c'}
    with pytest.raises(InvalidParameter, match='not empty'):
        list(select.copy(results, tmp_path, tmp_path / 'out'))


def test_a_target_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'cat.jpg').write_bytes(b'cat')
    with pytest.raises(ReadOnly, match='cannot be written'):
        list(select.copy(found_at('cat.jpg'), tmp_path, tmp_path / 'cat.jpg' / 'out'))

    def full(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('shutil.copyfileobj', full)
    with pytest.raises(StorageFull, match=r'cat\.jpg cannot be written: No space'):
        list(select.copy(found_at('cat.jpg'), tmp_path, tmp_path / 'out'))
    assert list((tmp_path / 'out').iterdir()) == []


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'clipflow.cli.main', 'filter', *arguments],
        env={**os.environ, 'CLIPFLOW_RUNTIME': 'fake'},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@long
def test_the_command_encodes_the_query_and_lists_or_copies(source: Mapped, tmp_path: Path) -> None:
    (tmp_path / 'query.png').write_bytes(png('red'))
    listed = cli(str(source.folder), '--image', str(tmp_path / 'query.png'), '--num-results', '3', '--list')
    assert listed.returncode == 0, listed.stderr
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert [float(row['score']) for row in rows] == sorted((float(row['score']) for row in rows), reverse=True)
    (source.folder / rows[1]['uri']).write_bytes(b'picture')
    copied = cli(
        str(source.folder),
        '--image',
        str(tmp_path / 'query.png'),
        '--num-results',
        '3',
        '--out',
        str(tmp_path / 'out'),
    )
    assert (copied.returncode, '1 of 3 pictures are in' in copied.stdout) == (1, True)
    assert f'{rows[0]["uri"]}: there is no such file' in copied.stderr
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [rows[1]['uri']]


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('--query', ' ', '--list'), '--query is empty'),
        (('--query', 'cat', '--num-results', '0', '--list'), '1 or more'),
        (('--query', 'cat', '--threshold', '2', '--list'), 'from -1 to 1'),
        (('--image', '/nowhere.png', '--list'), 'cannot be read'),
    ],
)
def test_a_wrong_query_is_refused(
    arguments: tuple[str, ...],
    said: str,
    source: Mapped,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from clipflow.cli.main import main

    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    assert main(['filter', str(source.folder), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_paths_in_a_table_begin_where_the_table_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipflow.cli.main import main

    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'red.png').write_bytes(png('red'))
    (tmp_path / 'table.csv').write_text('url\nphotos/red.png\n')
    assert main(['embed', str(tmp_path / 'table.csv'), '--out', str(tmp_path / 'out'), '--quiet']) == 0
    assert main(['filter', str(tmp_path / 'out'), '--query', 'red', '--out', str(tmp_path / 'best')]) == 0
    assert [path.read_bytes() for path in (tmp_path / 'best').iterdir()] == [png('red')]


def test_a_folder_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clipflow.cli.main import main

    written(tmp_path, VECTORS[:3])
    (tmp_path / 'manifest.json').write_text('{"fingerprint": "abc", "model": "another"}')
    assert main(['filter', str(tmp_path), '--query', 'cat', '--list']) == 1
    assert "made with the model 'another'" in capsys.readouterr().err

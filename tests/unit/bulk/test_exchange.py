"""Collections go out to the files of others and come back the same; faulty files are named."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clipflow import ROOT
from clipflow.bulk import exchange, workspace
from clipflow.bulk.exchange import BLOCK
from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter, NotFound
from clipflow.store import generations
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

COUNT = 2 * BLOCK + 7


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(np.random.default_rng(0).normal(size=(COUNT, 8)))


def record(n: int) -> Record:
    tags = json.dumps({'n': n, 'deep': {'ä': [1, 'x']}}, ensure_ascii=False)
    return Record(f'id {n}', f'text {n}' if n % 2 else '', f'file {n}.jpg' if n % 3 else '', tags, VECTORS[n])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / 'store', 'abc', 'm')
    opened.upsert([record(n) for n in range(COUNT)])
    yield opened
    opened.close()


def came_back(folder: Path) -> list[Record]:
    return [found for block in exchange.read(folder) for found in block]


@pytest.mark.parametrize(('layout', 'error'), [('plain', 0.0), ('clip-retrieval', 1e-3)])
def test_what_is_written_comes_back_the_same(store: Store, tmp_path: Path, layout: str, error: float) -> None:
    told: list[int] = []
    exchange.write([store], tmp_path / 'out', layout, told.append)
    assert sum(told) == COUNT
    for found, n in zip(came_back(tmp_path / 'out'), range(COUNT), strict=True):
        expected = record(n)
        assert (found.id, found.text, json.loads(found.tags)) == (expected.id, expected.text, json.loads(expected.tags))
        assert found.uri == expected.uri or (
            layout == 'clip-retrieval' and not expected.uri and found.uri == expected.id
        )
        assert found.vector is not None
        assert np.abs(found.vector - VECTORS[n]).max() <= max(error, 1e-7)


def test_the_files_are_those_that_clip_retrieval_reads(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, 'ROWS_PER_FILE', BLOCK)
    exchange.write([store], tmp_path / 'out', 'clip-retrieval', lambda count: None)
    arrays = sorted((tmp_path / 'out' / 'img_emb').iterdir())
    assert [path.name for path in arrays] == [f'img_emb_{n}.npy' for n in range(3)]
    rows = np.concatenate([np.load(path) for path in arrays])
    assert (rows.dtype, rows.shape) == (np.float16, (COUNT, 8))
    tables = [pyarrow.parquet.read_table(tmp_path / 'out' / 'metadata' / f'metadata_{n}.parquet') for n in range(3)]
    assert [table.num_rows for table in tables] == [BLOCK, BLOCK, 7]
    assert {'image_path', 'caption', 'url'} <= set(tables[0].column_names)
    index = faiss.read_index(str(tmp_path / 'out' / 'image.index'))
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.search(VECTORS[40:50], 1)[1][:, 0].tolist() == list(range(40, 50))


def test_clip_retrievals_own_files_are_read(tmp_path: Path) -> None:
    for folder in ('img_emb', 'metadata'):
        (tmp_path / folder).mkdir()
    for number, start in ((0, 0), (1, 5)):
        np.save(tmp_path / 'img_emb' / f'img_emb_{number}.npy', VECTORS[start : start + 5].astype(np.float16) * 2)
        rows = [
            {'image_path': f'{n}.jpg', 'caption': f'c{n}', 'width': n, 'NSFW': None} for n in range(start, start + 5)
        ]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / 'metadata' / f'metadata_{number}.parquet')
    found = came_back(tmp_path)
    assert [(item.id, item.text, item.uri) for item in found] == [(f'{n}.jpg', f'c{n}', f'{n}.jpg') for n in range(10)]
    assert [json.loads(item.tags) for item in found] == [{'width': n} for n in range(10)]
    for item, vector in zip(found, VECTORS, strict=False):
        assert item.vector is not None
        assert np.linalg.norm(item.vector) == pytest.approx(1, abs=1e-6)
        assert np.abs(item.vector - vector).max() < 1e-3


def test_vectors_without_metadata_get_their_places_as_ids(tmp_path: Path) -> None:
    np.save(tmp_path / 'vectors.npy', VECTORS[:3])
    assert [(found.id, found.tags) for found in came_back(tmp_path)] == [('0', '{}'), ('1', '{}'), ('2', '{}')]


def faulty(folder: Path, vectors: Any, lines: str) -> Path:
    if isinstance(vectors, bytes):
        (folder / 'vectors.npy').write_bytes(vectors)
    else:
        np.save(folder / 'vectors.npy', vectors, allow_pickle=True)
    (folder / 'documents.jsonl').write_text(lines)
    return folder


@pytest.mark.parametrize(
    ('vectors', 'lines', 'sentence'),
    [
        (VECTORS[:2], '{}\n', 'fewer rows'),
        (VECTORS[:2], '{}\n{}\n{}\n', 'more rows'),
        (VECTORS[:1], '[1]\n', 'not a JSON object'),
        (VECTORS[:1], 'no\n', 'not a JSON object'),
        (np.zeros((1, 8), np.float32), '{}\n', 'zero or not finite'),
        (np.full((1, 8), np.nan, np.float32), '{}\n', 'zero or not finite'),
        (np.zeros(8, np.float32), '{}\n', 'shape'),
        (np.zeros((1, 8), np.int64), '{}\n', 'int64'),
        (np.array([{'a': 1}], dtype=object), '{}\n', 'cannot be read'),
        (b'not an array', '{}\n', 'cannot be read'),
        (VECTORS[:1], json.dumps({'id': 'x' * 600}) + '\n', 'longer than'),
    ],
)
def test_faulty_files_are_named_in_a_sentence(vectors: Any, lines: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match=sentence):
        came_back(faulty(tmp_path, vectors, lines))


def test_a_folder_of_something_else_and_one_that_is_not_empty_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='img_emb'):
        came_back(tmp_path)
    with pytest.raises(InvalidParameter, match='not empty'):
        exchange.write([store], tmp_path, 'plain', lambda count: None)


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'clipflow.cli.main', *arguments],
        env={'CLIPFLOW_WORKSPACE': str(folder), 'PATH': '', 'HOME': str(folder)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_a_collection_is_loaded_moved_to_other_shards_and_written_out_by_commands(tmp_path: Path) -> None:
    given, home = tmp_path / 'given', tmp_path / 'home'
    given.mkdir()
    lines = ''.join(json.dumps({'id': f'id {n}', 'tags': {'n': n}}) + '\n' for n in range(50))
    faulty(given, VECTORS[:50], lines)
    assert 'there are no documents' in cli(home, 'dump', str(tmp_path / 'none')).stderr
    for command, said in (
        (('load', str(given), '--shards', '3'), '50 documents'),
        (('load', str(given)), '50 documents'),
        (('reshard', '--to', '2'), 'from 3 to 2 shards'),
        (('dump', str(tmp_path / 'out'), '--layout', 'plain'), '50 documents'),
    ):
        done = cli(home, *command)
        assert (done.returncode, said in done.stdout) == (0, True), done.stderr
    found = came_back(tmp_path / 'out')
    assert sorted(item.id for item in found) == sorted(f'id {n}' for n in range(50))
    for item in found:
        assert item.vector is not None
        assert np.abs(item.vector - VECTORS[json.loads(item.tags)['n']]).max() < 1e-6
    learnt = cli(home, 'quantizer', str(tmp_path / 'shared.faiss'), '--kind', 'IVF2,SQ8')
    assert 'learnt from 50 documents of 2 shards' in learnt.stdout, learnt.stderr
    assert 'name a --kind' in cli(home, 'quantizer', str(tmp_path / 'other.faiss')).stderr
    refused = cli(home, 'reshard', '--to', '2')
    assert (refused.returncode, 'has 2 shards already' in refused.stderr) == (1, True)


def test_thumbnails_and_precision_move_along(tmp_path: Path) -> None:
    from clipflow.weights import load_spec

    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    with workspace.opened(generations.current(tmp_path), spec, 1) as (store,):
        store.upsert([Record('a', '', '', '{}', VECTORS[0], b'webp')], 'int8')
    assert workspace.reshard(tmp_path, spec, 4, lambda count: None) == (1, 1)
    folder = generations.current(tmp_path)
    with workspace.opened(folder, spec, 4) as stores:
        (found,) = [store.by_ids(['a'], thumbnails=True)['a'] for store in stores if store.count()]
        assert found.thumbnail == b'webp'
        assert {store.precision() for store in stores if store.count()} == {'int8'}
    with pytest.raises(ClipflowError, match='shards'), workspace.opened(folder, spec, 2):
        pass
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]

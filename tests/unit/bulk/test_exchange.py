"""Collections go out to the files of others and come back the same; faulty files are named."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from folders import written

from clipflow import ROOT
from clipflow.bulk import exchange, workspace
from clipflow.bulk.exchange import BLOCK
from clipflow.cli.main import main
from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter, NotFound
from clipflow.sharding import shard_of
from clipflow.store import generations
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec

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
        assert found.uri == expected.uri
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


def test_ids_are_the_first_field_that_says_anything(tmp_path: Path) -> None:
    rows = [{'id': 3}, {'id': 0}, {'id': '', 'image_path': 'p.jpg'}, {'id': None}, {'id': False}, {'text': 'x'}]
    found = came_back(faulty(tmp_path, VECTORS[:6], ''.join(json.dumps(row) + '\n' for row in rows)))
    assert [item.id for item in found] == ['3', '0', 'p.jpg', '3', 'False', '5']
    assert found[2].uri == 'p.jpg'


def test_a_path_that_is_too_long_for_an_id_is_shortened_and_stays_as_the_uri(tmp_path: Path) -> None:
    rows = [{'image_path': f'https://example.org/{"x" * 600}{n}.jpg'} for n in range(2)]
    found = came_back(faulty(tmp_path, VECTORS[:2], ''.join(json.dumps(row) + '\n' for row in rows)))
    assert [item.uri for item in found] == [row['image_path'] for row in rows]
    assert len({item.id for item in found}) == 2
    assert all(len(item.id) <= 512 and item.id.endswith(f'x{n}.jpg') for n, item in enumerate(found))


def test_of_several_texts_and_places_none_is_lost(tmp_path: Path) -> None:
    row = {'id': 1, 'image_path': 'a.jpg', 'url': 'http://x/a', 'caption': 'the caption', 'text': 'another'}
    (found,) = came_back(faulty(tmp_path, VECTORS[:1], json.dumps(row) + '\n'))
    assert (found.id, found.uri, found.text) == ('1', 'http://x/a', 'the caption')
    assert json.loads(found.tags) == {'image_path': 'a.jpg', 'text': 'another'}


def test_of_what_only_parquet_holds_times_are_texts_and_pictures_are_left_out(tmp_path: Path) -> None:
    when = datetime(2024, 2, 29, 12, tzinfo=UTC)
    columns = {
        'image_path': ['a'],
        'when': [when],
        'thumbnail': [b'\xff\xd8'],
        'inside': [{'mask': b'\x89PNG', 'n': 1}],
        'said': ['looked at more closely because of this: e+30'],
    }
    (found,) = came_back(written(tmp_path / 'given', VECTORS[:1], columns))
    assert json.loads(found.tags) == {
        'when': str(when),
        'thumbnail': None,
        'inside': {'mask': None, 'n': 1},
        'said': columns['said'][0],
    }


def test_tags_that_are_reserved_for_us_are_dropped(tmp_path: Path) -> None:
    row = {'id': 'a', '__model__': 'x', 'n': 1, 'tags': {'__error__': {}, 'deep': {'__y': 2}}}
    (found,) = came_back(faulty(tmp_path, VECTORS[:1], json.dumps(row) + '\n'))
    assert json.loads(found.tags) == {'n': 1, 'deep': {'__y': 2}}


def faulty(folder: Path, vectors: Any, lines: str) -> Path:
    if isinstance(vectors, bytes):
        (folder / 'vectors.npy').write_bytes(vectors)
    else:
        np.save(folder / 'vectors.npy', vectors, allow_pickle=True)
    (folder / 'documents.jsonl').write_bytes(lines.encode('utf-8', 'surrogateescape'))
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
        (VECTORS[:1], '{"id": "\\ud800"}\n', 'surrogate'),
        (VECTORS[:1], '{"id": "a", "text": "\\ud800"}\n', 'surrogate'),
        (VECTORS[:1], '{"id": "a", "tags": {"t": ["\\udfff"]}}\n', 'surrogate'),
        (VECTORS[:1], '{"id": "a", "\\udfff": 1}\n', 'surrogate'),
        (VECTORS[:1], '{"id": "a", "tags": {"t": "a\\u0000b"}}\n', 'NUL'),
        (VECTORS[:1], '{"id": "a", "t": {"a\\u0000b": 1}}\n', 'NUL'),
        (VECTORS[:1], '{"id": "a", "t": ' + '9' * 400 + '}\n', 'too large'),
        (VECTORS[:1], '{"id": "a", "t": ' + '[' * 900 + ']' * 900 + '}\n', 'nested'),
        (VECTORS[:1], '{"id": "a", "t": ' + '[' * 100_000 + ']' * 100_000 + '}\n', 'not a JSON object'),
        (VECTORS[:1], '{"id": "a", "t": NaN}\n', 'not finite'),
        (VECTORS[:1], '{"id": "\udcff"}\n', 'UTF-8'),
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


def test_a_dump_into_what_is_no_folder_and_one_of_nothing_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('x')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below', Path('/proc/none')):
        with pytest.raises(InvalidParameter, match='cannot be written'):
            exchange.write([store], place, 'plain', lambda count: None)
    store.clear()
    for layout in ('plain', 'clip-retrieval'):
        with pytest.raises(NotFound, match='no documents'):
            exchange.write([store], tmp_path / 'out', layout, lambda count: None)


SPEC = load_spec(str(ROOT / 'models' / 'clip-mini'))
"""Of vectors of 384 dimensions."""
LONG = unit(np.random.default_rng(1).normal(size=(20, 384)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace of commands."""
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'home'))
    monkeypatch.delenv('CLIPFLOW_RUNTIME', raising=False)
    return tmp_path / 'home'


def folder_of(place: Path, vectors: np.ndarray, rows: list[dict[str, Any]]) -> str:
    place.mkdir()
    return str(faulty(place, vectors, ''.join(json.dumps(row) + '\n' for row in rows)))


def test_loading_tells_how_many_replaced_others(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / 'given', LONG[:4], [{'id': n} for n in (3, 0, 1, 0)])
    assert main(['load', folder]) == 0
    assert '4 documents' in (said := capsys.readouterr().out)
    assert '1 of them in the place of others with the same id' in said
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        assert store.ids() == {'0', '1', '3'}


def test_documents_without_ids_do_not_replace_those_of_another_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [folder_of(tmp_path / f'{n}', LONG[5 * n : 5 * n + 5], [{'text': 'x'}] * 5) for n in range(2)]
    assert main(['load', folders[0]]) == 0
    assert main(['load', folders[0]]) == 0  # as after an interruption
    assert main(['load', folders[1]]) == 1
    assert 'have no ids' in capsys.readouterr().err
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        assert store.count() == 5
        assert (store.by_ids(['2'], vectors=True)['2'].vector == LONG[2]).all()


def test_vectors_that_the_model_cannot_have_made_are_not_loaded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / 'given', VECTORS[:2], [{}, {}])
    assert main(['load', folder]) == 1
    assert 'have 8 dimensions, those of the model' in capsys.readouterr().err
    assert main(['load', folder, '--shards', '0']) == 1
    assert not (home / 'indexer').exists()
    (Path(folder) / 'manifest.json').write_text('{"fingerprint": "of another"}')
    np.save(Path(folder) / 'vectors.npy', LONG[:2])
    assert main(['load', folder]) == 1
    assert 'made with the model' in capsys.readouterr().err


@pytest.mark.parametrize('layout', ['plain', 'clip-retrieval'])
def test_vectors_in_int8_are_so_after_a_dump_too(
    home: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with workspace.opened(generations.current(home), SPEC, 2) as stores:
        workspace.put(stores, [Record(f'{n}', '', '', '{}', LONG[n]) for n in range(20)], 'int8')
    out = str(tmp_path / 'out')
    assert main(['dump', out, '--layout', layout]) == 0
    assert main(['load', out]) == 0  # into the collection that it is of
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'other'))
    assert main(['load', out]) == 0
    with workspace.opened(generations.current(tmp_path / 'other'), SPEC, 1) as (store,):
        assert (store.count(), store.precision()) == (20, 'int8')
    with workspace.opened(generations.current(tmp_path / 'floats'), SPEC, 1) as (store,):
        store.upsert([Record('f', '', '', '{}', LONG[0])])
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'floats'))
    assert main(['load', out]) == 1
    assert 'CLIPFLOW_MIX_PRECISIONS' in capsys.readouterr().err
    monkeypatch.setenv('CLIPFLOW_MIX_PRECISIONS', 'true')
    assert main(['load', out]) == 0


def test_shards_of_two_precisions_are_moved(home: Path) -> None:
    with workspace.opened(generations.current(home), SPEC, 2) as stores:
        for store, precision in zip(stores, ('float', 'int8'), strict=True):
            own = [n for n in range(20) if shard_of(f'{n}', 2) == stores.index(store)]
            store.upsert([Record(f'{n}', '', '', '{}', LONG[n]) for n in own], precision)
    assert workspace.reshard(home, SPEC, 3, lambda count: None) == (2, 20)
    with workspace.opened(generations.current(home), SPEC, 3) as stores:
        assert set().union(*(store.ids() for store in stores)) == {f'{n}' for n in range(20)}


def test_feedback_of_shards_that_are_no_more_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workspace.opened(generations.current(home), SPEC, 3) as stores:
        workspace.put(stores, [Record(f'{n}', '', '', '{}', LONG[n]) for n in range(20)])
    (home / 'feedback').mkdir()
    for number in (0, 2):
        (home / 'feedback' / f'{number}.db').touch()
    assert main(['reshard', '--to', '1']) == 0
    said = capsys.readouterr()
    assert '2.db in ' in said.err
    assert '0.db' not in said.err
    assert str(generations.current(home)) in said.out
    assert main(['reshard', '--to', '3']) == 0
    assert 'feedback' not in capsys.readouterr().err


def test_what_a_quantizer_cannot_learn_or_write_is_said_in_a_sentence(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / 'q.faiss')
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        assert main(['quantizer', file]) == 1
        assert 'another process' in capsys.readouterr().err
    assert main(['quantizer', file]) == 1
    assert 'no documents' in capsys.readouterr().err
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        store.upsert([Record(f'{n}', '', '', '{}', LONG[n]) for n in range(20)])
    for kind, sentence in (
        ('ivf', 'would be flat'),
        ('auto', 'would be flat'),
        ('IVF64,SQ8', 'cannot be learnt'),
        ('x', 'FAISS'),
    ):
        assert main(['quantizer', file, '--kind', kind]) == 1
        assert sentence in capsys.readouterr().err
    assert main(['quantizer', str(tmp_path / 'none' / 'q.faiss'), '--kind', 'IVF2,SQ8']) == 1
    assert 'cannot be written' in capsys.readouterr().err
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        rows = unit(np.random.default_rng(2).normal(size=(1200, 384)))
        store.upsert([Record(f'{n}', '', '', '{}', rows[n]) for n in range(1200)])
    assert main(['quantizer', file, '--kind', 'ivf']) == 0
    assert 'learnt from 1,200 documents' in capsys.readouterr().out


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'clipflow.cli.main', *arguments],
        # The runtime `fake` knows no dimension of the model.
        env={'CLIPFLOW_WORKSPACE': str(folder), 'CLIPFLOW_RUNTIME': 'fake', 'PATH': '', 'HOME': str(folder)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
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
    spec = SPEC
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

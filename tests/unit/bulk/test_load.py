"""A folder that is loaded: it is checked as a whole before anything of it is stored."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clipflow import ROOT
from clipflow.bulk import exchange, workspace
from clipflow.bulk.mapped import Mapped
from clipflow.cli.main import main
from clipflow.errors import InvalidDocument
from clipflow.sharding import shard_of
from clipflow.store import generations
from clipflow.store.reading import Record
from clipflow.vectors import unit_vector
from clipflow.weights import load_spec

SPEC = load_spec(str(ROOT / 'models' / 'clip-mini'))
"""Of vectors of 384 dimensions."""
RAW = np.random.default_rng(1).normal(size=(400, 384)).astype(np.float32)
WIDE = RAW.astype(np.float64)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace of commands."""
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'home'))
    monkeypatch.delenv('CLIPFLOW_RUNTIME', raising=False)
    monkeypatch.setattr(exchange, 'BLOCK', 50)
    return tmp_path / 'home'


def folder_of(place: Path, vectors: np.ndarray, rows: list[dict[str, Any]]) -> str:
    place.mkdir()
    np.save(place / 'vectors.npy', vectors)
    (place / 'documents.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(place)


def texts(home: Path) -> dict[str, str]:
    """What is stored, in a workspace of one shard."""
    with workspace.opened(generations.current(home), SPEC, 1) as (store,):
        return {name: record.text for name, record in store.by_ids(list(store.ids())).items()}


def test_of_documents_some_of_which_have_ids_the_others_replace_none(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = folder_of(tmp_path / 'mine', RAW[:2], [{'id': '1', 'text': 'mine'}, {'id': '7', 'text': 'too'}])
    assert main(['load', mine]) == 0
    some = folder_of(tmp_path / 'some', RAW[10:20], [{'id': 'k'}, *[{'text': 'x'}] * 9])
    assert main(['load', some]) == 1
    assert "another document '1' is stored already" in capsys.readouterr().err
    assert texts(home) == {'1': 'mine', '7': 'too'}
    # An id that is given replaces, also where it happens to be the place.
    named = folder_of(tmp_path / 'named', RAW[20:22], [{'text': 'new'}, {'id': '1', 'text': 'new'}])
    assert main(['load', named]) == 0
    assert texts(home) == {'0': 'new', '1': 'new', '7': 'too'}


@pytest.mark.parametrize('fault', ['taken', 'fewer', 'zero', 'metadata'])
def test_a_folder_with_a_fault_further_on_is_refused_as_a_whole(
    fault: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['load', folder_of(tmp_path / 'mine', RAW[:1], [{'id': '250', 'text': 'mine'}])]) == 0
    vectors, rows = RAW[100:400].copy(), [{'n': n} for n in range(300)]
    if fault != 'taken':
        rows = [{'id': f'id {n}'} for n in range(300)]
    if fault == 'fewer':
        del rows[-1]
    elif fault == 'zero':
        vectors[280] = 0
    elif fault == 'metadata':
        rows[290] = {'id': 'x' * 600}
    assert main(['load', folder_of(tmp_path / 'given', vectors, rows)]) == 1
    sentence = {'taken': "'250' is stored", 'fewer': 'fewer rows', 'zero': 'is zero', 'metadata': 'longer than'}[fault]
    assert sentence in capsys.readouterr().err
    assert texts(home) == {'250': 'mine'}


def test_vectors_of_another_precision_are_refused_by_all_shards(home: Path, tmp_path: Path) -> None:
    floats = next(f'{n}' for n in range(100) if shard_of(f'{n}', 2) == 1)
    with workspace.opened(generations.current(home), SPEC, 2) as stores:
        workspace.put(stores, [Record(floats, '', '', '{}', unit_vector(RAW[0]))])
    folder = folder_of(tmp_path / 'given', RAW[:60], [{'id': f'id {n}'} for n in range(60)])
    (Path(folder) / 'manifest.json').write_text('{"precision": "int8"}')
    assert main(['load', folder]) == 1
    with workspace.opened(generations.current(home), SPEC, 2) as stores:
        assert [store.count() for store in stores] == [0, 1]


def test_on_a_full_disk_it_is_said_how_many_are_stored(
    home: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(small_disk))
    folder = folder_of(tmp_path / 'given', RAW, [{'id': f'id {n}'} for n in range(400)])
    assert main(['load', folder]) == 1
    said = re.search(r'storage-full: no space is left .* the first (\d+) of 400 documents', capsys.readouterr().err)
    assert said is not None
    assert 0 < len(texts(small_disk)) == int(said[1]) < 400
    subprocess.run(['mount', '-o', 'remount,size=16m', str(small_disk)], check=True, timeout=30)
    assert main(['load', folder]) == 0
    assert len(texts(small_disk)) == 400


@pytest.mark.parametrize('missing', [0, 1])
def test_metadata_that_are_missing_between_others_are_named(
    missing: int, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('img_emb', 'metadata'):
        (tmp_path / name).mkdir()
    for number in range(2):
        np.save(tmp_path / 'img_emb' / f'img_emb_{number}.npy', RAW[3 * number : 3 * number + 3])
        if number != missing:
            rows = pyarrow.Table.from_pylist([{'image_path': f'{number}-{n}.jpg'} for n in range(3)])
            pyarrow.parquet.write_table(rows, tmp_path / 'metadata' / f'metadata_{number}.parquet')
    assert main(['load', str(tmp_path)]) == 1
    assert f'metadata_{missing}.parquet is missing' in capsys.readouterr().err
    with pytest.raises(InvalidDocument, match='is missing'):
        Mapped(tmp_path)
    (tmp_path / 'metadata' / f'metadata_{1 - missing}.parquet').unlink()
    assert main(['load', str(tmp_path)]) == 0
    assert set(texts(home)) == {f'{n}' for n in range(6)}


@pytest.mark.parametrize(
    'vectors',
    [RAW[:3], RAW[:3] * np.float32(1e-25), RAW[:3] * np.float32(1e25), WIDE[:3] * 1e60, RAW[:3].astype(np.float16)],
    ids=['usual', 'short', 'long', 'float64', 'float16'],
)
def test_vectors_of_any_length_are_stored_as_an_index_request_stores_them(vectors: np.ndarray, tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path / 'given', vectors, [{}] * 3))
    (records,) = exchange.read(folder)
    for record, vector in zip(records, vectors, strict=True):
        assert record.vector is not None
        assert np.array_equal(record.vector, unit_vector(vector))
        assert abs(float(record.vector.astype(np.float64) @ record.vector) - 1) < 1e-6


@pytest.mark.parametrize('vector', [WIDE[0] * 1e-200, WIDE[0] * 1e200, WIDE[0] * 0, np.full(384, np.inf), WIDE[0, :0]])
def test_vectors_without_a_direction_are_refused_as_by_an_index_request(vector: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match='other than zero'):
        unit_vector(vector)
    with pytest.raises(InvalidDocument, match=r'vectors\.npy: a vector of rows 0 to 1 is zero or not finite'):
        list(exchange.read(Path(folder_of(tmp_path / 'given', vector[None], [{}]))))

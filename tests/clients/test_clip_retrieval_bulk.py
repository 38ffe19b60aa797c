"""clip-retrieval's own programs on our files, and ours on its files."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from folders import unit, written
from numpy.typing import NDArray

from clipflow.bulk.mapped import Mapped
from clipflow.cli import main
from clipflow.store import generations
from clipflow.store.reading import Documents
from environments import clip_retrieval_bulk
from forms import long
from local_service import free_port
from service import until
from unit.bulk import embed_inputs as inputs
from unit.bulk.embed_inputs import COUNT, caption, name

pytestmark = long
SCRIPT = Path(__file__).with_name('clip_retrieval_bulk.py')
MANY = 3000


@pytest.fixture(scope='module')
def python() -> Path:
    return clip_retrieval_bulk()


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    monkeypatch.setenv('CLIPFLOW_INDEX_KIND', 'auto')  # which a command in this process may change


def run(python: Path, *arguments: str | Path) -> None:
    call = [str(python), str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def back(python: Path, paths: Path, indices: dict[str, Path]) -> Iterator[httpx.Client]:
    """clip-retrieval's own server of some folders."""
    paths.write_text(json.dumps({name: str(folder) for name, folder in indices.items()}))
    port = free_port()
    call = [str(python), str(SCRIPT), 'back', str(paths), str(port)]
    with (
        subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f'http://127.0.0.1:{port}', timeout=60, trust_env=False) as http,
    ):

        def answers() -> bool:
            assert process.poll() is None
            try:
                return http.get('/indices-list').json() == list(indices)
            except httpx.TransportError:
                return False

        try:
            until(answers, 120, 'back answers')
            yield http
        finally:
            process.kill()


def knn(http: httpx.Client, indice: str, vector: NDArray[Any], count: int, modality: str = 'image') -> Any:
    asked = {'embedding_input': vector.tolist(), 'modality': modality, 'num_images': count, 'indice_name': indice}
    reply = http.post('/knn-service', json=asked)
    assert reply.status_code == 200, reply.text
    return reply.json()


def vectors(folder: Path, tower: str = 'img_emb') -> NDArray[np.float32]:
    return unit(np.concatenate([np.load(path) for path in sorted(folder.glob(f'{tower}/*.npy'))]).astype(np.float32))


def test_back_and_index_read_what_we_have_written(python: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    pictures = str(inputs.zipped(tmp_path / 'x.zip', inputs.files()))
    assert main.main(['embed', pictures, '--out', str(ours), '--partition-size', '2']) == 0
    assert main.main(['build', str(ours), '--faiss', str(ours / 'image.index')]) == 0
    run(python, 'index', ours, theirs)
    with back(python, tmp_path / 'paths.json', {'ours': ours, 'theirs': theirs}) as http:
        for tower, modality in (('img_emb', 'image'), ('text_emb', 'text')):
            rows = vectors(ours, tower)
            for query in (rows[17], unit(np.random.default_rng(5).normal(size=(1, rows.shape[1])))[0]):
                close = rows @ query
                expected = np.argsort(-close, kind='stable')[:5]
                for indice in ('theirs',) if modality == 'text' else ('ours', 'theirs'):
                    found = knn(http, indice, query, 5, modality)
                    assert [item['id'] for item in found] == expected.tolist()
                    assert [item['image_path'] for item in found] == [f'{name(n)}.jpg' for n in expected]
                    assert [item['caption'] for item in found] == [caption(n) for n in expected]
                    scores = [item['similarity'] for item in found]
                    assert scores == pytest.approx(close[expected].tolist(), abs=1e-3)


def test_back_reads_approximate_indexes_of_both(python: Path, tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(0).normal(size=(MANY, 32)))
    columns = {'image_path': [f'/photos/{n}.jpg' for n in range(MANY)]}
    folder = written(tmp_path / 'folder', rows.astype(np.float16), columns)
    assert main.main(['build', str(folder), '--faiss', str(folder / 'image.index'), '--kind', 'ivf']) == 0
    run(python, 'index', folder, tmp_path / 'theirs')
    indices = {'ours': folder, 'theirs': tmp_path / 'theirs'}
    with back(python, tmp_path / 'paths.json', indices) as http:
        right = 0
        for place, indice in ((n, indice) for n in range(0, MANY, 150) for indice in indices):
            found = knn(http, indice, rows[place], 10)
            assert (found[0]['id'], found[0]['image_path']) == (place, f'/photos/{place}.jpg')
            close = rows @ rows[place]
            assert [item['similarity'] for item in found] == pytest.approx(
                [close[item['id']] for item in found], abs=2e-3
            )
            right += len({item['id'] for item in found} & set(np.argsort(-close)[:10].tolist()))
        assert right >= 0.9 * 10 * 2 * MANY / 150


def test_build_and_load_read_what_their_writer_has_written(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')  # of 32 dimensions
    rows = unit(np.random.default_rng(1).normal(size=(COUNT, 32)))
    told = [(f'{name(n)}.jpg', caption(n), {'n': n, 'deep': {'x': [n]}, 'url': f'http://e/{n}'}) for n in range(COUNT)]
    (tmp_path / 'source').mkdir()
    np.save(tmp_path / 'source' / 'vectors.npy', rows)
    (tmp_path / 'source' / 'rows.json').write_text(json.dumps(told))
    theirs = tmp_path / 'theirs'
    run(python, 'write', tmp_path / 'source', theirs)
    assert Mapped(theirs).count() == COUNT
    assert sorted(path.name for path in theirs.iterdir()) == ['img_emb', 'metadata', 'text_emb']
    for workspace, command in (('loaded', ['load', str(theirs)]), ('built', ['build', str(theirs)])):
        place = tmp_path / workspace
        monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(place))
        assert main.main(command) == 0
        store = Documents(generations.current(place) / '0')
        try:
            assert store.count() == COUNT
            found = store.by_ids([path for path, _, _ in told], vectors=True)
            for n, (path, text, fields) in enumerate(told):
                record = found[path]
                assert (record.text, record.uri) == (text, fields['url'])
                assert json.loads(record.tags) == {'n': n, 'deep.x': [n]}
                assert record.vector is not None
                assert record.vector @ rows[n] > 0.999
        finally:
            store.close()

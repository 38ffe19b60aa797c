"""From a folder of vectors to a workspace: the same documents and results as after `load`, with the index at hand."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from folders import unit, written

from clipflow import ROOT
from clipflow.bulk import build, exchange, index_file, workspace
from clipflow.bulk.mapped import Mapped
from clipflow.bulk.processes import each
from clipflow.errors import (
    ClipflowError,
    Conflict,
    DimensionMismatch,
    InvalidDocument,
    InvalidParameter,
    ModelMismatch,
    NotFound,
    ReadOnly,
    StorageFull,
    Unavailable,
)
from clipflow.index.base import Effort
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.store import generations
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec

COUNT, DIMENSION = 2100, 16
SPEC = load_spec(str(ROOT / 'models' / 'clip-mini'))
VECTORS = unit(np.random.default_rng(0).normal(size=(COUNT, DIMENSION)))
QUERIES = unit(np.random.default_rng(1).normal(size=(5, DIMENSION)))
ALL = Effort(nprobe=10_000)


@pytest.fixture(autouse=True)
def _any_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime `fake` has its own dimension, so that none is expected."""
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f'/photos/{n}.jpg' for n in range(COUNT)]
    columns = {'image_path': names, 'caption': [f'c{n}' for n in range(COUNT)], 'width': list(range(COUNT))}
    return written(tmp_path_factory.mktemp('folder'), VECTORS.astype(np.float16), columns)


def quiet(phase: str, count: int) -> None:
    pass


def built(folder: Path, place: Path, shards: int = 1, **wanted: Any) -> None:
    build.build_workspace(Mapped(folder), place, SPEC, Wanted(**wanted), shards=shards, told=quiet)


def results(place: Path, shards: int, wanted: Wanted) -> tuple[list[list[tuple[str, float]]], list[dict[str, Any]]]:
    """For every query the ten best of all shards, as the ranker merges them; and what the indexes say of themselves."""
    found: list[list[tuple[str, float]]] = [[] for _ in QUERIES]
    states = []
    with ExitStack() as open_:
        for store in open_.enter_context(workspace.opened(generations.current(place), SPEC, shards)):
            keeper = Keeper(store, wanted, Snapshots())
            open_.callback(keeper.close)
            assert keeper.index is not None
            for best, (keys, scores) in zip(found, keeper.index.search(QUERIES, 10, effort=ALL), strict=True):
                records = store.by_keys(keys.tolist())
                best += [(records[key].id, round(score, 5)) for key, score in zip(keys.tolist(), scores, strict=True)]
            states.append(keeper.status())
    return [sorted(best, key=lambda pair: (-pair[1], pair[0]))[:10] for best in found], states


@pytest.fixture(scope='module')
def loaded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[str, float]]]:
    place = tmp_path_factory.mktemp('loaded')
    with workspace.opened(generations.current(place), SPEC, 1) as stores:
        for records in exchange.read(folder):
            workspace.put(stores, records)
    return results(place, 1, Wanted('flat'))[0]


@pytest.mark.parametrize(('kind', 'shards'), [('flat', 1), ('ivf', 1), ('hnsw', 1), ('flat', 2), ('ivf', 2)])
def test_searches_find_what_they_find_after_load_and_no_index_is_built_at_the_start(
    folder: Path, loaded: list[list[tuple[str, float]]], kind: str, shards: int, tmp_path: Path
) -> None:
    told: dict[str, int] = {}

    def hear(phase: str, count: int) -> None:
        told[phase] = told.get(phase, 0) + count

    choice = build.build_workspace(Mapped(folder), tmp_path, SPEC, Wanted(kind), shards=shards, told=hear)
    assert told == {build.STORING: COUNT, build.INDEXING: COUNT}
    assert choice.kind == kind
    assert build.documents_in(tmp_path) == COUNT
    found, states = results(tmp_path, shards, Wanted(kind))
    if kind != 'hnsw':
        assert found == loaded
    else:
        pairs = list(zip(found, loaded, strict=True))
        assert np.mean([len({*one} & {*other}) / 10 for one, other in pairs]) >= 0.98
    for state in states:
        assert state['kind'] == kind
        assert 'from a snapshot, 0 later changes' in state['start']
        assert (state['recent'], state.get('task')) == (0, None)
        assert kind == 'flat' or state['recall'] >= 0.98
    # Only what the service needs is left.
    assert {path.name for path in generations.current(tmp_path).iterdir()} == {
        'lock',
        *(str(number) for number in range(shards)),
    }


def test_the_documents_are_those_of_load_and_shards_have_the_same_clusters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('os.cpu_count', lambda: 1)
    built(folder, tmp_path, 2, kind='ivf')
    records, centres = {}, []
    for number in range(2):
        (main,) = generations.current(tmp_path).glob(f'{number}/snapshots/*/main.faiss')
        index = faiss.read_index(str(main))
        centres.append(index.quantizer.reconstruct_n(0, index.nlist))
    with workspace.opened(generations.current(tmp_path), SPEC, 2) as stores:
        for store in stores:
            records |= {record.id: record for record in store.by_keys(store.keys().tolist(), vectors=True).values()}
            assert store.precision() == 'float'
    assert np.array_equal(centres[0], centres[1])
    for expected in (record for block in exchange.read(folder) for record in block):
        found = records[expected.id]
        assert (found.text, found.uri, json.loads(found.tags)) == (
            expected.text,
            expected.uri,
            json.loads(expected.tags),
        )
        assert np.array_equal(found.vector, expected.vector)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize('phase', [build.STORING, build.INDEXING])
def test_an_interrupted_run_counts_for_nothing_and_the_next_goes_on(
    folder: Path, loaded: list[list[tuple[str, float]]], phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, '_TOGETHER', 500)

    def stop(at: str, count: int) -> None:
        if at == phase:
            raise _Killed

    with pytest.raises(_Killed):
        build.build_workspace(Mapped(folder), tmp_path, SPEC, Wanted('ivf'), shards=1, told=stop)
    assert build.documents_in(tmp_path) == 0
    (part,) = tmp_path.glob('indexer-*/0')
    with_documents = Store(part, SPEC.fingerprint, SPEC.name)
    sequence = with_documents.last_sequence()
    with_documents.close()
    assert sequence == (COUNT if phase == build.INDEXING else 700)
    clusters = (part.parent / 'clusters.faiss').stat().st_mtime_ns
    learnt: list[int] = []
    monkeypatch.setattr(build, 'sampled', lambda *_: learnt.append(clusters))
    built(folder, tmp_path, kind='ivf')
    found, (state,) = results(tmp_path, 1, Wanted('ivf'))
    assert found == loaded
    assert learnt == []
    # What was stored before was not stored again.
    assert state['snapshot'] == COUNT
    assert [path.name for path in tmp_path.glob('indexer-*')] == [generations.current(tmp_path).name]


def test_metadata_that_were_mended_after_an_interruption_hold_for_all_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, '_TOGETHER', 500)
    numbers = [f'{n}' for n in range(1400)]
    columns = {'image_path': numbers, 'note': [*numbers[:-1], 'not to be stored: \0']}
    given = written(tmp_path / 'given', VECTORS[:1400], columns)
    with pytest.raises(InvalidDocument, match='NUL'):
        built(given, tmp_path / 'place')
    mended = written(tmp_path / 'mended', VECTORS[:1400], {'image_path': numbers, 'id': [f'id-{n}' for n in numbers]})
    for path in (mended / 'metadata').iterdir():
        path.replace(given / 'metadata' / path.name)
    built(given, tmp_path / 'place')
    with workspace.opened(generations.current(tmp_path / 'place'), SPEC, 1) as (store,):
        assert {record.id for record in store.by_ids([f'id-{n}' for n in numbers]).values()} == {
            f'id-{n}' for n in numbers
        }
    assert [path.name for path in (tmp_path / 'place').glob('indexer*')] == [store.directory.parent.name]


def test_when_learning_fails_storing_is_given_up_and_the_next_run_goes_on(
    folder: Path, loaded: list[list[tuple[str, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, '_TOGETHER', 500)
    begun, failing = threading.Event(), threading.Event()

    def fail(*_: object) -> None:
        assert begun.wait(30)
        failing.set()
        raise StorageFull('no space')

    def wait(phase: str, count: int) -> None:
        # The first batch is stored; what fails meanwhile is heard with the next one at the latest.
        begun.set()
        assert failing.wait(30)

    with monkeypatch.context() as patch:
        patch.setattr(build, '_learn', fail)
        with pytest.raises(StorageFull):
            build.build_workspace(Mapped(folder), tmp_path, SPEC, Wanted('ivf'), shards=1, told=wait)
    assert build.documents_in(tmp_path) == 0
    built(folder, tmp_path, kind='ivf')
    assert results(tmp_path, 1, Wanted('ivf'))[0] == loaded


def test_a_shard_that_is_done_is_not_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(build, '_switch', lambda *_: None)
        built(folder, tmp_path, kind='ivf')
    made: list[Any] = []
    monkeypatch.setattr(build, 'build', lambda *given: made.append(given))
    built(folder, tmp_path, kind='ivf')
    assert made == []
    assert build.documents_in(tmp_path) == COUNT


def test_a_workspace_with_documents_and_one_that_is_served_are_left_alone(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / 'empty'
    served = Store(empty / 'indexer' / '0', SPEC.fingerprint, SPEC.name)
    with pytest.raises(Conflict, match='another process'):
        built(folder, empty)
    served.close()
    built(folder, empty)
    assert not (empty / 'indexer').exists()
    with pytest.raises(Conflict, match=r'documents in .* already'):
        built(folder, empty)


def test_documents_that_came_meanwhile_are_not_deleted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = build._switch

    def late(*given: Any) -> None:
        with workspace.opened(tmp_path / 'indexer', SPEC, 1) as (store,):
            store.upsert([Record('late', '', '', '{}', VECTORS[0])])
        switch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(build, '_switch', late)
        with pytest.raises(Conflict, match=r'documents in .* already'):
            built(folder, tmp_path)
    assert build.documents_in(tmp_path) == 1


def test_what_was_built_and_cleared_is_built_again(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        built(folder, tmp_path)
        assert build.documents_in(tmp_path) == COUNT
        with workspace.opened(generations.current(tmp_path), SPEC, 1) as (store,):
            store.clear()


def test_an_index_for_others_has_the_places_of_the_folder_as_its_ids(folder: Path, tmp_path: Path) -> None:
    for kind, factory in (('flat', 'flat'), ('ivf', 'ivf')):
        file = tmp_path / 'made' / f'{factory}.index'
        choice = index_file.write(Mapped(folder), file, Wanted(kind), quiet)
        index = faiss.read_index(str(file))
        assert (choice.kind, index.ntotal, index.metric_type) == (kind, COUNT, faiss.METRIC_INNER_PRODUCT)
        places = np.arange(0, COUNT, 97)
        scores, found = index.search(VECTORS[places], 1)
        assert found[:, 0].tolist() == places.tolist()
        assert scores[:, 0] == pytest.approx(np.ones(len(places)), abs=1e-3)
    # The effort that was tuned, not FAISS's 1.
    assert faiss.extract_index_ivf(index).nprobe > 1
    assert sorted(path.name for path in (tmp_path / 'made').iterdir()) == ['flat.index', 'ivf.index']
    with pytest.raises(InvalidParameter, match='is a folder; name a file'):
        index_file.write(Mapped(folder), folder, Wanted('flat'), quiet)
    with pytest.raises((ReadOnly, StorageFull), match='could not be written'):
        index_file.write(Mapped(folder), folder / 'img_emb' / 'img_emb_00.npy' / 'x', Wanted('flat'), quiet)


def _break(folder: Path, what: str) -> None:
    arrays = sorted((folder / 'img_emb').iterdir())
    if what == 'damaged':
        arrays[1].write_bytes(arrays[1].read_bytes()[:300])
    elif what == 'other dimension':
        np.save(arrays[1], VECTORS[:700, :8])
    elif what == 'rows':
        np.save(arrays[1], VECTORS[:699])
    elif what == 'zero':
        np.save(arrays[1], VECTORS[:700] * 0)
    elif what == 'metadata':
        (folder / 'metadata' / 'metadata_01.parquet').write_bytes(b'PAR1 nothing PAR1')
    elif what == 'manifest':
        (folder / 'manifest.json').write_text('{"fingerprint": "abc", "model": "other"}')
    elif what == 'no manifest':
        (folder / 'manifest.json').write_text('[')
    elif what == 'begun':
        (folder / 'plan').mkdir()
        (folder / 'plan' / 'plan.json').write_text('{}')
    elif what == 'copied in part':
        (folder / 'manifest.json').write_text('{"sample_count": 1400}')
        arrays[1].unlink()
    elif what == 'none':
        for path in arrays:
            path.unlink()


@pytest.mark.parametrize(
    ('what', 'error', 'sentence'),
    [
        ('damaged', InvalidDocument, 'img_emb_01.npy cannot be read'),
        ('other dimension', DimensionMismatch, 'img_emb_01.npy holds vectors of 8 dimensions, img_emb_00.npy of 16'),
        ('rows', InvalidDocument, 'metadata_01.parquet has 700 rows for 699 vectors'),
        ('zero', InvalidDocument, 'zero or not finite'),
        ('metadata', InvalidDocument, 'metadata_01.parquet cannot be read'),
        ('manifest', ModelMismatch, "model 'other'"),
        ('no manifest', InvalidDocument, 'manifest.json cannot be read'),
        ('begun', Conflict, 'is not complete: the `clipflow embed`'),
        ('copied in part', InvalidDocument, 'holds 700 vectors, not 1400 as its manifest.json says'),
        ('none', NotFound, 'no collection of vectors'),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_and_nothing_counts(
    what: str, error: type[ClipflowError], sentence: str, tmp_path: Path
) -> None:
    columns = {'image_path': [f'{n}' for n in range(1400)]}
    given = written(tmp_path / 'given', VECTORS[:1400], columns)
    _break(given, what)
    with pytest.raises(error, match=sentence):
        built(given, tmp_path / 'place')
    assert build.documents_in(tmp_path / 'place') == 0


def _deaf_to_interrupts(part: int, told: Any) -> None:
    told('deaf' if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []) else 'hears', 1)


def test_processes_do_not_hear_ctrl_c_from_their_first_moment_on() -> None:
    heard: list[str] = []
    each([1, 2], _deaf_to_interrupts, 2, lambda phase, count: heard.append(phase))
    assert heard == ['deaf', 'deaf']
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _fail(part: str, told: Any) -> None:
    if part == 'kill':
        os.kill(os.getpid(), 9)
    if part == 'raise':
        raise InvalidDocument('this part is faulty')
    while True:
        told('working', 1)


@pytest.mark.parametrize(('part', 'error'), [('raise', InvalidDocument), ('kill', Unavailable)])
def test_when_one_process_fails_the_others_end_and_its_error_is_told(part: str, error: type[ClipflowError]) -> None:
    with pytest.raises(error):
        each(['go on', part], _fail, 2, quiet)


@pytest.fixture
def cli(folder: Path, tmp_path: Path) -> Iterator[Any]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, '-m', 'clipflow.cli.main', 'build', *arguments],
            env={'PATH': '', 'HOME': str(tmp_path), 'CLIPFLOW_RUNTIME': 'fake'},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=120,
        )

    return run


def test_the_command_says_how_to_start_the_service_and_what_is_wrong_with_its_options(
    cli: Any, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / 'place'
    done = cli(str(folder), '--workspace', str(place), '--kind', 'ivf', '--faiss', str(tmp_path / 'image.index'))
    assert done.returncode == 0, done.stderr
    assert '2,100 documents are in' in done.stdout
    assert f'Start the service with CLIPFLOW_WORKSPACE={place} CLIPFLOW_INDEX_KIND=ivf\n' in done.stdout
    assert '2,100 vectors are in' in done.stdout
    refused = cli(str(folder), '--workspace', str(tmp_path / 'other'), '--recall', '2')
    assert (refused.returncode, 'CLIPFLOW_INDEX_RECALL' in refused.stderr) == (1, True)
    refused = cli(str(folder), '--workspace', str(folder / 'img_emb' / 'img_emb_00.npy'), '--shards', '2')
    assert (refused.returncode, 'is a file' in refused.stderr, 'Traceback' in refused.stderr) == (1, True, False)


def test_vectors_with_the_id_of_another_are_told(cli: Any, tmp_path: Path) -> None:
    given = written(tmp_path / 'given', VECTORS[:30], {'image_path': [f'{n % 20}.jpg' for n in range(30)]})
    done = cli(str(given), '--workspace', str(tmp_path / 'place'))
    assert (done.returncode, '20 documents are in' in done.stdout) == (0, True)
    assert '10 of 30 vectors have an id that comes again' in done.stderr


def test_an_unknown_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match='not a kind of index'):
        built(folder, tmp_path, kind='tree')

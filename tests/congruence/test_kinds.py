"""Every kind of index does what the simple one does: sees writes at once, forgets what is deleted, finds enough."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, InvalidParameter
from clipflow.filters import compile_filter
from clipflow.index import approximate, keeper, layered
from clipflow.index.approximate import Approximate
from clipflow.index.base import Effort
from clipflow.index.choice import Wanted, choose, memory_for_vectors
from clipflow.index.keeper import Snapshots, _rotten
from clipflow.index.live import Hit, LiveIndex, Query
from clipflow.index.reference import ReferenceIndex
from clipflow.index.snapshot import checksum
from clipflow.index.trial import check_kind
from clipflow.index.tuning import QUERIES
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from service import until

DIMENSION = 32
COUNT = 1500
RECALL = 0.95
KINDS = ('flat', 'hnsw', 'ivf', 'ivfpq', 'IVF8,SQ8', 'HNSW32_SQ8', 'PCA24,IVF4,SQfp16', 'PCA24,IVF8,PQ8', 'SQ4')


@pytest.fixture(scope='module')
def vectors() -> NDArray[np.float32]:
    """Clusters of unequal size, as a model gives them."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, DIMENSION))
    rows = centres[(40 * rng.random(2 * COUNT) ** 2).astype(int)] + 0.5 * rng.normal(size=(2 * COUNT, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def queries(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Some way off from the stored vectors."""
    rows = vectors[:count] + 0.15 * np.random.default_rng(4).normal(size=(count, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def opened(folder: Path, kind: str) -> LiveIndex:
    store = Store(folder, 'abc', 'm')
    return LiveIndex(store, Wanted(kind, recall=RECALL), Snapshots(10**9, 10**9))


def settled(live: LiveIndex, kind: str) -> LiveIndex:
    """Wait until the index is of the kind that was asked for, and nothing is left to merge or compact."""
    until(lambda: live.status()['kind'] != 'flat' or kind == 'flat', 120, 'it is of the kind')
    assert live.status()['warnings'] == []
    return live


def fill(live: LiveIndex, vectors: NDArray[np.float32], start: int, stop: int) -> None:
    """Documents `start` to `stop`; every tenth is red, every hundredth has a rare tag."""
    for first in range(start, stop, 250):
        live.upsert(
            [
                Record(str(n), '', '', json.dumps({'red': n % 10 == 0, 'rare': n % 100 == 0, 'n': n}), vectors[n])
                for n in range(first, min(first + 250, stop))
            ]
        )


def truth(
    vectors: NDArray[np.float32], ids: list[int], asked: NDArray[np.float32], limit: int
) -> list[dict[str, float]]:
    """The exact best of the documents with these numbers; ties by id, as the service has it."""
    reference = ReferenceIndex()
    reference.put(np.array(ids), vectors[ids])
    found = []
    for keys, scores in reference.search(asked, limit):
        pairs = zip(scores.round(6).tolist(), map(str, keys.tolist()), strict=True)
        best = sorted((-score, key) for score, key in pairs)[:limit]
        found.append({key: -score for score, key in best})
    return found


def check(found: list[list[Hit]], expected: list[dict[str, float]], recall: float) -> None:
    """As many as there should be, in order, each with its true cosine, and enough of the true ones."""
    shares = []
    for hits, best in zip(found, expected, strict=True):
        assert len(hits) == len(best)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert len({hit.record.id for hit in hits}) == len(hits)
        shares.append(len({hit.record.id for hit in hits} & set(best)) / max(1, len(best)))
        for hit in hits:
            if hit.record.id in best:
                assert hit.score == pytest.approx(best[hit.record.id], abs=2e-6)
    assert np.mean(shares) >= recall


def check_pages(live: LiveIndex, asked: NDArray[np.float32]) -> None:
    """Five are the beginning of fifteen, and of sixty."""
    for vector in asked[:20]:
        pages = [[hit.record.id for hit in live.search(vector[None], Query(limit))[0]] for limit in (5, 15, 30, 60)]
        assert all(page == pages[-1][: len(page)] for page in pages)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def live(tmp_path: Path, kind: str, vectors: NDArray[np.float32]) -> Iterator[LiveIndex]:
    index = opened(tmp_path, kind)
    fill(index, vectors, 0, COUNT)
    yield settled(index, kind)
    index.close()


def test_a_kind_lives_through_writes_deletes_filters_and_restarts(
    live: LiveIndex, kind: str, vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    # One long story, because to train an index for each chapter would take minutes.
    asked = queries(vectors, 40)
    floor = 1.0 if kind == 'flat' else RECALL - 0.03
    here = list(range(COUNT))
    check(live.search(asked, Query(10)), truth(vectors, here, asked, 10), floor)
    assert live.status()['recall'] >= RECALL

    # Never fewer than asked for, however many.
    check(live.search(asked[:2], Query(COUNT + 5)), truth(vectors, here, asked[:2], COUNT), 1.0)

    # Pages are parts of one list, and an effort for one request, however large, is none for the next.
    check_pages(live, asked)
    live.search(asked[:1], Query(10, effort=Effort(nprobe=2**40, ef_search=2**40)))
    check(live.search(asked, Query(10)), truth(vectors, here, asked, 10), floor)

    # Rare documents are all found, and exactly.
    rare = [n for n in here if n % 100 == 0]
    matching = compile_filter({'rare': True})
    check(live.search(asked, Query(10, matching)), truth(vectors, rare, asked, 10), 1.0)

    # A write is seen by the next search, in its new place only.
    live.upsert([Record('7', '', '', '{}', vectors[COUNT + 1]), Record('new', '', '', '{}', vectors[COUNT + 2])])
    first, second = live.search(vectors[[COUNT + 1, COUNT + 2]], Query(1))
    assert [(first[0].record.id, first[0].score), (second[0].record.id, second[0].score)] == [('7', 1.0), ('new', 1.0)]
    everything = live.search(vectors[7:8], Query(COUNT + 5))[0]
    assert sorted(hit.record.id for hit in everything) == sorted([*map(str, here), 'new'])

    # What is deleted does not come again, also not after a restart from a snapshot before the deletion.
    live.keeper.snapshot()
    live.delete([str(n) for n in range(200)] + ['new'])
    here = list(range(200, COUNT))
    check(live.search(asked, Query(10)), truth(vectors, here, asked, 10), floor)
    check_pages(live, asked)
    before = [[(hit.record.id, hit.score) for hit in hits] for hits in live.search(asked, Query(10))]
    live.close()
    again = opened(tmp_path, kind)
    assert 'from a snapshot' in again.status()['start']
    assert [[(hit.record.id, hit.score) for hit in hits] for hits in again.search(asked, Query(10))] == before

    # And when more than a fifth is dead, the index is built anew, while searches go on.
    again.delete([str(n) for n in range(200, 1450)])
    fill(again, vectors, COUNT, 2 * COUNT)

    def renewed() -> bool:
        # What is written while it is built may be in it twice, and one of them is dead then.
        index = again.keeper.index
        return index is not None and not _rotten(index) and again.status()['recent'] < 2048

    until(renewed, 120, 'it is built anew')
    here = [*range(1450, 2 * COUNT)]
    check(again.search(asked, Query(10)), truth(vectors, here, asked, 10), floor)
    assert again.status()['warnings'] == []
    again.close()


@pytest.mark.parametrize('kind', ['HNSW8', 'HNSW8,SQ8', 'PCAR8,HNSW8', 'IVF4,SQ8'])
def test_equal_vectors_are_all_found(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered, 'SUBSET_STORED', 10)
    row = np.full(16, 0.25, dtype=np.float32)
    live = opened(tmp_path, kind)
    live.upsert([Record(f'{n}', '', '', json.dumps({'turn': n % 4}), row) for n in range(1200)])
    settled(live, kind)
    assert len(live.search(row[None], Query(500))[0]) == 500
    assert len(live.search(row[None], Query(250, compile_filter({'turn': 1})))[0]) == 250
    live.delete(matching=compile_filter({'turn': {'$neq': 1}}))
    assert len(live.search(row[None], Query(250))[0]) == 250
    live.close()


@pytest.mark.parametrize('kind', ['hnsw', 'IVF16,SQ8', 'SQ8'])
def test_equal_vectors_stand_for_each_other_when_the_effort_is_tuned(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = np.repeat(rng.normal(size=(50, DIMENSION)), 30, axis=0)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    live = opened(tmp_path, kind)
    live.upsert([Record(f'{n}', '', '', '{}', row) for n, row in enumerate(rows)])
    assert settled(live, kind).status()['recall'] >= RECALL
    live.close()


def test_clusters_are_learnt_of_all_though_every_second_document_is_gone(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(4000, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    live = opened(tmp_path, 'flat')
    live.upsert([Record(f'{n}', '', '', json.dumps({'even': n % 2 == 0}), row) for n, row in enumerate(rows)])
    live.delete(matching=compile_filter({'even': False}))
    live.close()
    again = settled(opened(tmp_path, 'IVF4,SQ8'), 'IVF4,SQ8')
    assert again.status()['recall'] >= RECALL
    again.close()


def test_the_effort_is_tuned_with_texts_alone(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    pictures = vectors[:QUERIES]
    efforts = []
    for name, texts in (('nobody asked', None), ('pictures asked', False), ('the same as texts', True)):
        live = opened(tmp_path / name, 'IVF32,Flat')
        live.upsert([Record('0', '', '', '{}', vectors[0])])
        if texts is not None:
            live.search(pictures, Query(1, texts=texts))
        fill(live, vectors, 0, COUNT)
        efforts.append(settled(live, 'IVF32,Flat').status()['effort'])
        live.close()
    assert efforts[0] == efforts[1] > efforts[2]


@pytest.mark.parametrize('kind', ['HNSW8', 'IVF8,SQ8'])
def test_the_effort_is_tuned_again_when_the_index_has_grown(
    kind: str, vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, 'MERGE_AT', 256)
    monkeypatch.setattr(approximate, 'PAGE', 1)  # else so few documents ask for no effort
    live = opened(tmp_path, kind)
    fill(live, vectors, 0, 1000)
    small = settled(live, kind).status()['effort']
    live.close()
    live = settled(opened(tmp_path, kind), kind)
    fill(live, vectors, 1000, 2 * COUNT)

    def tuned() -> bool:
        index = live.keeper.index
        return index is not None and index.main is not None and index.main.tuned_at >= 2000

    until(tuned, 120, 'it is tuned again')
    assert live.status()['effort'] >= small
    asked = queries(vectors, 40)
    check(live.search(asked, Query(10)), truth(vectors, list(range(2 * COUNT)), asked, 10), RECALL - 0.03)
    live.close()


def test_the_effort_is_tuned_again_with_real_queries_once_there_are_enough(
    vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, '_LONGEST_PAUSE', 0.05)
    monkeypatch.setattr(approximate, 'PAGE', 1)
    live = opened(tmp_path, 'IVF32,Flat')
    fill(live, vectors, 0, COUNT)
    made = settled(live, 'IVF32,Flat').status()['effort']
    easy = vectors[:QUERIES]  # each is a vector of the index itself

    def real() -> int:
        index = live.keeper.index
        assert index is not None
        assert index.main is not None
        return index.main.real

    for _ in range(3):
        live.search(easy[1:], Query(10, texts=True))
    assert real() == 0, 'many, but the same again'
    live.search(easy[:1], Query(10, texts=True))
    until(lambda: real() == QUERIES, 120, 'it is tuned with them')
    assert live.status()['effort'] < made
    live.snapshot()
    live.close()
    live = opened(tmp_path, 'IVF32,Flat')
    assert real() == QUERIES, 'a snapshot has it'
    live.close()


def test_of_a_budget_the_process_beside_the_vectors_takes_its_part() -> None:
    assert memory_for_vectors(1 << 30) == 864 << 20
    assert memory_for_vectors(100) == 50
    # In float16 the vectors alone take 1,019 of these 1,024 MB.
    choice = choose(Wanted(memory=memory_for_vectors(1 << 30)), 1_000_000, 512)
    assert choice.factory == 'IVF2048,SQ8'


def test_shards_share_the_clusters_that_were_learnt_once(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    learnt = Approximate.create('IVF8,SQ8', DIMENSION)
    learnt.train(vectors)
    learnt.write(tmp_path / 'shared.faiss')
    wanted = Wanted(recall=RECALL, trained=tmp_path / 'shared.faiss')
    shards = [LiveIndex(Store(tmp_path / f'shard {n}', 'abc', 'm'), wanted) for n in range(2)]
    for number, shard in enumerate(shards):
        fill(shard, vectors, number * 100, number * 100 + 100)
        until(lambda shard=shard: shard.status()['kind'] == 'trained', 120, 'it has the clusters')
    centres = []
    for shard in shards:
        index = shard.keeper.index
        assert index is not None
        assert index.main is not None
        centres.append(faiss.extract_index_ivf(index.main.faiss).quantizer.reconstruct_n(0, 8))
    assert (centres[0] == centres[1]).all()
    asked = queries(vectors[:200], 20)
    answers = zip(*[shard.search(asked, Query(10)) for shard in shards], strict=True)
    both = [sorted(one + other, key=lambda hit: -hit.score)[:10] for one, other in answers]
    check(both, truth(vectors, list(range(200)), asked, 10), RECALL - 0.03)
    for shard in shards:
        shard.close()


def test_a_kind_that_faiss_does_not_know_and_a_trained_index_that_is_none_are_refused(tmp_path: Path) -> None:
    for kind in ('bogus', 'IVF8', 'IDMap,Flat', 'IVF8,SQ8,RFlat', 'PQ7'):
        with pytest.raises(InvalidParameter, match=r'is not a kind of index|leave IDMap'):
            check_kind(kind, DIMENSION)
    # They cannot be told to look among some documents only.
    for kind in ('PQ8', 'PQ4x4fs', 'RQ4x8', 'PCA8,RQ2x8', 'IVF8,RQ4x4'):
        with pytest.raises(InvalidParameter, match='cannot serve: FAISS has no filters for it'):
            check_kind(kind, DIMENSION)
    # These end the process, or cannot be added to.
    for kind in ('HNSW0', 'HNSW1', 'IVF0,Flat', 'IVF8,FlatDedup', 'NSG32'):
        with pytest.raises(InvalidParameter, match=f'{kind!r} cannot serve: FAISS '):
            check_kind(kind, DIMENSION)
    served = ('auto', 'flat', 'hnsw', 'ivf', 'ivfpq', 'IVF8,SQ8', 'HNSW32_SQfp16', 'PCA8,HNSW16', 'SQ8')
    for kind in (*served, 'IVF65536_HNSW32,PQ4', 'PCA8,IVF64_HNSW8,SQ8', 'PQ4x16'):
        check_kind(kind, DIMENSION)
    (tmp_path / 'x').write_text('no')
    with pytest.raises(InvalidParameter, match='clipflow quantizer'):
        Approximate.read(tmp_path / 'x')


def test_a_trained_index_of_another_length_or_with_vectors_inside_is_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    learnt = Approximate.create('IVF4,SQ8', 8)
    learnt.train(rows)
    learnt.write(tmp_path / 'learnt.faiss')
    assert Approximate.read(tmp_path / 'learnt.faiss', 8).lists == 4
    assert Approximate.read(tmp_path / 'learnt.faiss').lists == 4
    with pytest.raises(DimensionMismatch, match='8 dimensions, not of 16'):
        Approximate.read(tmp_path / 'learnt.faiss', 16)
    learnt.fill(rows)
    learnt.write(tmp_path / 'filled.faiss')
    with pytest.raises(InvalidParameter, match='400 vectors in it'):
        Approximate.read(tmp_path / 'filled.faiss')


def warned(folder: Path, wanted: Wanted, rows: NDArray[np.float32]) -> list[str]:
    """What `/status` says of a kind that cannot be built, while everything is found."""
    live = LiveIndex(Store(folder, 'abc', 'm'), wanted)
    live.upsert([Record(f'{n}', '', '', '{}', row) for n, row in enumerate(rows)])
    until(lambda: live.status()['warnings'], 120, 'it has been tried')
    assert [hits[0].record.id for hits in live.search(rows[:3], Query(1))] == ['0', '1', '2']
    assert live.status()['kind'] == 'flat'
    live.close()
    return list(live.status()['warnings'])


def test_a_kind_that_cannot_be_built_of_what_is_there_says_why(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1100, 8))
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    (warning,) = warned(tmp_path / 'codes', Wanted('PQ2x12'), units)
    assert warning.startswith("'PQ2x12' cannot be learnt from 1,100 vectors: ")
    assert '4096' in warning
    learnt = Approximate.create('IVF4,SQ8', 16)
    learnt.train(np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32))
    learnt.write(tmp_path / 'learnt.faiss')
    (warning,) = warned(tmp_path / 'trained', Wanted(trained=tmp_path / 'learnt.faiss'), units)
    assert 'learnt.faiss was trained with vectors of 16 dimensions, not of 8' in warning


@pytest.mark.parametrize('kind', ['IVF128_HNSW4,Flat', 'IVF128_HNSW4,SQ8', 'PCA24,IVF128_HNSW4,SQ8'])
def test_lists_that_are_found_through_a_graph_are_all_found_when_all_are_needed(
    kind: str, vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    live = opened(tmp_path, kind)
    fill(live, vectors, 0, COUNT)
    until(lambda: live.status()['kind'] != 'flat', 120, 'it is of the kind')
    asked = queries(vectors, 20)
    assert [len(hits) for hits in live.search(asked, Query(COUNT))] == [COUNT] * 20
    red = live.search(asked, Query(COUNT, compile_filter({'red': True})))
    assert [len(hits) for hits in red] == [COUNT // 10] * 20
    live.delete([str(n) for n in range(5, COUNT)])
    assert {hit.record.id for hits in live.search(asked, Query(5)) for hit in hits} == {'0', '1', '2', '3', '4'}
    assert [len(hits) for hits in live.search(asked, Query(5))] == [5] * 20
    live.close()


def again(folder: Path, wanted: Wanted) -> LiveIndex:
    return LiveIndex(Store(folder, 'abc', 'm'), wanted, Snapshots(10**9, 10**9))


def test_another_number_of_lists_is_learnt_after_a_start_from_a_snapshot(
    vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    live = opened(tmp_path, 'IVF8,SQ8')
    fill(live, vectors, 0, COUNT)
    settled(live, 'IVF8,SQ8').snapshot()
    live.close()
    live = opened(tmp_path, 'IVF16,SQ8')
    until(lambda: live.status()['factory'] == 'IVF16,SQ8', 120, 'it has the lists that are asked for')
    live.close()


def test_another_recall_is_tuned_for_after_a_start_from_a_snapshot(
    vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    live = again(tmp_path, Wanted('IVF32,Flat', recall=0.3))
    fill(live, vectors, 0, COUNT)
    settled(live, 'IVF32,Flat').snapshot()
    small = live.status()['effort']
    live.close()
    live = again(tmp_path, Wanted('IVF32,Flat', recall=0.99))
    assert 'from a snapshot' in live.status()['start']
    until(lambda: live.status()['effort'] > small, 120, 'it looks harder')
    until(lambda: live.status()['recall'] >= 0.99 and not live.status()['warnings'], 120, 'the recall is reached')
    live.snapshot()
    tuned = live.status()
    live.close()
    live = again(tmp_path, Wanted('IVF32,Flat', recall=0.99))
    assert (live.status()['effort'], live.status()['recall']) == (tuned['effort'], tuned['recall'])
    live.close()


def test_another_trained_index_at_the_same_place_is_used(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    file = tmp_path / 'shared.faiss'

    def learn(rows: NDArray[np.float32]) -> Wanted:
        learnt = Approximate.create('IVF8,SQ8', DIMENSION)
        learnt.train(rows)
        learnt.write(file)
        return Wanted(recall=RECALL, trained=file, learnt=checksum(file))

    def centres(live: LiveIndex) -> NDArray[np.float32]:
        index = live.keeper.index
        assert index is not None
        assert index.main is not None
        found: NDArray[np.float32] = faiss.extract_index_ivf(index.main.faiss).quantizer.reconstruct_n(0, 8)
        return found

    live = again(tmp_path / 'workspace', learn(vectors[:COUNT]))
    fill(live, vectors, 0, 200)
    until(lambda: live.status()['kind'] == 'trained', 120, 'it has the clusters')
    live.snapshot()
    live.close()
    live = again(tmp_path / 'workspace', learn(vectors[COUNT:]))
    kept = faiss.read_index(str(file))  # else its parts go with it
    wanted = faiss.extract_index_ivf(kept).quantizer.reconstruct_n(0, 8)
    until(lambda: np.array_equal(centres(live), wanted), 120, 'it has the clusters of the new file')
    live.close()


def test_a_build_that_fails_is_tried_again_after_ever_longer_pauses(
    vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def fail(*_: object) -> None:
        tried.append(time.monotonic())
        raise RuntimeError('no luck')

    monkeypatch.setattr(keeper, '_LONGEST_PAUSE', 0.05)
    monkeypatch.setattr(keeper, 'build', fail)
    live = again(tmp_path, Wanted('IVF32,Flat'))
    fill(live, vectors, 0, COUNT)
    until(lambda: len(tried) >= 4, 120, 'it has been tried four times')
    assert live.status()['warnings'] == ['building failed (RuntimeError); the log says more']
    fill(live, vectors, 0, 10)  # a write does not make it try at once
    live.close()
    assert all(second - first >= 0.05 * 2**n for n, (first, second) in enumerate(pairwise(tried)))


def test_a_kind_that_cannot_be_learnt_does_not_stop_a_start(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    live = again(tmp_path, Wanted('flat'))
    fill(live, vectors, 0, 1100)
    live.close()
    live = again(tmp_path, Wanted('PQ2x12', memory=1000))
    assert [hits[0].record.id for hits in live.search(vectors[:3], Query(1))] == ['0', '1', '2']
    until(lambda: live.status()['warnings'], 120, 'it has been tried')
    assert live.status()['warnings'][0].startswith("'PQ2x12' cannot be learnt from 1,100 vectors: ")
    live.close()


def test_a_snapshot_that_needs_more_memory_than_is_left_to_it_is_not_loaded(
    vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    live = again(tmp_path, Wanted())
    fill(live, vectors, 0, COUNT)
    live.snapshot()
    live.close()
    live = again(tmp_path, Wanted())
    assert 'from a snapshot' in live.status()['start']
    live.close()
    live = again(tmp_path, Wanted(memory=COUNT * (DIMENSION + 60)))
    start = live.status()['start']
    assert 'its flat takes more memory than CLIPFLOW_INDEX_MEMORY allows' in start, start
    assert live.status()['factory'].endswith(',SQ8')
    live.close()


def test_lists_begin_when_there_are_as_many_documents() -> None:
    assert choose(Wanted('IVF2000,Flat'), 1999, 8).kind == 'flat'
    assert choose(Wanted('IVF2000,Flat'), 1999, 8).why == 'exact; IVF2000,Flat begins at 2,000 documents'
    assert choose(Wanted('IVF2000,Flat'), 2000, 8).factory == 'IVF2000,Flat'
    assert choose(Wanted('PCA4,IVF1500_HNSW8,SQ8'), 1300, 8).kind == 'flat'
    assert choose(Wanted('SQ8'), 1000, 8).factory == 'SQ8'

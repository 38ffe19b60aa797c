"""Every kind of index does what the simple one does: sees writes at once, forgets what is deleted, finds enough."""

import json
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow.filters import compile_filter
from clipflow.index.approximate import Approximate, check_kind
from clipflow.index.base import Effort
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Snapshots, _rotten
from clipflow.index.live import Hit, LiveIndex, Query
from clipflow.index.reference import ReferenceIndex
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

    # Five are the beginning of fifteen, and an effort for one request is none for the next.
    effort = Effort(nprobe=10**6, ef_search=COUNT)
    for vector in asked[:5]:
        wide, narrow = (live.search(vector[None], Query(n, effort=effort))[0] for n in (15, 5))
        if live.keeper.index is not None and (live.keeper.index.main is None or live.keeper.index.main.exact):
            assert [hit.record.id for hit in wide][:5] == [hit.record.id for hit in narrow]
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
        with pytest.raises(InvalidParameter):
            check_kind(kind, DIMENSION)
    for kind in ('auto', 'flat', 'hnsw', 'ivf', 'ivfpq', 'IVF8,SQ8', 'HNSW32_SQfp16'):
        check_kind(kind, DIMENSION)
    (tmp_path / 'x').write_text('no')
    with pytest.raises(InvalidParameter, match='clipflow quantizer'):
        Approximate.read(tmp_path / 'x')

"""When a snapshot counts, and when the one before it does."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipflow.errors import StorageFull
from clipflow.index import snapshot
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

AXES = np.eye(4, dtype=np.float32)
BY_HAND = Snapshots(10**9, 10**9)


def opened(folder: Path, snapshots: Snapshots = BY_HAND) -> LiveIndex:
    return LiveIndex(Store(folder, 'abc', 'm'), Wanted('flat'), snapshots)


def started(folder: Path) -> str:
    """How a start went."""
    live = opened(folder)
    live.close()
    return str(live.status()['start'])


def put(live: LiveIndex, *ids: str, axis: int = 0) -> None:
    live.upsert([Record(name, '', '', '{}', AXES[axis]) for name in ids])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / 'snapshots').rglob('*') if path.is_file())


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveIndex]:
    index = opened(tmp_path)
    put(index, 'a', 'b', 'c')
    yield index
    index.close()


def no_room(*_: object) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_service_that_was_started_with_nice_writes_them_too(live: LiveIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, 'setpriority', refused)
    assert live.snapshot()['documents'] == 3


@pytest.mark.parametrize('failures', [1, 2, 5])
def test_after_any_number_of_failures_the_last_good_snapshot_is_read(
    live: LiveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    live.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, '_put', no_room)
        for _ in range(failures):
            with pytest.raises(StorageFull):
                live.snapshot()
    put(live, 'd')
    live.close()
    assert started(tmp_path).startswith('4 documents from a snapshot, 1 later changes')


def test_the_database_knows_no_more_than_the_good_snapshot_and_the_latest_attempt(
    live: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.snapshot()
    good = live.store.snapshots()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, '_put', no_room)
        for _ in range(3):
            with pytest.raises(StorageFull):
                live.snapshot()
    assert (len(live.store.snapshots()), live.store.snapshots()[0]) == (2, good)
    live.snapshot()
    assert (len(live.store.snapshots()), live.store.snapshots()[0]) == (2, good)
    live.snapshot()
    assert good not in live.store.snapshots()


def test_a_snapshot_that_the_database_does_not_know_is_not_made_known_by_the_next_attempt(
    live: LiveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a backup of the database was put back: the snapshot is of a later state of it.
    live.snapshot()
    with live.store._transaction() as db:
        db.execute("UPDATE meta SET value = 'another' WHERE name = 'snapshots'")
    monkeypatch.setattr(snapshot, '_put', no_room)
    with pytest.raises(StorageFull):
        live.snapshot()
    live.close()
    assert 'it belongs to another database' in started(tmp_path)


@pytest.mark.parametrize('change', [False, True])
def test_a_process_that_ends_before_the_new_snapshot_has_its_name_leaves_the_old_one(
    live: LiveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bool
) -> None:
    live.snapshot()
    before = {path: path.read_bytes() for path in files(tmp_path)}
    if change:
        live.delete(['a'])  # takes no number

    def killed(*_: object) -> None:
        # What is there at this moment is what a kill would leave.
        assert {path: path.read_bytes() for path in before} == before
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'rename', killed)
    with pytest.raises(KeyboardInterrupt):
        live.snapshot()
    live.close()
    assert started(tmp_path).startswith(f'{3 - change} documents from a snapshot, {change:d} later changes')


def test_the_newest_snapshot_is_read_where_a_kill_left_two(
    live: LiveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.snapshot()
    live.delete(['a'])
    with monkeypatch.context() as patch:
        patch.setattr('clipflow.index.snapshot.shutil.rmtree', lambda *_, **__: None)
        live.snapshot()
    assert len(list((tmp_path / 'snapshots').iterdir())) == 2
    live.close()
    assert started(tmp_path).startswith('2 documents from a snapshot, 0 later changes')


def test_a_snapshot_after_clearing_leaves_nothing_of_what_was_cleared(live: LiveIndex, tmp_path: Path) -> None:
    live.snapshot()
    assert any(AXES[0].tobytes() in path.read_bytes() for path in files(tmp_path))
    live.clear()
    assert live.snapshot() == {'documents': 0, 'sequence': live.store.last_sequence(), 'bytes': 0}
    assert files(tmp_path) == []
    put(live, 'd', axis=1)
    live.close()
    assert started(tmp_path).startswith('1 documents read from the database (there is no snapshot)')


@pytest.mark.parametrize('emptied', ['clear', 'delete'])
def test_after_clearing_a_snapshot_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emptied: str) -> None:
    monkeypatch.setattr(Keeper, '_run', lambda _: None)
    live = opened(tmp_path, Snapshots(3, 10**9))
    put(live, 'a', 'b', 'c')
    live.keeper._save()
    assert files(tmp_path)
    if emptied == 'clear':
        live.clear()
    else:
        live.delete(['a', 'b', 'c'])
    live.keeper._save()
    assert files(tmp_path) == []
    live.close()


def test_changed_tags_are_no_changed_vectors(live: LiveIndex, tmp_path: Path) -> None:
    live.snapshot()
    live.store.merge_tags([(name, '{"a": 1}') for name in ('a', 'b', 'c', 'unknown')])
    put(live, 'd')
    live.store.merge_tags([('d', '{"a": 1}')])
    live.close()
    again = opened(tmp_path)
    assert again.status()['start'].startswith('4 documents from a snapshot, 1 later changes')
    assert again.status()['dead'] == 0
    assert [hit.record.tags for hit in again.search(AXES[:1], Query(5))[0]] == ['{"a":1}'] * 4
    again.close()

"""The shards of a workspace: of how many they are, who may have them, and what becomes of them when they are moved."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow import ROOT
from clipflow.bulk import workspace
from clipflow.errors import Conflict, Internal, InvalidParameter, StorageFull
from clipflow.settings import IndexerSettings
from clipflow.sharding import shard_of
from clipflow.store import generations, layout
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.weights import load_spec

SPEC = load_spec(str(ROOT / 'models' / 'clip-mini'))
COUNT = 40
IDS = {str(n) for n in range(COUNT)}
ROWS = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


class Killed(BaseException):
    pass


def unnoticed(_count: int) -> None:
    pass


def filled(home: Path, shards: int) -> Path:
    """A workspace with COUNT documents; the directory that counts."""
    home.mkdir()
    folder = generations.current(home)
    with workspace.opened(folder, SPEC, shards) as stores:
        workspace.put(stores, [Record(f'{n}', '', '', '{}', ROWS[n]) for n in range(COUNT)])
    return folder


def kept(home: Path) -> set[str]:
    """The ids in the shards that count, of which none is in the wrong place."""
    folder = generations.current(home)
    shards = workspace.shards_in(folder)
    found: set[str] = set()
    with workspace.opened(folder, SPEC, shards) as stores:
        for number, store in enumerate(stores):
            assert {shard_of(name, shards) for name in store.ids()} <= {number}
            found |= store.ids()
    return found


def directories(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if path.is_dir()]


def started(folder: Path, shards: int) -> list[Store]:
    """As by the stages of a service."""
    return [Store(folder / str(number), SPEC.fingerprint, SPEC.name, (), shards) for number in range(shards)]


def ended(stores: list[Store]) -> None:
    for store in stores:
        store.close()


# -- of how many shards they are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('shards', [1, 3])
def test_a_start_with_another_number_of_shards_makes_nothing_and_what_it_says_works(
    tmp_path: Path, shards: int
) -> None:
    home = tmp_path / 'home'
    folder = filled(home, shards)
    before = sorted(home.rglob('*'))
    for number in range(4):
        with pytest.raises(Conflict, match=rf'in {shards} shards?, but 4 .* `clipflow reshard --to 4`'):
            Store(folder / str(number), SPEC.fingerprint, SPEC.name, (), 4)
    assert sorted(home.rglob('*')) == before
    ended(started(folder, shards))
    assert workspace.reshard(home, SPEC, 4, unnoticed) == (shards, COUNT)
    ended(started(generations.current(home), 4))
    assert kept(home) == IDS


def test_fewer_shards_than_there_are_do_not_start_either(tmp_path: Path) -> None:
    folder = filled(tmp_path / 'home', 3)
    with pytest.raises(Conflict, match=r'in 3 shards, but 2 are asked for'):
        Store(folder / '0', SPEC.fingerprint, SPEC.name, (), 2)
    # Nor where the first of them is empty, or was never there.
    with workspace.opened(folder, SPEC, 3) as stores:
        stores[0].clear()
    for _ in range(2):
        with pytest.raises(Conflict, match=r'in 3 shards, but 2 are asked for'):
            Store(folder / '0', SPEC.fingerprint, SPEC.name, (), 2)
        shutil.rmtree(folder / '0', ignore_errors=True)
    assert not (folder / '0').exists()


@pytest.mark.parametrize('shards', [1, 3])
def test_empty_shards_of_another_number_are_in_nobodys_way(tmp_path: Path, shards: int) -> None:
    home = tmp_path / 'home'
    folder = filled(home, shards)
    # As a start with five of them left it once.
    for number in range(shards, 5):
        other = tmp_path / 'other' / str(number)
        Store(other, SPEC.fingerprint, SPEC.name, (), 5).close()
        other.rename(folder / str(number))
    assert workspace.shards_in(folder) == shards
    ended(started(folder, shards))
    assert workspace.reshard(home, SPEC, 5, unnoticed) == (shards, COUNT)
    assert kept(home) == IDS


def test_a_workspace_without_documents_takes_any_number(tmp_path: Path) -> None:
    for shards in (3, 1, 2):
        ended(started(tmp_path / layout.INDEXER, shards))
    assert workspace.shards_in(tmp_path / layout.INDEXER) == 2


def test_shards_of_an_older_schema_and_half_made_ones_are_looked_at_too(tmp_path: Path) -> None:
    folder = filled(tmp_path / 'home', 2)
    with sqlite3.connect(folder / '1' / layout.DOCUMENTS) as db:
        db.execute('PRAGMA user_version = 2')
        db.execute("DELETE FROM meta WHERE name = 'shards'")  # it was not always there
    shutil.rmtree(folder / '0')
    with pytest.raises(Conflict, match='in 1 shard, but 2'):
        Store(folder / '0', SPEC.fingerprint, SPEC.name, (), 2)
    (folder / '1' / layout.DOCUMENTS).unlink()
    sqlite3.connect(folder / '1' / layout.DOCUMENTS).close()
    Store(folder / '0', SPEC.fingerprint, SPEC.name, (), 2).close()


def test_a_shard_that_is_away_is_missed(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 3)
    away = (folder / '1').rename(tmp_path / 'away')
    assert workspace.shards_in(folder) == 3
    with pytest.raises(InvalidParameter, match='has 3 shards already'):
        workspace.reshard(home, SPEC, 3, unnoticed)
    for shards in (1, 2):
        with pytest.raises(Conflict, match=r'of the 3 shards .* not there: 1; bring'):
            workspace.reshard(home, SPEC, shards, unnoticed)
    assert directories(home) == [folder]
    away.rename(folder / '1')
    assert kept(home) == IDS


# -- moved to another number -------------------------------------------------------------------------------------------


def test_what_counts_is_never_the_place_to_move_to(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    seen = [filled(home, 1)]
    for shards in (3, 2, 3, 1):
        workspace.reshard(home, SPEC, shards, unnoticed)
        assert kept(home) == IDS
        seen.append(generations.current(home))
        assert directories(home) == [seen[-1]]
        assert seen[-1] != seen[-2]


def test_documents_are_moved_by_one_command_at_a_time(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    filled(home, 3)
    refused = 0

    def moved(_count: int) -> None:
        nonlocal refused
        with pytest.raises(Conflict, match='another command makes the documents'):
            workspace.reshard(home, SPEC, 5, unnoticed)
        refused += 1

    assert workspace.reshard(home, SPEC, 5, moved) == (3, COUNT)
    assert refused
    assert kept(home) == IDS


@pytest.mark.parametrize('moment', ['switch', 'clear'])
def test_nobody_opens_the_documents_until_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 2)
    done: Callable[..., None] = getattr(generations, moment)
    tried = 0

    def meanwhile(place: Path, *given: Any, **more: Any) -> None:
        nonlocal tried
        # At the beginning what others have left is cleared.
        for number in range(2) if moment == 'switch' or generations.current(home) != folder else ():
            with pytest.raises(Conflict, match='another process'):
                Store(folder / str(number), SPEC.fingerprint, SPEC.name, (), 2)
            tried += 1
        done(place, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(generations, moment, meanwhile)
        workspace.reshard(home, SPEC, 3, unnoticed)
    assert tried == 2
    assert kept(home) == IDS


def test_who_opens_documents_that_were_moved_meanwhile_is_refused(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 2)  # asked for before
    workspace.reshard(home, SPEC, 3, unnoticed)
    with pytest.raises(Conflict, match=r'moved from .* just now'), workspace.opened(folder, SPEC, 2):
        pass
    with pytest.raises(Conflict, match=r'moved from .* just now'), workspace.locked(folder):
        pass
    assert kept(home) == IDS


def test_a_stage_that_starts_while_documents_are_moved_does_not_serve_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 1)
    monkeypatch.syspath_prepend(ROOT / 'executors' / 'indexer')
    from vector_indexer import VectorIndexer

    room = VectorIndexer.__new__(VectorIndexer)
    room.settings, room.spec = IndexerSettings.load(workspace=home), SPEC

    def moved_then(_home: Path) -> Path:
        workspace.reshard(home, SPEC, 2, unnoticed)
        return folder

    monkeypatch.setattr(generations, 'cleared', moved_then)
    with pytest.raises(Conflict, match=r'moved from .* just now'):
        room.open()


def test_documents_that_do_not_arrive_stop_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 1)
    with monkeypatch.context() as patch:
        patch.setattr(workspace, 'put', lambda stores, records, *_, **__: stores[0].upsert(records[1:]))
        with pytest.raises(Internal, match=f'{COUNT} documents in .* {COUNT - 1} arrived'):
            workspace.reshard(home, SPEC, 2, unnoticed)
    assert directories(home) == [folder]
    assert kept(home) == IDS


def test_a_move_that_fails_leaves_the_disk_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / 'home'
    folder = filled(home, 1)

    def full(*_: Any, **__: Any) -> None:
        raise StorageFull('no space is left')

    for failing in (Store, generations):
        with monkeypatch.context() as patch:
            patch.setattr(failing, 'upsert' if failing is Store else 'switch', full)
            with pytest.raises(StorageFull):
                workspace.reshard(home, SPEC, 2, unnoticed)
        assert directories(home) == [folder]
    assert kept(home) == IDS


def test_what_a_kill_leaves_goes_with_the_next_move_or_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / 'home'
    filled(home, 1)
    # Killed before the switch.
    shutil.copytree(generations.current(home), generations.free(home, 'moved'))
    assert workspace.reshard(home, SPEC, 2, unnoticed) == (1, COUNT)
    assert directories(home) == [generations.current(home)]

    # Killed between the switch and the end of the deletion.
    def killed(path: Path, **_: Any) -> None:
        if path == gone:
            raise Killed

    for shards, following in ((3, generations.cleared), (1, lambda home: workspace.reshard(home, SPEC, 2, unnoticed))):
        gone = generations.current(home)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, 'rmtree', killed)
            with pytest.raises(Killed):
                workspace.reshard(home, SPEC, shards, unnoticed)
        assert set(directories(home)) == {gone, generations.current(home)}
        assert gone != generations.current(home)
        following(home)
        assert directories(home) == [generations.current(home)]
        assert kept(home) == IDS

"""A backup holds everything of one moment, and putting it back gives that again; what is wrong with it is said."""

import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipflow import ROOT
from clipflow.backup import contents, manifest
from clipflow.backup.manifest import Manifest
from clipflow.backup.restore import found, restore
from clipflow.backup.take import Taken, keep, take
from clipflow.backup.target import Target
from clipflow.cli.main import main
from clipflow.clicks import Feedback
from clipflow.errors import ClipflowError, Conflict, Internal, InvalidParameter, ModelMismatch, NotFound, ReadOnly
from clipflow.store import generations, layout
from clipflow.store.connection import connect
from clipflow.store.feedback import FeedbackLog
from clipflow.store.sqlite import Store

from .places import FINGERPRINT, everything, fill, listed, records, unnoticed


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    fill(tmp_path / 'workspace', 300)
    return tmp_path / 'workspace'


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(str(tmp_path / 'backups'))


def put_back(target: Target, workspace: Path, force: bool = False, fingerprint: str = FINGERPRINT) -> None:
    backup, told = found(target.address)
    restore(workspace, backup, told, fingerprint, unnoticed, force=force)


def path_in(target: Target, taken: Taken, name: str) -> Path:
    assert target.folder is not None
    return target.folder / taken.name / name


def rewritten(target: Target, taken: Taken, change: 'Change') -> None:
    """The manifest, with a change."""
    path = path_in(target, taken, manifest.NAME)
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_what_was_there_is_there_again(workspace: Path, target: Target, tmp_path: Path) -> None:
    taken = take(workspace, target, unnoticed)
    put_back(target, tmp_path / 'other')
    there = everything(tmp_path / 'other')
    assert there == (everything(workspace)[0], {'ranker/head': 'ranker 0'})
    assert len(there[0]) == taken.manifest.documents == 300
    # A store can go on: the next key and number of a change are new ones.
    store = Store(generations.current(tmp_path / 'other') / '0', FINGERPRINT, 'm')
    assert store.last_sequence() == taken.manifest.shards[0].sequence == 300
    assert store.upsert(records(1, seed=9)).tolist() == [301]
    store.close()


def test_all_shards_and_all_feedback_are_in_it(tmp_path: Path, target: Target) -> None:
    fill(tmp_path / 'workspace', 20, shards=3)
    log = FeedbackLog(tmp_path / 'workspace', 1)
    log.append([Feedback('a', records(1)[0].vector, FINGERPRINT, ('x', 'y'), ('x',), ())])  # type: ignore[arg-type]
    taken = take(tmp_path / 'workspace', target, unnoticed)
    log.close()
    put_back(target, tmp_path / 'other')
    assert everything(tmp_path / 'other')[0] == everything(tmp_path / 'workspace')[0]
    assert sorted(taken.manifest.shards) == [0, 1, 2]
    assert taken.manifest.of == 3
    again = FeedbackLog(tmp_path / 'other', 1)
    assert again.last() == 1
    again.close()


def test_what_is_written_later_is_not_in_it_and_does_not_wait(
    workspace: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(workspace)[0]
    store = Store(generations.current(workspace) / '0', FINGERPRINT, 'm')
    monkeypatch.setattr(contents, '_PAGES', 1)
    written: list[int] = []

    def begun(_total: int) -> Callable[[float], None]:
        def moved(_count: float) -> None:
            # Between any two pages: a copy that followed the writes would begin anew each time, or mix both.
            if len(written) < 20:
                written.append(len(store.upsert(records(10, seed=100 + len(written)))))
                store.delete([f'0/{len(written)}'])

        return moved

    take(workspace, target, begun)
    store.close()
    assert len(written) == 20
    put_back(target, tmp_path / 'other')
    assert everything(tmp_path / 'other')[0] == before


def test_the_newest_snapshot_comes_with_it_even_if_another_takes_its_place(workspace: Path, target: Target) -> None:
    snapshots = generations.current(workspace) / '0' / layout.SNAPSHOTS
    for number in (5, 40):
        (snapshots / str(number)).mkdir(parents=True)
        (snapshots / str(number) / 'keys.i64').write_text(f'of {number}')
    (snapshots / '41.part').mkdir()
    with contents.held(workspace) as held:
        (snapshots / '40' / 'keys.i64').unlink()
        assert {name: file.read() for name, file in held.files.items() if 'snapshots' in name} == {
            'indexer/0/snapshots/40/keys.i64': b'of 40'
        }


def test_a_backup_is_of_the_generation_that_counts(workspace: Path, target: Target, tmp_path: Path) -> None:
    later = generations.named(workspace, 'later')
    store = Store(later / '0', FINGERPRINT, 'm')
    store.upsert(records(5, seed=7))
    store.close()
    generations.switch(workspace, later)
    assert take(workspace, target, unnoticed).manifest.documents == 5


def test_progress_ends_at_the_sum_of_all_bytes(workspace: Path, target: Target) -> None:
    totals: list[int] = []
    moved: list[float] = []
    taken = take(workspace, target, lambda total: totals.append(total) or moved.append)
    assert totals == [taken.manifest.size]
    assert sum(moved) == taken.manifest.size


# -- several of them --------------------------------------------------------------------------------------------------


def test_the_latest_is_put_back_and_only_so_many_are_kept(
    workspace: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / 'second', 10, seed=50)
    foreign = take(tmp_path / 'second', target, unnoticed)
    names = []
    for number in range(3):
        store = Store(generations.current(workspace) / '0', FINGERPRINT, 'm')
        store.upsert(records(1, seed=60 + number))
        store.close()
        _tick(monkeypatch, number + 1)
        names.append(take(workspace, target, unnoticed).name)
    latest = listed(target)[-1]
    assert latest.name == names[-1]
    assert latest.manifest.documents == 303
    with pytest.raises(InvalidParameter, match='backups of several workspaces'):
        found(target.address)
    assert keep(target, latest, 2) == names[:1]
    assert {backup.name for backup in listed(target)} == {foreign.name, *names[1:]}
    assert found(f'{target.address}/{names[1]}')[1].documents == 302


def test_what_was_taken_after_the_clock_was_set_back_is_kept(
    workspace: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for seconds in (1000, 2000, 0):
        _tick(monkeypatch, seconds)
        names.append(take(workspace, target, unnoticed))
    assert keep(target, names[2], 2) == [names[0].name]
    assert keep(target, names[2], 1) == [names[1].name]
    assert keep(target, names[2], 1) == []
    assert [backup.name for backup in listed(target)] == [names[2].name]


def test_one_damaged_manifest_does_not_keep_the_others_from_being_listed_kept_and_put_back(
    workspace: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['backup', '--list', target.address]) == 0
    assert capsys.readouterr().err == f'there is no complete backup in {target.address}\n'
    taken = []
    for number in range(3):
        _tick(monkeypatch, number)
        taken.append(take(workspace, target, unnoticed))
    path_in(target, taken[1], manifest.NAME).write_text('{')
    assert main(['backup', '--list', target.address]) == 1
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == [taken[0].name, taken[2].name]
    assert f'{taken[1].name}/manifest.json is damaged' in told.err
    put_back(target, tmp_path / 'other')
    assert everything(tmp_path / 'other')[0] == everything(workspace)[0]
    assert keep(target, taken[2], 2) == [taken[0].name]
    # The latest is meant: an older one would not be what was asked for.
    path_in(target, taken[2], manifest.NAME).write_text('{')
    with pytest.raises(Internal, match=f'{taken[2].name}/manifest.json is damaged'):
        found(target.address)


def _tick(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """So much later: a name has the second in it."""
    import datetime as clock

    class Later(clock.datetime):
        @classmethod
        def now(cls, tz: clock.tzinfo | None = None) -> 'Later':
            now = clock.datetime.now(tz) + clock.timedelta(seconds=seconds)
            return cls.fromtimestamp(now.timestamp(), tz)

    monkeypatch.setattr('clipflow.backup.take.datetime', Later)


def test_what_was_left_unfinished_counts_for_nothing_and_the_next_one_removes_it(
    workspace: Path, tmp_path: Path, target: Target
) -> None:
    taken = take(workspace, target, unnoticed)
    path_in(target, taken, manifest.NAME).unlink()
    other = path_in(target, taken, '').with_name('20200101T000000Z-ffffff')  # of a workspace that still works on it
    other.mkdir()
    assert listed(target) == []
    with pytest.raises(NotFound, match='no complete backup'):
        found(target.address)
    again = take(workspace, target, unnoticed)
    assert target.names() == [other.name, again.name]


def test_one_backup_of_a_workspace_is_taken_at_a_time(workspace: Path, target: Target) -> None:
    inside, leave = threading.Event(), threading.Event()

    def begun(_total: int) -> Callable[[float], None]:
        inside.set()
        assert leave.wait(30)
        return lambda _: None

    first = threading.Thread(target=take, args=(workspace, target, begun))
    first.start()
    assert inside.wait(30)
    try:
        with pytest.raises(Conflict, match='another backup of'):
            take(workspace, target, unnoticed)
    finally:
        leave.set()
        first.join()
    assert len(listed(target)) == 1


# -- what is wrong with it --------------------------------------------------------------------------------------------


def test_damage_is_seen_before_anything_changes(workspace: Path, target: Target, tmp_path: Path) -> None:
    taken = take(workspace, target, unnoticed)
    fill(tmp_path / 'other', 5, seed=3)
    before = everything(tmp_path / 'other')
    path = path_in(target, taken, f'indexer/0/{layout.DOCUMENTS}')
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + b'!' + whole[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(Internal, match=r'documents\.db is damaged; take another backup'):
            put_back(target, tmp_path / 'other', force=True)
    path.unlink()
    with pytest.raises(NotFound, match='a file of it is missing'):
        put_back(target, tmp_path / 'other', force=True)
    assert everything(tmp_path / 'other') == before
    assert not generations.staging(tmp_path / 'other').exists()


Change = Callable[[dict[str, Any]], object]
UNUSABLE: dict[str, tuple[Change, type[ClipflowError], str]] = {
    'newer': (lambda told: told.update(format=2), Conflict, 'has format 2, written by a newer clipflow'),
    'newer and of another form': (lambda told: told.update(format=2, shards='new'), Conflict, 'has format 2'),
    'newer database': (lambda told: _database(told).update(schema=99), Conflict, 'has schema 99, written by a newer'),
    'incomplete': (lambda told: told.pop('model'), Internal, r'damaged \(model: Field required\)'),
    'above': (lambda told: told['files'].update({'../x': _database(told)}), Internal, 'no file of a workspace'),
    'elsewhere': (lambda told: told['files'].update({'/etc/x': _database(told)}), Internal, 'no file of a workspace'),
    'of the service': (lambda told: told['files'].update({'lock/x': _database(told)}), Internal, 'no file of a worksp'),
}


@pytest.mark.parametrize('case', UNUSABLE)
def test_a_manifest_that_cannot_be_used(workspace: Path, target: Target, tmp_path: Path, case: str) -> None:
    change, error, sentence = UNUSABLE[case]
    rewritten(target, take(workspace, target, unnoticed), change)
    with pytest.raises(error, match=sentence):
        put_back(target, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def _database(told: dict[str, Any]) -> dict[str, Any]:
    database: dict[str, Any] = told['files'][f'indexer/0/{layout.DOCUMENTS}']
    return database


def test_a_manifest_that_is_no_json(workspace: Path, target: Target) -> None:
    path_in(target, take(workspace, target, unnoticed), manifest.NAME).write_text('{"format": 1')
    with pytest.raises(Internal, match='damaged'):
        found(target.address)


def test_another_model_is_refused(workspace: Path, target: Target, tmp_path: Path) -> None:
    take(workspace, target, unnoticed)
    with pytest.raises(ModelMismatch, match='set CLIPFLOW_MODEL to it'):
        put_back(target, tmp_path / 'other', fingerprint='another')
    assert not (tmp_path / 'other').exists()


def test_a_workspace_in_use_and_one_that_is_not_empty_are_refused(
    workspace: Path, target: Target, tmp_path: Path
) -> None:
    take(workspace, target, unnoticed)
    fill(tmp_path / 'other', 5, seed=3)
    before = everything(tmp_path / 'other')
    with pytest.raises(Conflict, match='--force replaces everything'):
        put_back(target, tmp_path / 'other')
    store = Store(generations.current(tmp_path / 'other') / '0', FINGERPRINT, 'm')
    with pytest.raises(Conflict, match='another process serves the workspace'):
        put_back(target, tmp_path / 'other', force=True)
    store.close()
    assert everything(tmp_path / 'other') == before
    put_back(target, tmp_path / 'other', force=True)
    assert everything(tmp_path / 'other') == (everything(workspace)[0], {'ranker/head': 'ranker 0'})


def test_a_backup_is_put_back_while_no_other_command_makes_documents(
    workspace: Path, target: Target, tmp_path: Path
) -> None:
    take(workspace, target, unnoticed)
    with generations.alone(workspace), pytest.raises(Conflict, match='another command'):
        put_back(target, workspace, force=True)
    refused = 0

    def begun(_total: int) -> Callable[[float], None]:
        nonlocal refused
        with pytest.raises(Conflict, match='another command'), generations.alone(tmp_path / 'other'):
            pass
        refused += 1
        return lambda _: None

    backup, told = found(target.address)
    restore(tmp_path / 'other', backup, told, FINGERPRINT, begun)
    assert refused == 1


def test_nobody_can_open_an_empty_workspace_while_a_backup_is_put_back(
    workspace: Path, target: Target, tmp_path: Path
) -> None:
    take(workspace, target, unnoticed)
    backup, told = found(target.address)
    refused: list[str] = []

    def begun(_total: int) -> Callable[[float], None]:
        with pytest.raises(Conflict) as error:
            Store(generations.current(tmp_path / 'other') / '0', FINGERPRINT, 'm')
        refused.append(str(error.value))
        return lambda _: None

    restore(tmp_path / 'other', backup, told, FINGERPRINT, begun)
    assert 'another process serves the workspace' in refused[0]
    assert sorted(path.name for path in (tmp_path / 'other').glob('indexer*')) == [
        generations.current(tmp_path / 'other').name
    ]


def test_a_damaged_database_is_not_backed_up(workspace: Path, target: Target) -> None:
    path = generations.current(workspace) / '0' / layout.DOCUMENTS
    with connect(path) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'thumbnails'").fetchone()[0]
        db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    db.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 + 8 : (root - 1) * 4096 + 40] = b'\xff' * 32
    path.write_bytes(data)
    with pytest.raises(Internal, match='damaged'):
        take(workspace, target, unnoticed)
    assert target.names() == []


def test_a_workspace_of_a_newer_version_is_not_backed_up(workspace: Path, target: Target) -> None:
    with sqlite3.connect(generations.current(workspace) / '0' / layout.DOCUMENTS) as db:
        db.execute('PRAGMA user_version = 99')
    db.close()
    with pytest.raises(Conflict, match='schema 99, written by a newer clipflow'):
        take(workspace, target, unnoticed)


@pytest.mark.parametrize(
    ('address', 'sentence'),
    [
        ('s3://KEYID:SECRET@bucket/prefix', 'must not hold credentials'),
        ('gs://bucket', 'is no place for backups'),
        ('s3:///prefix', 'is no place for backups'),
    ],
)
def test_an_address_that_cannot_be_used(address: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['backup', address]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert 'SECRET' not in said


def test_a_target_that_cannot_be_written(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ReadOnly, match='Not a directory'):
        take(workspace, Target(str(tmp_path / 'file' / 'backups')), unnoticed)


@pytest.mark.skipif(not Path('/sys').is_dir(), reason='there is no /sys, which nobody may write to')
def test_a_target_without_permission(workspace: Path) -> None:
    with pytest.raises(ReadOnly, match=r'Operation not permitted|Permission denied'):
        take(workspace, Target('/sys/backups'), unnoticed)


@pytest.mark.parametrize('name', ['indexer-old', 'indexer/more', 'feedback', 'ranker/backups', 'restored'])
def test_what_a_restore_would_delete_is_no_place_for_a_backup(workspace: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidParameter, match='is deleted when a backup is put back'):
        take(workspace, Target(str(workspace / name)), unnoticed)
    taken = take(workspace, Target(str(tmp_path / 'elsewhere')), unnoticed)
    inside = workspace / name / taken.name
    shutil.copytree(tmp_path / 'elsewhere' / taken.name, inside)
    with pytest.raises(InvalidParameter, match='is deleted when a backup is put back'):
        put_back(Target(str(inside)), workspace, force=True)
    assert (inside / manifest.NAME).is_file()


def test_beside_the_documents_backups_stay(workspace: Path) -> None:
    for target in (Target(str(workspace)), Target(str(workspace / 'backups'))):
        taken = take(workspace, target, unnoticed)
        put_back(target, workspace, force=True)
        assert listed(target)[-1].name == taken.name


def test_a_workspace_without_documents(tmp_path: Path, target: Target) -> None:
    with pytest.raises(NotFound, match='there are no documents in'):
        take(tmp_path / 'none', target, unnoticed)
    assert not (tmp_path / 'none').exists()


def limited(*command: str, workspace: Path) -> 'subprocess.CompletedProcess[str]':
    """A command that may write files of 64 KB at most."""
    limit = 1 << 16
    return subprocess.run(
        [sys.executable, '-m', 'clipflow.cli.main', *command, '--workspace', str(workspace)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={'PATH': '', 'HOME': str(workspace.parent), 'PYTHONPATH': f'{ROOT}:{ROOT / "client"}'},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_space_nothing_counts_and_nothing_changes(
    workspace: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = limited('backup', target.address, workspace=workspace)
    assert failed.returncode == 1
    assert 'clipflow: storage-full: no space is left' in failed.stderr
    assert 'Traceback' not in failed.stderr
    assert target.names() == []
    from clipflow.settings import RoomSettings
    from clipflow.weights import load_spec

    take(workspace, target, unnoticed)
    rewritten(
        target,
        listed(target)[0],
        lambda told: told['model'].update(fingerprint=load_spec(RoomSettings.load().model).fingerprint),
    )
    before = everything(workspace)
    failed = limited('restore', target.address, '--force', workspace=workspace)
    assert failed.returncode == 1
    assert 'clipflow: storage-full: no space is left' in failed.stderr
    assert everything(workspace) == before
    assert not generations.staging(workspace).exists()


def test_a_manifest_says_all_that_is_needed(workspace: Path, target: Target) -> None:
    taken = take(workspace, target, unnoticed)
    again = Manifest.parse(path_in(target, taken, manifest.NAME).read_bytes(), 'here')
    assert again == taken.manifest
    assert again.model.model_dump() == {
        'name': 'm',
        'fingerprint': FINGERPRINT,
        'precision': 'float',
        'dimension': 64,
    }
    for name, file in again.files.items():
        assert path_in(target, taken, name).stat().st_size == file.bytes

"""kill -9 of a process that changes an index, damaged and foreign snapshots, a full disk: the database is the truth.

The processes here run the index alone, so that hundreds of kills take minutes. CLIPFLOW_TEST_KILLS says how many.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.errors import ClipflowError, Conflict, StorageFull
from clipflow.index import choice as choice_module
from clipflow.index import snapshot as snapshot_module
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Keeper, Snapshots
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from service import until

from .index_writer import HARDEST, LEAST, vectors

ROOT = Path(__file__).parents[2]
KINDS = ('flat', 'hnsw', 'ivf', 'ivfpq')
KILLS = int(os.environ.get('CLIPFLOW_TEST_KILLS', '24'))
"""Of all kinds together."""
SEED = 20261201
BY_HAND = Snapshots(10**9, 10**9)


@dataclass(frozen=True)
class Doc:
    """What the store must hold of a document."""

    vector: bytes
    tags: str

    @classmethod
    def of(cls, vector: Any, tags: dict[str, Any]) -> 'Doc':
        return cls(np.asarray(vector, dtype=np.float32).tobytes(), json.dumps(tags, sort_keys=True))


Docs = dict[str, Doc]


def after(docs: Docs, operation: dict[str, Any]) -> Docs:
    """What is there when an operation of the child is done."""
    docs = dict(docs)
    if operation['what'] == 'upsert':
        rows = vectors(operation['seed'], len(operation['ids']))
        docs |= {name: Doc.of(row, operation['tags']) for name, row in zip(operation['ids'], rows, strict=True)}
    elif operation['what'] == 'delete':
        for name in operation['ids']:
            del docs[name]
    elif operation['what'] == 'tags':
        for name in operation['ids']:
            tags = json.loads(docs[name].tags) | operation['patch']
            kept = {key: value for key, value in tags.items() if value is not None}
            docs[name] = Doc(docs[name].vector, json.dumps(kept, sort_keys=True))
    return docs


@dataclass
class Model:
    """What is known of a folder from what its processes said."""

    docs: Docs = field(default_factory=dict)
    open: Docs = field(default_factory=dict)
    """As it is if the operation that was begun last had happened too."""
    before: dict[bytes, str] = field(default_factory=dict)
    """Vectors that were deleted or replaced, and the ids that had them."""

    def take(self, lines: list[dict[str, Any]]) -> int:
        """Follow the lines of one process; returns how many operations were done."""
        states, begun, done = [self.docs], None, 0
        for line in lines:
            if 'begin' in line:
                begun = line
                states.append(after(states[-1], line))
            elif 'done' in line:
                assert begun is not None
                assert line['done'] == begun['begin']
                begun, done = None, done + 1
        self.docs, self.open = states[-1 if begun is None else -2], states[-1]
        for state in states:
            self.before |= {doc.vector: name for name, doc in state.items()}
        return done

    def adopt(self, found: Docs) -> None:
        """One of the two states is found; from now on it is the only one."""
        lost = (self.docs.keys() & self.open.keys()) - found.keys()
        back = found.keys() - (self.docs.keys() | self.open.keys())
        assert not lost, f'acknowledged and lost: {sorted(lost)}'
        assert not back, f'deleted, and there again: {sorted(back)}'
        assert found in (self.docs, self.open), 'one operation happened in part'
        self.docs = self.open = found
        for doc in found.values():
            self.before.pop(doc.vector, None)


def stored(store: Store) -> Docs:
    """Everything in the database."""
    records = store.by_keys(store.keys().tolist(), vectors=True).values()
    return {record.id: Doc.of(record.vector, json.loads(record.tags)) for record in records}


@contextmanager
def opened(folder: Path, kind: str, *, still: bool = True) -> Iterator[LiveIndex]:
    """The index as a start leaves it: still, for an index built anew in the background hides faults of a start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_module, 'LEAST', LEAST)
        if still:
            patch.setattr(Keeper, '_run', lambda _: None)
        live = LiveIndex(Store(folder, 'abc', 'm'), Wanted(kind), BY_HAND)
        try:
            yield live
        finally:
            live.close()


def hits(live: LiveIndex, rows: list[bytes], limit: int) -> list[list[tuple[str, float]]]:
    """Ids and scores for each of some vectors."""
    if not rows:
        return []
    asked = np.stack([np.frombuffer(row, dtype=np.float32) for row in rows])
    return [[(hit.record.id, hit.score) for hit in some] for some in live.search(asked, Query(limit, effort=HARDEST))]


def assert_serves(live: LiveIndex, docs: Docs, before: dict[bytes, str], some: list[str] | None = None) -> None:
    """Searches find exactly some documents, each in its place; `some` are looked at one by one, else all of them."""
    count = len(docs)  # apart from the assertion, which would print them all
    assert len(live) == live.status()['documents'] == count, 'the index has another number than the database'
    if not docs:
        assert hits(live, [vectors(0, 1)[0].tobytes()], 5) == [[]]
        return
    names = sorted(docs) if some is None else some
    found = hits(live, [docs[name].vector for name in names], 10)
    wrong = {name: row[:1] for name, row in zip(names, found, strict=True) if row[:1] != [(name, 1.0)]}
    assert not wrong, f'{len(wrong)} of {len(names)} are not where their vectors are: {wrong}'
    # Exactly as many as there are: dead ones among the best would leave no place for some that live.
    for limit in (count, count + 1000):
        everything = [name for name, _ in hits(live, [docs[names[0]].vector], limit)[0]]
        assert sorted(everything) == sorted(docs)
    # What was deleted or replaced neither shows nor takes the place of what is there.
    old = list(before)[-20:]
    for vector, row in zip(old, hits(live, old, 3), strict=True):
        assert len(row) == min(3, count)
        assert all(name in docs and score < 1.0 for name, score in row), f'{before[vector]} is found as it was'


@contextmanager
def writer(folder: Path, kind: str, seed: int) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that changes the index, and its first line; it is dead at the end."""
    command = [sys.executable, str(Path(__file__).with_name('index_writer.py')), str(folder), kind, str(seed)]
    # The code beside this file, wherever another copy of it is installed.
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with (folder.parent / f'{folder.name}.err').open('w') as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, f'it could not start: {(folder.parent / f"{folder.name}.err").read_text()}'
        yield process, json.loads(first)
    finally:
        process.kill()
        process.communicate()


def killed(folder: Path, kind: str, seed: int, operation: int, seconds: float) -> tuple[str, list[dict[str, Any]]]:
    """Kill a process so long after it has begun its n-th operation; returns how it started, and what it said."""
    lines: list[dict[str, Any]] = []
    with writer(folder, kind, seed) as (process, first):
        timer = threading.Timer(seconds, process.kill)
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith('\n'):
                break  # what was cut off was never said
            lines.append(json.loads(line))
            if lines[-1].get('begin') == operation:
                timer.start()
        process.wait()
        timer.cancel()
    errors = (folder.parent / f'{folder.name}.err').read_text()
    assert process.returncode == -9, f'it ended by itself: {errors}'
    return first['start'], lines


@pytest.mark.parametrize('kind', KINDS)
def test_an_index_that_is_killed_at_any_moment_loses_nothing_and_revives_nothing(tmp_path: Path, kind: str) -> None:
    chance = random.Random(f'{SEED} {kind}')
    folder, model, starts, done = tmp_path / 'w', Model(), [], 0
    for life in range(-(-KILLS // len(KINDS))):
        # In operations, not in seconds: on a busy machine too there is something to lose.
        operation = 1 + 15 * (life % 4) + chance.randrange(15)
        start, lines = killed(folder, kind, life, operation, chance.uniform(0.0, 0.03))
        starts.append(start)
        done += model.take(lines)
        with opened(folder, kind) as live:
            where = f'kill {life}, {live.status()["start"]}'
            model.adopt(stored(live.store))
            some = chance.sample(sorted(model.docs), min(20, len(model.docs)))
            try:
                assert_serves(live, model.docs, model.before, some)
            except AssertionError as error:
                raise AssertionError(f'{where}: {error}') from None
    assert done > 10 * len(starts), 'it hardly wrote'
    assert any('from a snapshot' in start for start in starts), starts

    # What lies about half written goes with the next snapshot, and that one says the same.
    with opened(folder, kind) as live:
        assert_serves(live, model.docs, model.before)
        live.keeper.snapshot()
    (only,) = (folder / 'snapshots').iterdir()
    assert only.name.isdigit()
    with opened(folder, kind) as live:
        assert 'from a snapshot, 0 later changes' in live.status()['start']
        assert_serves(live, model.docs, model.before)


# Snapshots that cannot be used.


@dataclass
class Filled:
    """A folder with documents and a snapshot of them, the kind of its index, and what must be found there."""

    folder: Path
    model: Model
    kind: str = 'ivf'

    def assert_starts(self, why: str) -> None:
        """It starts, says why, and serves exactly what is in the database."""
        with opened(self.folder, self.kind) as live:
            assert why in live.status()['start']
            assert stored(live.store) == self.model.docs
            assert_serves(live, self.model.docs, self.model.before)

    @property
    def snapshot(self) -> Path:
        (path,) = (self.folder / 'snapshots').iterdir()
        return path

    def copied(self, to: Path) -> 'Filled':
        """The same, to be damaged."""
        shutil.copytree(self.folder, to)
        return Filled(to, Model(dict(self.model.docs), dict(self.model.open), dict(self.model.before)), self.kind)


def put(live: LiveIndex, model: Model, seed: int, ids: list[str], text: str = '') -> None:
    """Upsert and note it."""
    operation = {'what': 'upsert', 'ids': ids, 'seed': seed, 'tags': {'seed': seed}}
    for name in ids:
        if name in model.docs:
            model.before[model.docs[name].vector] = name
    model.docs = model.open = after(model.docs, operation)
    tags = json.dumps(operation['tags'])
    live.upsert([Record(name, text, '', tags, row) for name, row in zip(ids, vectors(seed, len(ids)), strict=True)])


def drop(live: LiveIndex, model: Model, ids: list[str]) -> None:
    """Delete and note it."""
    model.before |= {model.docs[name].vector: name for name in ids}
    model.docs = model.open = after(model.docs, {'what': 'delete', 'ids': ids})
    live.delete(ids)


def fill(folder: Path, kind: str, seed: int) -> Filled:
    """A FAISS part (but for flat), plain rows beside it, some dead, a snapshot, and changes after it."""
    filled = Filled(folder, Model(), kind)
    with opened(folder, kind, still=False) as live:
        put(live, filled.model, seed, [str(n) for n in range(400)])
        until(lambda: live.status()['kind'] == kind, 120, f'the index is of the kind {kind}')
        put(live, filled.model, seed + 1, [str(n) for n in range(350, 450)])
        drop(live, filled.model, [str(n) for n in range(0, 400, 50)])
        live.keeper.snapshot()
        put(live, filled.model, seed + 2, [str(n) for n in range(440, 470)])
        drop(live, filled.model, ['7', '449'])
    return filled


@pytest.fixture(scope='module')
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return fill(tmp_path_factory.mktemp('pattern') / 'w', 'ivf', 10)


@pytest.fixture
def filled(pattern: Filled, tmp_path: Path) -> Filled:
    return pattern.copied(tmp_path / 'w')


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_snapshot_and_the_changes_after_it_are_what_the_database_holds(filled: Filled) -> None:
    # Without this one the tests below could pass because no snapshot is ever used.
    filled.assert_starts('documents from a snapshot, 31 later changes')


@pytest.mark.parametrize('name', ['main.faiss', 'keys.i64', 'rows.f32'])
def test_a_snapshot_with_a_flipped_bit_is_not_used(filled: Filled, name: str) -> None:
    flip(filled.snapshot / name)
    filled.assert_starts(f'documents read from the database ({name} is damaged)')


@pytest.mark.parametrize('name', ['main.faiss', 'keys.i64', 'rows.f32'])
@pytest.mark.parametrize('left', [0, 1, 0.5], ids=['nothing', 'all but a byte', 'half'])
def test_a_snapshot_with_a_truncated_file_is_not_used(filled: Filled, name: str, left: float) -> None:
    size = (filled.snapshot / name).stat().st_size
    os.truncate(filled.snapshot / name, size - 1 if left == 1 else int(size * left))
    filled.assert_starts('documents read from the database (')


@pytest.mark.parametrize('name', ['main.faiss', 'keys.i64', 'rows.f32', 'meta.json'])
def test_a_snapshot_without_one_of_its_files_is_not_used(filled: Filled, name: str) -> None:
    (filled.snapshot / name).unlink()
    filled.assert_starts('documents read from the database (it cannot be read: ')


@pytest.mark.parametrize('text', ['', '{"format": 1, "store"', 'null', '[]', '{}', '\udcff'], ids=ascii)
def test_a_snapshot_whose_description_is_no_json_or_says_nothing_is_not_used(filled: Filled, text: str) -> None:
    (filled.snapshot / 'meta.json').write_text(text, errors='surrogateescape')
    filled.assert_starts('documents read from the database (it cannot be read: ')


def changed(filled: Filled, change: Callable[[dict[str, Any]], object], *, sound: bool = True) -> None:
    """Let the description of the snapshot say something else, with the right checksum or with the one of before."""
    path = filled.snapshot / 'meta.json'
    written = json.loads(path.read_text())
    change(written['meta'])
    if sound:
        written['sum'] = snapshot_module._sum_of(written['meta'])
    path.write_text(json.dumps(written))


def test_a_snapshot_of_a_newer_format_is_not_used(filled: Filled) -> None:
    changed(filled, lambda meta: meta.update(format=snapshot_module.FORMAT + 1, choice={'new': 1}))
    filled.assert_starts('documents read from the database (its format is 2, not 1)')


def test_a_snapshot_whose_description_names_a_kind_with_other_fields_is_not_used(filled: Filled) -> None:
    changed(filled, lambda meta: meta['choice'].update(more=1))
    filled.assert_starts('documents read from the database (')


def test_a_snapshot_whose_description_is_damaged_and_still_json_is_not_used(filled: Filled) -> None:
    # One digit of the number up to which it knows the database: changes in between would never be read.
    changed(filled, lambda meta: meta.update(sequence=meta['sequence'] + 8), sound=False)
    filled.assert_starts('documents read from the database (meta.json is damaged)')


def test_a_snapshot_that_was_half_written_is_not_used_and_goes_with_the_next_one(filled: Filled) -> None:
    whole = filled.snapshot
    half = whole.with_name(f'{int(whole.name) + 5}.part')
    shutil.copytree(whole, half)
    (half / 'meta.json').unlink()
    filled.assert_starts('documents from a snapshot, 31 later changes')
    shutil.rmtree(whole)
    filled.assert_starts('documents read from the database (there is no snapshot)')
    with opened(filled.folder, filled.kind) as live:
        live.keeper.snapshot()
    assert filled.snapshot.suffix == ''
    filled.assert_starts('documents from a snapshot, 0 later changes')


def test_a_snapshot_of_another_database_is_not_used(filled: Filled, tmp_path: Path) -> None:
    other = fill(tmp_path / 'other', 'ivf', 20)
    shutil.rmtree(filled.folder / 'snapshots')
    shutil.copytree(other.folder / 'snapshots', filled.folder / 'snapshots')
    filled.assert_starts('documents read from the database (it belongs to another database, or to a later state')


def put_back(filled: Filled, go_on: Callable[[LiveIndex, Model], object]) -> None:
    """Copy the database after a clean close, go on, write a snapshot, and put the copy back."""
    database = filled.folder / 'documents.db'
    copy = filled.folder.parent / 'backup.db'
    assert [path.name for path in filled.folder.glob('documents.db*')] == ['documents.db']
    shutil.copy(database, copy)
    later = Model(dict(filled.model.docs), dict(filled.model.open))
    with opened(filled.folder, filled.kind) as live:
        go_on(live, later)
        live.keeper.snapshot()
    assert [path.name for path in filled.folder.glob('documents.db*')] == ['documents.db']
    shutil.copy(copy, database)


def test_a_snapshot_of_a_later_state_than_the_database_that_was_put_back_is_not_used(filled: Filled) -> None:
    def go_on(live: LiveIndex, later: Model) -> None:
        put(live, later, 30, [str(n) for n in range(100, 150)])
        drop(live, later, ['1', '2', '3'])

    put_back(filled, go_on)
    filled.assert_starts('documents read from the database (it belongs to another database, or to a later state')


def test_a_database_that_was_put_back_is_right_also_when_only_deletions_came_after_it(filled: Filled) -> None:
    # A deletion takes no number: the snapshot and the database stand at the same one.
    put_back(filled, lambda live, later: drop(live, later, ['1', '2', '3']))
    filled.assert_starts('')


def test_a_database_that_was_put_back_and_grew_beyond_the_old_snapshot_is_right(filled: Filled) -> None:
    put_back(filled, lambda live, later: put(live, later, 30, [str(n) for n in range(100, 150)]))
    with opened(filled.folder, filled.kind) as live:
        put(live, filled.model, 40, [str(n) for n in range(200, 260)])
        # As after a kill: no snapshot of the new state is written.
    filled.assert_starts('')


def test_a_snapshot_that_comes_between_a_write_and_its_vectors_does_not_hide_them(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The thread of the keeper, or a request for a snapshot, at the worst moment of a write.
    with opened(filled.folder, filled.kind) as live:
        real = live.store.upsert
        thread = threading.Thread(target=live.keeper.snapshot)

        def upsert(*values: Any, **options: Any) -> Any:
            keys = real(*values, **options)
            thread.start()
            thread.join(1)  # one that waits for the end of the write is right too
            return keys

        monkeypatch.setattr(live.store, 'upsert', upsert)
        put(live, filled.model, 50, ['7', '8', 'new'])
        thread.join()
    filled.assert_starts('documents from a snapshot')


# One process for a workspace.


def test_a_second_process_is_refused_while_the_first_lives_and_let_in_after_its_death(tmp_path: Path) -> None:
    folder = tmp_path / 'w'
    model = Model()
    with writer(folder, 'flat', 1) as (process, _):
        with pytest.raises(Conflict, match='another process serves the workspace'):
            Store(folder, 'abc', 'm')
        assert process.poll() is None
        process.kill()
        assert process.stdout is not None
        model.take([json.loads(line) for line in process.stdout if line.endswith('\n')])
        process.wait()
        with opened(folder, 'flat') as live:
            model.adopt(stored(live.store))
            assert_serves(live, model.docs, model.before)


# A full disk.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    path = tmp_path / 'disk'
    path.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip('a full disk needs the command mount')
    if mounted.returncode:
        pytest.skip(f'a full disk needs the right to mount one: {mounted.stderr.strip()}')
    yield path
    subprocess.run(['umount', str(path)], check=True)


def stuff(folder: Path) -> Path:
    """Take the last byte of a disk; returns the file that has it."""
    path = folder / 'stuffing'
    with path.open('wb', buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b'x' * size):
                    pass
            except OSError:
                continue
    return path


def until_refused(live: LiveIndex, model: Model, seed: int) -> None:
    """Upsert until there is no room."""
    for turn in range(seed, seed + 100):
        held = model.docs
        try:
            put(live, model, turn, [f'{turn}/{n}' for n in range(20)], 'x' * 5000)
        except StorageFull:
            model.docs = model.open = held
            return
    raise AssertionError('four megabytes never got full')


@pytest.mark.parametrize('kind', KINDS)
def test_a_full_disk_refuses_writes_and_snapshots_and_keeps_what_it_has(disk: Path, kind: str) -> None:
    filled = fill(disk / 'w', kind, 60)
    earlier = filled.snapshot
    with opened(filled.folder, kind) as live:
        until_refused(live, filled.model, 100)
        stuffing = stuff(disk)
        # The log of the database may have had room in itself; now it has none either.
        until_refused(live, filled.model, 200)
        with pytest.raises(StorageFull, match='the snapshot could not be written'):
            live.keeper.snapshot()
        assert filled.snapshot == earlier, 'the earlier one stays, and nothing lies about'
        assert stored(live.store) == filled.model.docs
        assert_serves(live, filled.model.docs, filled.model.before)
    # So full that the database can leave its log where it is.
    filled.assert_starts('documents from a snapshot')
    stuffing.unlink()
    filled.assert_starts('documents from a snapshot')


def test_a_snapshot_that_does_not_fit_is_refused_with_the_word_of_the_system(disk: Path) -> None:
    filled = fill(disk / 'w', 'flat', 60)
    with opened(filled.folder, 'flat') as live:
        stuff(disk)
        with pytest.raises(StorageFull, match=r'no space is left|No space left on device; the documents are safe'):
            live.keeper.snapshot()


@pytest.mark.parametrize('kind', KINDS[1:])
def test_a_snapshot_of_which_the_part_of_faiss_does_not_fit_is_refused(disk: Path, kind: str) -> None:
    filled = fill(disk / 'w', kind, 60)
    earlier = filled.snapshot
    with opened(filled.folder, kind) as live:
        stuffing = stuff(disk)
        # Two pages for 530 keys, three for the vectors of 130 plain rows, and one of the many that FAISS needs.
        os.truncate(stuffing, stuffing.stat().st_size - 6 * 4096)
        with pytest.raises(StorageFull, match='the snapshot could not be written'):
            live.keeper.snapshot()
        assert filled.snapshot == earlier
        stuffing.unlink()
    filled.assert_starts('documents from a snapshot')


def test_a_start_on_a_full_disk_is_refused_at_most_and_all_is_there_when_there_is_room(disk: Path) -> None:
    filled = fill(disk / 'w', 'ivf', 60)
    stuffing = stuff(disk)
    # What SQLite shares between its connections was deleted by a clean close and has no room to be made.
    with pytest.raises(ClipflowError), opened(filled.folder, 'ivf'):
        pass
    stuffing.unlink()
    filled.assert_starts('documents from a snapshot')

"""The store: what is acknowledged is there, what is refused has left nothing behind."""

import errno
import fcntl
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clipflow import ROOT
from clipflow.errors import (
    ClipflowError,
    Conflict,
    DimensionMismatch,
    Internal,
    InvalidFilter,
    ModelMismatch,
    ReadOnly,
    StorageFull,
)
from clipflow.filters import compile_filter
from clipflow.store import connection, generations
from clipflow.store.connection import ROLLBACK, WAL
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

EVERYTHING = compile_filter({})


def vector(seed: int, size: int = 4) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=size)
    return (raw / np.linalg.norm(raw)).astype(np.float32)


def record(identifier: str, seed: int = 0, **fields: Any) -> Record:
    tags = json.dumps(fields.pop('tags', {}), ensure_ascii=False)
    return Record(identifier, fields.pop('text', ''), fields.pop('uri', ''), tags, vector(seed), **fields)


Open = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Open the store of this test (again)."""
    opened: list[Store] = []

    def call(fingerprint: str = 'abc', model: str = 'm', directory: Path = tmp_path / 'store') -> Store:
        opened.append(Store(directory, fingerprint, model))
        return opened[-1]

    yield call
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


def ids(store: Store, query: dict[str, Any] | None = None) -> list[str]:
    return [found.id for found in store.page(compile_filter(query or {}), 100_000, 0)]


def test_what_was_stored_is_there_after_a_restart(open_store: Open) -> None:
    store = open_store()
    given = Record('猫 "x"', 'a cat', 'a.jpg', '{"a": "ä", "n": 1.5}', vector(1), thumbnail=b'webp\0')
    (key,) = store.upsert([given]).tolist()
    store.close()
    (found,) = open_store().by_ids([given.id], thumbnails=True, vectors=True).values()
    assert (found.id, found.text, found.uri, found.tags, found.thumbnail, found.key) == (
        given.id,
        given.text,
        given.uri,
        given.tags,
        given.thumbnail,
        key,
    )
    assert found.vector is not None
    assert (found.vector == vector(1)).all()


def test_what_was_loaded_is_as_after_upserts_and_a_batch_that_fails_leaves_what_was_before(tmp_path: Path) -> None:
    def opened(journal: str) -> Store:
        return Store(tmp_path / '0', 'f', 'm', journal=journal)

    store = opened(ROLLBACK)
    store.load([record('a', 1), record('b', 2)], 'float', 2)
    store.load([record('b', 3), record('c', 4)], 'float', 4)
    store.load([], 'float', 5)
    with pytest.raises(DimensionMismatch):
        store.load([record('d', 5), replace(record('e'), vector=vector(6, 8))], 'float', 7)
    with pytest.raises(ModelMismatch):
        store.load([record('d', 5)], 'int8', 7)
    assert not (tmp_path / '0' / 'documents.db-wal').exists()
    store.close()
    store = opened(WAL)
    assert (ids(store), store.taken(), store.last_sequence()) == (['a', 'b', 'c'], 5, 4)
    found = store.by_ids(['a', 'b', 'c'], vectors=True)
    for identifier, seed in (('a', 1), ('b', 3), ('c', 4)):
        assert np.array_equal(found[identifier].vector, vector(seed))
    assert store.precision() == 'float'
    store.upsert([record('f', 6)])
    assert (tmp_path / '0' / 'documents.db-wal').exists()
    store.close()


def test_a_sample_is_of_vectors_that_are_there_and_of_all_kinds_though_they_came_in_turns(store: Store) -> None:
    store.upsert([record(f'{n}', n) for n in range(400)])
    store.delete([f'{n}' for n in range(0, 400, 2)])
    held = {vector(n).tobytes() for n in range(1, 400, 2)}
    some = store.sample(40)
    assert len(some) == 40
    assert len({row.tobytes() for row in some} & held) == 40
    assert len(store.sample(1000)) == 200
    store.clear()
    assert len(store.sample(10)) == 0


def test_thumbnails_and_vectors_are_read_only_when_asked_for(store: Store) -> None:
    store.upsert([record('a', thumbnail=b'webp')])
    (plain,) = store.by_ids(['a']).values()
    assert (plain.thumbnail, plain.vector) == (None, None)


def test_an_upsert_replaces_everything_and_keeps_key_and_place(store: Store) -> None:
    first = store.upsert([record('a', 1, text='old', tags={'x': 1}, thumbnail=b'1'), record('b', 2)])
    second = store.upsert([record('a', 3, uri='new.jpg')])
    assert second.tolist() == first[:1].tolist()
    (found,) = store.by_ids(['a'], thumbnails=True, vectors=True).values()
    assert (found.text, found.uri, found.tags, found.thumbnail) == ('', 'new.jpg', '{}', None)
    assert found.vector is not None
    assert (found.vector == vector(3)).all()
    assert (ids(store), store.count()) == (['a', 'b'], 2)


def test_the_same_id_twice_in_one_request_is_one_document_the_last(store: Store) -> None:
    keys = store.upsert([record('a', text='one'), record('b'), record('a', text='two')]).tolist()
    assert keys[0] == keys[2] != keys[1]
    assert store.by_ids(['a'])['a'].text == 'two'


def test_the_key_of_a_deleted_document_is_never_given_again(open_store: Open) -> None:
    store = open_store()
    keys = store.upsert([record('a'), record('b')]).tolist()
    store.delete(['b'])
    store.close()
    store = open_store()
    later = store.upsert([record('b'), record('c')]).tolist()
    assert set(later).isdisjoint(keys)
    store.clear()
    assert set(store.upsert([record('a')]).tolist()).isdisjoint(keys + later)


def test_documents_are_deleted_by_id_by_filter_or_both(store: Store) -> None:
    keys = dict(
        zip('abcde', store.upsert([record(name, tags={'name': name}) for name in 'abcde']).tolist(), strict=True)
    )
    assert store.delete(['a', 'unknown', 'a']).tolist() == [keys['a']]
    assert store.delete(matching=compile_filter({'name': {'$in': ['b', 'zzz']}})).tolist() == [keys['b']]
    assert sorted(store.delete(['c'], compile_filter({'name': {'$in': ['c', 'd']}}))) == [keys['c'], keys['d']]
    assert ids(store) == ['e']
    assert store.delete().tolist() == []
    assert store.clear() == 1
    assert (store.clear(), store.count()) == (0, 0)


def test_thumbnails_go_with_their_documents(store: Store, tmp_path: Path) -> None:
    def left() -> int:
        with sqlite3.connect(tmp_path / 'store' / 'documents.db') as db:
            return int(db.execute('SELECT count(*) FROM thumbnails').fetchone()[0])

    store.upsert([record(name, thumbnail=b'webp', tags={'n': name}) for name in 'abcd'])
    assert left() == 4
    store.delete(['a'])
    store.delete(matching=compile_filter({'n': 'b'}))
    assert left() == 2
    store.upsert([record('c')])
    assert left() == 1
    store.clear()
    assert left() == 0


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


NAMES = st.sampled_from(['a', 'b', 'a b', 'ä', 'x"y', 'back\\slash', 'line\nbreak', ''])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, 'text', 'ä"\\\n', '']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)


@given(OBJECTS, OBJECTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({'a': {'b': 1, 'c': 2}}, {'a': {'b': None}})
@example({'a': [1, 2]}, {'a': [3]})
@example({'a': 1}, {'a': {'b': None}})
@example({'a': {'b': 1}}, {'a': 'x'})
def test_tags_are_merged_as_rfc_7396_says(store: Store, target: dict[str, Any], patch: dict[str, Any]) -> None:
    store.upsert([record('a', tags=target, text='stays')])
    assert store.merge_tags([('a', json.dumps(patch, ensure_ascii=False))]) == [True]
    found = store.by_ids(['a'])['a']
    assert json.loads(found.tags) == merged(target, patch)
    assert found.text == 'stays'


def test_merging_tells_which_ids_exist_and_finds_the_new_tags(store: Store) -> None:
    store.upsert([record('a', tags={'n': 1})])
    assert store.merge_tags([('zzz', '{"n": 2}'), ('a', '{"n": 2}')]) == [False, True]
    assert ids(store, {'n': 2}) == ['a']
    assert store.merge_tags([]) == []


def test_pages_follow_the_order_of_first_storing(store: Store) -> None:
    store.upsert([record(name, tags={'even': n % 2 == 0}) for n, name in enumerate('edcba')])
    store.upsert([record('d', tags={'even': True})])
    even = compile_filter({'even': True})
    assert [found.id for found in store.page(EVERYTHING, 2, 0)] == ['e', 'd']
    assert [found.id for found in store.page(EVERYTHING, 2, 4)] == ['a']
    assert [found.id for found in store.page(EVERYTHING, 2, 5)] == []
    assert [found.id for found in store.page(even, 2, 1)] == ['d', 'c']
    assert store.page(even, 1, 0, vectors=True)[0].vector is not None


def test_more_ids_and_rows_than_one_statement_takes(store: Store) -> None:
    keys = store.upsert([record(f'{n}', n % 7) for n in range(10_050)])
    blocks = list(store.vectors())
    assert np.concatenate([block for block, _ in blocks]).tolist() == keys.tolist()
    assert sum(len(matrix) for _, matrix in blocks) == 10_050
    assert (blocks[-1][1][-1] == vector(10_049 % 7)).all()
    many = [f'{n}' for n in range(9_000, 80_000)]
    assert len(store.by_ids(many)) == 1_050
    assert len(store.by_keys(keys.tolist())) == 10_050
    assert len(store.delete(many)) == 1_050
    assert len(store.matching_keys(EVERYTHING)) == 9_000


ENDLESS = '^(a|aa)+$|!$'
"""The first half takes for ever on `'a' * 36 + '!'`, which the second half would find."""


def test_a_pattern_finds_texts_and_nothing_else(store: Store) -> None:
    store.upsert([record('a', tags={'t': 'a red cat'}), record('b', tags={'t': 'a' * 40}), record('c', tags={'t': 5})])
    assert ids(store, {'t': {'$regex': r'\bred\b'}}) == ['a']
    assert ids(store, {'t': {'$regex': '5'}}) == []


def test_a_pattern_without_end_is_an_error_and_deletes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, 'REGEX_SECONDS', 0.1)
    store.upsert([record('a', tags={'t': 'a' * 36 + '!'}), record('b', tags={'t': 'x'})])
    unless = compile_filter({'$not': {'t': {'$regex': ENDLESS}}})
    for ask in (store.matching_keys, lambda matching: store.delete(matching=matching)):
        with pytest.raises(InvalidFilter, match='too long') as caught:
            ask(unless)
        assert 'clipflow_regex' not in caught.value.message
    assert ids(store) == ['a', 'b']
    # The next statement has all its time again.
    assert ids(store, {'t': {'$regex': 'x'}}) == ['b']


def test_all_documents_of_a_statement_share_the_time_of_a_pattern(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, 'REGEX_SECONDS', 0.2)
    # Some ten milliseconds each.
    store.upsert([record(f'{n}', tags={'t': 'a' * 22 + '!'}) for n in range(100)])
    started = time.thread_time()
    with pytest.raises(InvalidFilter, match='too long'):
        store.matching_keys(compile_filter({'t': {'$regex': '^(a|aa)+$'}}))
    assert time.thread_time() - started < 1
    assert len(store.matching_keys(compile_filter({'t': {'$regex': 'a!$'}}))) == 100


def test_all_statements_of_a_request_share_the_time_of_a_pattern(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))  # a document takes three seconds of it
    monkeypatch.setattr(connection, 'time', SimpleNamespace(thread_time=lambda: next(clock)))
    monkeypatch.setattr(connection, 'REGEX_SECONDS', 5.0)
    store.upsert([record('a', tags={'t': 'a' * 22 + '!'})])
    slow = compile_filter({'t': {'$regex': '^(a|aa)+$|!$'}})
    for _ in range(4):
        assert len(store.matching_keys(slow)) == 1
    for _ in range(2):
        with connection.one_request():
            assert len(store.matching_keys(slow)) == 1
            assert store.count() == 1
            assert len(store.matching_keys(slow)) == 1
            with pytest.raises(InvalidFilter, match='too long'):
                store.matching_keys(slow)
    assert len(store.matching_keys(slow)) == 1


def test_every_thread_reads_what_another_has_written(store: Store) -> None:
    found: list[list[str]] = []
    store.upsert([record('a')])
    for name in 'bc':
        thread = threading.Thread(target=lambda: found.append(ids(store)))
        thread.start()
        thread.join()
        store.upsert([record(name)])
    assert found == [['a'], ['a', 'b']]


# --- what is refused


def elsewhere(directory: Path) -> str:
    """Open the store in another process; what it says."""
    code = (
        'import sys; from pathlib import Path\n'
        'from clipflow.store.sqlite import Store\n'
        'try: print(Store(Path(sys.argv[1]), "abc", "m").count())\n'
        'except Exception as error: print(repr(error))'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', code, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    assert generations.cleared(tmp_path) == tmp_path / 'indexer'
    with pytest.raises(ReadOnly, match='cannot be written: No locks'), generations.alone(tmp_path):
        pass
    with pytest.raises(ReadOnly, match='cannot be locked: No locks'):
        Store(tmp_path / '0', 'abc', 'm')


def test_a_second_process_is_refused_in_one_sentence_until_the_first_has_closed(store: Store, tmp_path: Path) -> None:
    store.upsert([record('a')])
    said = elsewhere(tmp_path / 'store')
    assert said.startswith('conflict: another process serves the workspace')
    assert 'CLIPFLOW_WORKSPACE' in said
    assert store.count() == 1
    store.close()
    assert elsewhere(tmp_path / 'store') == '1'


def test_a_second_store_in_the_same_process_is_refused_too(store: Store, open_store: Open) -> None:
    with pytest.raises(Conflict):
        open_store()


def test_closing_twice_does_no_harm(open_store: Open) -> None:
    store = open_store()
    store.close()
    other = open_store()
    store.close()
    assert other.count() == 0
    with pytest.raises(Conflict):
        open_store()


@pytest.mark.parametrize('below', ['', 'deeper/still'])
def test_a_file_in_the_place_of_the_directory_is_read_only(open_store: Open, tmp_path: Path, below: str) -> None:
    (tmp_path / 'file').write_text('not a directory')
    with pytest.raises(ReadOnly, match='cannot be written'):
        open_store(directory=tmp_path / 'file' / below)


def test_a_directory_in_the_place_of_the_database_is_read_only(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / 'store' / 'documents.db').mkdir(parents=True)
    with pytest.raises(ReadOnly, match='cannot be opened'):
        open_store()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_directory_without_permission_is_read_only(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / 'store').mkdir(mode=0o500)
    with pytest.raises(ReadOnly):
        open_store()


def test_a_newer_schema_is_left_alone(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.upsert([record('a')])
    store.close()
    with sqlite3.connect(tmp_path / 'store' / 'documents.db') as db:
        db.execute('PRAGMA user_version = 999')
    for _ in range(2):  # and the lock is given back
        with pytest.raises(Conflict, match='newer clipflow'):
            open_store()


def test_vectors_of_another_model_are_refused_unless_there_are_none(open_store: Open) -> None:
    store = open_store(fingerprint='abc', model='one')
    store.upsert([record('a')])
    store.close()
    for _ in range(2):
        with pytest.raises(ModelMismatch, match=r"'one' \(abc\), not with 'two' \(def\)"):
            open_store(fingerprint='def', model='two')
    store = open_store(fingerprint='abc', model='one')
    store.clear()
    store.close()
    store = open_store(fingerprint='def', model='two')
    store.upsert([record('a')])
    store.close()
    with pytest.raises(ModelMismatch):
        open_store(fingerprint='abc', model='one')


def test_a_file_that_is_no_database_is_named(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / 'store').mkdir()
    (tmp_path / 'store' / 'documents.db').write_bytes(b'something else entirely ' * 1000)
    for _ in range(2):
        with pytest.raises(Internal, match='not a database'):
            open_store()


def test_damaged_pages_are_an_error_with_advice_and_never_other_content(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.upsert([record(f'{n}', n, text='x' * 500) for n in range(200)])
    store.close()
    path = tmp_path / 'store' / 'documents.db'
    content = bytearray(path.read_bytes())
    content[4096:] = b'\xa5' * (len(content) - 4096)
    path.write_bytes(content)

    def read_all() -> None:
        store = open_store()
        try:
            list(store.vectors())
        finally:
            store.close()

    with pytest.raises(Internal, match='damaged; restore it'):
        read_all()


def test_a_vector_of_another_size_is_refused_with_the_whole_request(store: Store) -> None:
    store.upsert([record('a')])
    with pytest.raises(DimensionMismatch, match='4 dimensions, not of 5'):
        store.upsert([record('b'), Record('c', '', '', '{}', vector(0, 5))])
    assert ids(store) == ['a']


def test_a_full_disk_refuses_the_whole_request_and_leaves_the_old_content(store: Store) -> None:
    store.upsert([record(f'old {n}', n, tags={'n': n}) for n in range(20)])
    before = [(found.id, found.tags) for found in store.page(EVERYTHING, 100, 0)]
    pages = store._db.execute('PRAGMA page_count').fetchone()[0]
    # SQLite's own way to say how large a file may become: what follows is what a full disk gives.
    store._db.execute(f'PRAGMA max_page_count = {pages + 5}')
    large = [record(f'new {n}', n, text='x' * 3000) for n in range(50)]
    for _ in range(2):
        with pytest.raises(StorageFull, match='no space is left'):
            store.upsert([record('old 3', text='changed'), *large])
    assert [(found.id, found.tags) for found in store.page(EVERYTHING, 100, 0)] == before
    assert store.by_ids(['old 3'])['old 3'].text == ''
    store.upsert([record('small')])
    store._db.execute('PRAGMA max_page_count = 1000000')
    assert len(store.upsert(large)) == 50
    assert store.count() == 71


def test_after_a_full_disk_a_restart_finds_the_old_content(open_store: Open) -> None:
    store = open_store()
    store.upsert([record('old')])
    pages = store._db.execute('PRAGMA page_count').fetchone()[0]
    store._db.execute(f'PRAGMA max_page_count = {pages + 2}')
    with pytest.raises(StorageFull):
        store.upsert([record(f'{n}', text='x' * 3000) for n in range(50)])
    store.close()
    assert ids(open_store()) == ['old']


def test_a_disk_without_room_to_open_the_database_is_called_full() -> None:
    error = sqlite3.OperationalError('disk I/O error')
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with pytest.raises(StorageFull, match='no space is left'), connection.translated():
        raise error


def test_the_connection_of_a_thread_ends_with_it(store: Store) -> None:
    store.upsert([record('a')])

    def connections() -> int:
        return len(store._all)

    before = connections()
    for _ in range(3):
        thread = threading.Thread(target=store.count)
        thread.start()
        thread.join()
    gc.collect()
    assert connections() == before


def test_after_closing_every_call_is_one_of_our_errors(store: Store) -> None:
    store.count()
    store.close()
    for call in (store.count, store.clear, lambda: store.upsert([record('a')])):
        with pytest.raises(ClipflowError):
            call()


def test_vectors_of_another_precision_are_refused_unless_they_may_mix(tmp_path: Path) -> None:
    store = Store(tmp_path, 'f', 'm')
    store.upsert([record('a')])
    with pytest.raises(ModelMismatch, match='made in float, these in int8'):
        store.upsert([record('b')], 'int8')
    assert store.count() == 1
    store.upsert([record('b')], 'int8', mixed=True)
    assert (store.count(), store.precision()) == (2, 'float')
    store.clear()
    store.upsert([record('c')], 'int8')  # an empty store takes either
    assert store.precision() == 'int8'
    store.close()
    again = Store(tmp_path, 'f', 'm')
    with pytest.raises(ModelMismatch, match='made in int8, these in float'):
        again.upsert([record('d')])
    again.close()

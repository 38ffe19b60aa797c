"""The schema as numbered steps."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.errors import Conflict, Internal
from clipflow.index.live import LiveIndex, Query
from clipflow.store import migrations
from clipflow.store.migrations import STEPS, migrate
from clipflow.store.reading import Documents, Record
from clipflow.store.sqlite import Store


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(':memory:', isolation_level=None)
    yield opened
    opened.close()


def version(db: sqlite3.Connection) -> int:
    return int(db.execute('PRAGMA user_version').fetchone()[0])


def tables(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_an_empty_database_gets_all_steps_once(db: sqlite3.Connection) -> None:
    migrate(db)
    migrate(db)
    assert version(db) == len(STEPS)
    assert {'documents', 'thumbnails', 'meta'} <= tables(db)


def test_a_later_step_is_taken_alone_and_a_failing_one_leaves_nothing(
    db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(db)

    def good(db: sqlite3.Connection) -> None:
        db.execute('CREATE TABLE more (x)')

    def bad(db: sqlite3.Connection) -> None:
        db.execute('CREATE TABLE half (x)')
        raise RuntimeError('halfway')

    monkeypatch.setattr(migrations, 'STEPS', (*STEPS, good, bad))
    with pytest.raises(RuntimeError, match='halfway'):
        migrate(db)
    assert version(db) == len(STEPS)
    assert tables(db).isdisjoint({'more', 'half'})
    monkeypatch.setattr(migrations, 'STEPS', (*STEPS, good))
    migrate(db)
    assert version(db) == len(STEPS) + 1
    assert 'more' in tables(db)


def test_a_step_on_a_full_disk_fails_with_its_own_error(
    db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(db)

    def fail(db: sqlite3.Connection) -> None:
        # Ends the transaction too, as a full disk does.
        db.execute('INSERT OR ROLLBACK INTO meta SELECT name, value FROM meta')

    monkeypatch.setattr(migrations, 'STEPS', (*STEPS, fail))
    with pytest.raises(sqlite3.IntegrityError):
        migrate(db)
    assert version(db) == len(STEPS)


def test_steps_that_another_connection_has_taken_meanwhile_are_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, other = (sqlite3.connect(tmp_path / 'x.db', isolation_level=None) for _ in range(2))
    look = migrations._taken

    def then_the_other(*given: Any) -> int:
        monkeypatch.setattr(migrations, '_taken', look)
        found = look(*given)
        migrate(other)
        return found

    monkeypatch.setattr(migrations, '_taken', then_the_other)
    migrate(db)
    assert version(db) == len(STEPS)
    for opened in (db, other):
        opened.close()


def test_a_newer_database_is_refused_untouched(db: sqlite3.Connection) -> None:
    db.execute('PRAGMA user_version = 999')
    with pytest.raises(Conflict, match='schema 999'):
        migrate(db)
    assert (version(db), tables(db)) == (999, set())


@pytest.mark.parametrize(('number', 'said'), [(999, 'newer'), (1, 'older')])
def test_who_only_reads_refuses_another_schema(number: int, said: str, tmp_path: Path) -> None:
    Store(tmp_path, 'abc', 'm').close()
    db = sqlite3.connect(tmp_path / 'documents.db', isolation_level=None)
    db.execute(f'PRAGMA user_version = {number}')
    db.close()
    documents = Documents(tmp_path)
    for _ in range(2):
        with pytest.raises(Conflict, match=said):
            documents.model()
    documents.close()


def test_who_only_reads_says_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / 'documents.db').write_bytes(b'no database ' * 1000)
    documents = Documents(tmp_path)
    with pytest.raises(Internal, match='not a database'):
        documents.model()
    documents.close()


def test_documents_of_the_first_schema_are_found_and_numbered_on(tmp_path: Path) -> None:
    vector = np.array([0.6, 0.8], dtype=np.float32)
    old = sqlite3.connect(tmp_path / 'documents.db', isolation_level=None)
    STEPS[0](old)
    old.execute('PRAGMA user_version = 1')
    old.executemany('INSERT INTO meta VALUES (?, ?)', [('fingerprint', 'abc'), ('model', 'm')])
    rows = [(f'd{n}', 10 * n, '', '', '{}', vector.tobytes()) for n in range(1, 4)]
    old.executemany('INSERT INTO documents (id, sequence, text, uri, tags, vector) VALUES (?, ?, ?, ?, ?, ?)', rows)
    old.close()
    index = LiveIndex(Store(tmp_path, 'abc', 'm'))
    assert index.store.last_sequence() == 30
    assert [hit.record.id for hit in index.search(vector[None], Query(5))[0]] == ['d1', 'd2', 'd3']
    # The newest goes; its number must not come again, or a snapshot would take the next change for a known one.
    index.keeper.snapshot()
    index.delete(['d3'])
    index.upsert([Record('d4', '', '', '{}', vector)])
    assert index.store.last_sequence() == 31
    index.close()
    again = LiveIndex(Store(tmp_path, 'abc', 'm'))
    assert again.status()['start'].startswith('3 documents from a snapshot, 2 later changes')
    assert [hit.record.id for hit in again.search(vector[None], Query(5))[0]] == ['d1', 'd2', 'd4']
    again.close()


def test_changes_of_tags_are_followed_from_the_second_schema_on_and_are_no_changes_of_vectors(tmp_path: Path) -> None:
    vector = np.array([0.6, 0.8], dtype=np.float32)
    old = sqlite3.connect(tmp_path / 'documents.db', isolation_level=None)
    for step in STEPS[:2]:
        step(old)
    old.execute('PRAGMA user_version = 2')
    old.executemany('INSERT INTO meta VALUES (?, ?)', [('fingerprint', 'abc'), ('model', 'm')])
    # By that schema a change of tags had moved the second one.
    rows = [(f'd{n}', number, '', '', '{}', vector.tobytes()) for n, number in enumerate([1, 9, 3])]
    old.executemany('INSERT INTO documents (id, sequence, text, uri, tags, vector) VALUES (?, ?, ?, ?, ?, ?)', rows)
    old.execute("UPDATE meta SET value = '9' WHERE name = 'sequence'")
    old.close()

    def followed(after: int) -> tuple[list[str], int]:
        records, sequence = store.changed_since(after)
        return [record.id for record in records], sequence

    def vectors_since(after: int) -> list[int]:
        return [int(key) for keys, _ in store.vectors_since(after) for key in keys]

    store = Store(tmp_path, 'abc', 'm')
    assert followed(0) == (['d0', 'd2', 'd1'], 9)
    assert followed(3) == (['d1'], 9)
    store.merge_tags([('d0', '{"a": 1}'), ('unknown', '{"a": 1}')])  # 10, 11
    assert followed(0) == (['d2', 'd1', 'd0'], 10)
    assert followed(9) == (['d0'], 10)
    assert vectors_since(9) == []
    store.upsert([Record('d2', '', '', '{}', vector)])  # 12
    store.merge_tags([('d2', '{"b": 1}'), ('d0', '{"a": 2}')])  # 13, 14
    store.upsert([Record('d0', '', '', '{}', vector)])  # 15
    assert followed(10) == (['d2', 'd0'], 15)
    assert followed(13) == (['d0'], 15)
    assert vectors_since(10) == [3, 1]
    assert followed(15) == ([], 15)
    store.close()

"""The schema as numbered steps."""

import sqlite3
from collections.abc import Iterator

import pytest

from clipflow.errors import Conflict
from clipflow.store import migrations
from clipflow.store.migrations import STEPS, migrate


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


def test_a_newer_database_is_refused_untouched(db: sqlite3.Connection) -> None:
    db.execute('PRAGMA user_version = 999')
    with pytest.raises(Conflict, match='schema 999'):
        migrate(db)
    assert (version(db), tables(db)) == (999, set())

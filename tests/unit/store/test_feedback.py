"""The feedback log on disk: its schema, pages, sums, and that what is purged is gone."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipflow.clicks import Feedback
from clipflow.errors import Conflict, Internal, Unavailable
from clipflow.store import feedback as module
from clipflow.store.feedback import STEPS, FeedbackLog, summed

VECTOR = np.array([0.6, 0.8], dtype=np.float32)


def entry(user: str = '', text: str = 'x', head: str = '', clicked: tuple[str, ...] = ('a',)) -> Feedback:
    return Feedback(text, VECTOR, 'm', ('a', 'b'), clicked, ('b',), (0.5, 0.25), user, head)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FeedbackLog]:
    opened = FeedbackLog(tmp_path, 0)
    yield opened
    opened.close()


def test_entries_come_back_in_pages_of_numbers(log: FeedbackLog) -> None:
    assert log.last() == 0
    assert log.append([entry('u', f't{n}', 'h') for n in range(5)]) == 5
    found = log.page(1, 3)
    assert [one.text for one in found] == ['t1', 't2', 't3']
    assert found[0].vector.tobytes() == VECTOR.tobytes()
    assert found[0].time > 1.7e9
    known = vars(found[0]) | {'vector': None, 'time': 0.0}
    assert known == vars(entry('u', 't1', 'h')) | {'vector': None}
    assert (log.last(), log.page(5, 10)) == (5, [])


def test_a_log_of_the_first_release_is_read_and_written_on(tmp_path: Path) -> None:
    (tmp_path / 'feedback').mkdir()
    old = sqlite3.connect(tmp_path / 'feedback' / '0.db', isolation_level=None)
    STEPS[0](old)  # what that release made, without a number of the schema
    old.execute(
        'INSERT INTO feedback (time, user, model, text, vector, shown, clicked, disliked) VALUES (?,?,?,?,?,?,?,?)',
        (1.0, 'old', 'm', 'dog', VECTOR.tobytes(), '["a", "b"]', '["b"]', '[]'),
    )
    assert old.execute('PRAGMA user_version').fetchone() == (0,)
    old.close()
    log = FeedbackLog(tmp_path, 0)
    log.append([entry('new')])
    first, second = log.page(0, 10)
    assert (first.user, first.text, first.clicked, first.scores, first.head) == ('old', 'dog', ('b',), (), '')
    assert (second.user, second.scores) == ('new', (0.5, 0.25))
    log.close()
    with sqlite3.connect(tmp_path / 'feedback' / '0.db') as db:
        assert db.execute('PRAGMA user_version').fetchone() == (len(STEPS),)
        db.execute('PRAGMA user_version = 99')
    with pytest.raises(Conflict, match='schema 99'):
        FeedbackLog(tmp_path, 0)


def test_two_that_open_a_new_log_at_once_both_have_it(tmp_path: Path) -> None:
    for turn in range(30):
        ready = threading.Barrier(2)

        def opened(place: Path = tmp_path / f'{turn}', ready: threading.Barrier = ready) -> int:
            ready.wait(timeout=10)
            with closing(FeedbackLog(place, 0)) as log:
                return log.append([entry('u')])

        with ThreadPoolExecutor(2) as pool:
            assert [future.result(timeout=30) for future in [pool.submit(opened) for _ in range(2)]] == [1, 1]


def test_purged_entries_are_gone_from_the_files_too(tmp_path: Path, log: FeedbackLog) -> None:
    log.append([entry('alice', 'a very private text'), entry('bob')])
    files = lambda: b''.join(path.read_bytes() for path in (tmp_path / 'feedback').iterdir())  # noqa: E731
    assert b'a very private text' in files()
    assert log.purge('nobody', None) == 0
    assert log.purge('alice', log.page(0, 1)[0].time) == 0  # not older than itself
    assert log.purge('alice', None) == 1
    assert b'a very private text' not in files()
    assert [one.user for one in log.page(0, 10)] == ['bob']
    assert [one.user for one in log.page(0, 10, 'alice')] == []
    assert log.purge(None, 4e9) == 1
    # A number does not come again, so that an export that goes on meets nothing twice.
    log.append([entry('carol')])
    assert [one.user for one in log.page(2, 1)] == ['carol']


def test_sums_of_several_logs_are_those_of_one(tmp_path: Path) -> None:
    entries = [entry('u', head='h1'), entry('v', clicked=('a', 'b')), entry(), entry('u', clicked=())]
    logs = [FeedbackLog(tmp_path, shard) for shard in range(3)]
    logs[0].append(entries)
    logs[1].append(entries[:1])
    logs[2].append(entries[1:])
    whole, parts = logs[0].stats(), summed([logs[1].stats(), logs[2].stats(), FeedbackLog(tmp_path, 3).stats()])
    times = ('first', 'last')
    assert {k: v for k, v in parts.items() if k not in times} == {
        **{k: v for k, v in whole.items() if k not in times},
        'users': ['u', 'v'],
    }
    assert (whole['entries'], whole['clicked'], whole['disliked']) == (4, 4, 4)
    assert whole['heads'] == {'': 3, 'h1': 1}
    assert sum(row[2] for row in whole['counts']['places']) == 4
    assert whole['counts']['pairs'] == []  # the two scores are far apart
    assert whole['first'] <= whole['last']
    for each in logs:
        each.close()


def test_what_a_reader_keeps_is_said_and_overwritten_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, '_PATIENCE_MS', 10)
    log = FeedbackLog(tmp_path, 0)
    log.append([entry('alice', 'a very private text'), entry('bob')])
    files = lambda: b''.join(path.read_bytes() for path in (tmp_path / 'feedback').iterdir())  # noqa: E731
    with closing(sqlite3.connect(tmp_path / 'feedback' / '0.db')) as reader:
        reader.execute('BEGIN')
        reader.execute('SELECT count(*) FROM feedback').fetchone()
        with pytest.raises(Unavailable, match='1 entries are deleted, but not overwritten'):
            log.purge('alice', None)
        assert [one.user for one in log.page(0, 10)] == ['bob']
        assert b'a very private text' in files()
    assert log.purge('alice', None) == 1
    assert b'a very private text' not in files()
    assert log.purge('alice', None) == 0
    log.close()


def test_statistics_of_a_long_log_stand_in_the_way_of_no_purge(
    tmp_path: Path, log: FeedbackLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, '_ROWS_PER_READ', 2)
    monkeypatch.setattr(module, '_PATIENCE_MS', 10)
    log.append([entry('u') for _ in range(5)])
    reading, writing = FeedbackLog(tmp_path, 0), FeedbackLog(tmp_path, 0)
    rows = reading._shown()
    assert [next(rows) for _ in range(3)] == [(['a', 'b'], [0.5, 0.25], ['a'], '')] * 3
    assert writing.purge('u', None) == 5
    assert len(list(rows)) == 1  # of the page that was read already
    assert log.stats()['counts'] == {'places': [], 'pairs': []}
    for opened in (reading, writing):
        opened.close()


def test_places_are_compared_only_where_no_head_was_live(log: FeedbackLog) -> None:
    near = Feedback('x', VECTOR, 'm', ('a', 'b'), ('b',), (), (0.5, 0.499))
    log.append([replace(near, head='h'), near, replace(near, head='h')])
    counts = log.stats()['counts']
    assert counts == {'places': [[0, 3, 0], [1, 3, 3]], 'pairs': [[0, 1, 0, 1]]}


def test_a_damaged_log_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / 'feedback').mkdir()
    (tmp_path / 'feedback' / '1.db').write_bytes(b'x' * 5000)
    with pytest.raises(Internal, match=r'feedback/1\.db'):
        FeedbackLog(tmp_path, 1)

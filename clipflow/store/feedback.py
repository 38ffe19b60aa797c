"""What people thought of results: a durable log beside the documents, which outlives every generation of them."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipflow import clicks
from clipflow.clicks import Feedback
from clipflow.errors import ReadOnly, Unavailable
from clipflow.store import layout
from clipflow.store.connection import connect, translated
from clipflow.store.migrations import migrate

_ROWS_PER_READ = 1000
_PATIENCE_MS = 3000
"""Only a checkpoint waits, for whoever reads; feedback waits behind it."""
_opening = threading.Lock()
"""While two connections turn a new file to WAL, SQLite refuses one instead of waiting."""
_COLUMNS = 'time, user, model, head, text, vector, shown, scores, clicked, disliked'


def _m001_feedback(db: sqlite3.Connection) -> None:
    # The first release made the table without a number of the schema.
    db.execute(
        'CREATE TABLE IF NOT EXISTS feedback ('
        ' number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,'
        ' text TEXT NOT NULL, vector BLOB NOT NULL, shown TEXT NOT NULL, clicked TEXT NOT NULL, disliked TEXT NOT NULL)'
    )


def _m002_scores_and_head(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE feedback ADD COLUMN scores TEXT NOT NULL DEFAULT '[]'")
    db.execute("ALTER TABLE feedback ADD COLUMN head TEXT NOT NULL DEFAULT ''")
    db.execute('CREATE INDEX feedback_by_user ON feedback (user)')


STEPS = (_m001_feedback, _m002_scores_and_head)


class FeedbackLog:
    """Appends to `<workspace>/feedback/<shard>.db`; durable on return. For one thread at a time.

    Raises:
        ReadOnly, Conflict: the file cannot be written, or a newer clipflow has written it.
    """

    def __init__(self, workspace: Path, shard: int) -> None:
        folder = workspace / layout.FEEDBACK
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReadOnly(f'the workspace {workspace} cannot be written: {error.strerror}') from None
        self._translated = partial(translated, f'{layout.FEEDBACK}/{shard}.db')
        self._deleted = 0  # what no purge has overwritten yet
        with _opening, self._translated():
            self._db = connect(folder / f'{shard}.db')
            self._db.execute(f'PRAGMA busy_timeout = {_PATIENCE_MS}')
            # What is purged is to be gone from the file too.
            self._db.execute('PRAGMA secure_delete = ON')
            migrate(self._db, STEPS)

    def append(self, entries: Sequence[Feedback]) -> int:
        """Store all in one transaction, with the time of now; returns how many there were.

        Raises:
            StorageFull, ReadOnly: nothing of them is stored.
        """
        now = time.time()
        rows = [
            (
                now,
                entry.user,
                entry.model,
                entry.head,
                entry.text,
                np.asarray(entry.vector, dtype=np.float32).tobytes(),
                *(json.dumps(values) for values in (entry.shown, entry.scores, entry.clicked, entry.disliked)),
            )
            for entry in entries
        ]
        marks = ', '.join('?' * len(_COLUMNS.split(',')))
        with self._translated():
            self._db.execute('BEGIN IMMEDIATE')
            try:
                self._db.executemany(f'INSERT INTO feedback ({_COLUMNS}) VALUES ({marks})', rows)
                self._db.execute('COMMIT')
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute('ROLLBACK')
                raise
        return len(rows)

    def last(self) -> int:
        """Number of the newest entry that there ever was."""
        with self._translated():
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'feedback'").fetchone()
        return int(row[0]) if row else 0

    def page(self, after: int, count: int, user: str | None = None) -> list[Feedback]:
        """Entries with the numbers from `after` + 1 to `after` + `count`; of one user, or of all."""
        condition, more = ('', ()) if user is None else (' AND user = ?', (user,))
        sql = f'SELECT {_COLUMNS} FROM feedback WHERE number > ? AND number <= ?{condition} ORDER BY number'
        with self._translated():
            rows = self._db.execute(sql, (after, after + count, *more)).fetchall()
        return [_entry(row) for row in rows]

    def stats(self) -> dict[str, Any]:
        """Sums about all entries, as JSON; those of several logs can be added (`summed`)."""
        totals = (
            'count(*), coalesce(sum(json_array_length(clicked)), 0)',
            'coalesce(sum(json_array_length(disliked)), 0)',
        )
        with self._translated():
            entries, clicked, disliked, first, last = self._db.execute(
                f'SELECT {", ".join(totals)}, min(time), max(time) FROM feedback'
            ).fetchone()
            users = self._db.execute("SELECT DISTINCT user FROM feedback WHERE user != ''").fetchall()
            heads = self._db.execute('SELECT head, count(*) FROM feedback GROUP BY head').fetchall()
        return {
            'entries': entries,
            'clicked': clicked,
            'disliked': disliked,
            'users': [row[0] for row in users],
            'heads': dict(heads),
            'first': first,
            'last': last,
            'counts': clicks.counted(self._shown()).json(),
        }

    def _shown(self) -> Iterator[tuple[list[str], list[float], list[str], str]]:
        # In pages: a purge can overwrite nothing while a statement reads.
        last = 0
        sql = 'SELECT number, head, shown, scores, clicked FROM feedback WHERE number > ? ORDER BY number LIMIT ?'
        while True:
            with self._translated():
                rows = self._db.execute(sql, (last, _ROWS_PER_READ)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for _, head, *lists in rows:
                shown, scores, clicked = (json.loads(value) for value in lists)
                yield shown, scores, clicked, head

    def purge(self, user: str | None, before: float | None) -> int:
        """Delete entries of a user, or of all, that are older than a time, or all; returns how many.

        Raises:
            Unavailable: they are deleted, but not overwritten; a later purge counts them.
        """
        conditions = {'user = ?': user, 'time < ?': before}
        given = {condition: value for condition, value in conditions.items() if value is not None}
        with self._translated():
            done = self._db.execute(f'DELETE FROM feedback WHERE {" AND ".join(given)}', tuple(given.values()))
            self._deleted += done.rowcount
            busy, *_ = self._db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()
        if busy:
            raise Unavailable(
                f'{self._deleted} entries are deleted, but not overwritten on the disk yet, because something reads '
                'the log, such as a backup; send the same again when that has ended'
            )
        deleted, self._deleted = self._deleted, 0
        return deleted

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _entry(row: Sequence[Any]) -> Feedback:
    when, user, model, head, text, vector, *lists = row
    shown, scores, clicked, disliked = (tuple(json.loads(value)) for value in lists)
    array = np.frombuffer(vector, dtype=np.float32)
    return Feedback(text, array, model, shown, clicked, disliked, scores, user, head, when)


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of several logs as one."""
    heads: dict[str, int] = {}
    for part in parts:
        for head, count in part['heads'].items():
            heads[head] = heads.get(head, 0) + int(count)
    times = [part[name] for part in parts for name in ('first', 'last') if part[name] is not None]
    return {
        **{name: sum(int(part[name]) for part in parts) for name in ('entries', 'clicked', 'disliked')},
        'users': sorted({user for part in parts for user in part['users']}),
        'heads': heads,
        'first': min(times, default=None),
        'last': max(times, default=None),
        'counts': clicks.merged(part['counts'] for part in parts).json(),
    }

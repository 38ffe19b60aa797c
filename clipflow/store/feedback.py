"""What people thought of results: a durable log beside the documents, which outlives every generation of them."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import ReadOnly
from clipflow.store.connection import connect, translated

_SCHEMA = (
    'CREATE TABLE IF NOT EXISTS feedback ('
    ' number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,'
    ' text TEXT NOT NULL, vector BLOB NOT NULL, shown TEXT NOT NULL, clicked TEXT NOT NULL, disliked TEXT NOT NULL)'
)


@dataclass(frozen=True)
class Feedback:
    """One answer of the service and what became of it.

    Attributes:
        text: of the query; empty for another kind of query.
        vector: of the query, float32 of unit length, [D].
        model: fingerprint of the model that made it.
        shown: ids of the results, in their order.
        clicked, disliked: some of them.
        user: whose, as the caller names people; may be empty.
    """

    text: str
    vector: NDArray[np.float32]
    model: str
    shown: tuple[str, ...]
    clicked: tuple[str, ...]
    disliked: tuple[str, ...]
    user: str = ''


class FeedbackLog:
    """Appends to `<workspace>/feedback/<shard>.db`; durable on return. For one thread at a time."""

    def __init__(self, workspace: Path, shard: int) -> None:
        folder = workspace / 'feedback'
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReadOnly(f'the workspace {workspace} cannot be written: {error.strerror}') from None
        with translated():
            self._db = connect(folder / f'{shard}.db')
            self._db.execute(_SCHEMA)

    def append(self, entries: Sequence[Feedback]) -> int:
        """Store all in one transaction; returns how many there were.

        Raises:
            StorageFull, ReadOnly: nothing of them is stored.
        """
        rows = [
            (
                time.time(),
                entry.user,
                entry.model,
                entry.text,
                np.asarray(entry.vector, dtype=np.float32).tobytes(),
                *(json.dumps(ids) for ids in (entry.shown, entry.clicked, entry.disliked)),
            )
            for entry in entries
        ]
        with translated():
            self._db.execute('BEGIN IMMEDIATE')
            try:
                self._db.executemany(
                    'INSERT INTO feedback (time, user, model, text, vector, shown, clicked, disliked)'
                    ' VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
                    rows,
                )
                self._db.execute('COMMIT')
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute('ROLLBACK')
                raise
        return len(rows)

    def count(self) -> int:
        """Number of entries."""
        with translated():
            return int(self._db.execute('SELECT count(*) FROM feedback').fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

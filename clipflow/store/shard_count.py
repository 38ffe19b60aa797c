"""In how many shards the documents in the directory of a generation are: each that holds some says it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from clipflow.errors import Conflict, InvalidParameter
from clipflow.store import layout
from clipflow.store.connection import translated


def of(folder: Path) -> int:
    """How many shards there are in all, also where some are on other volumes; 0 if there are none.

    Those with documents decide, for others may have been made by a start with another number.
    """
    return next(iter(stated(folder).values() or stated(folder, empty=True).values()), 0)


def stated(folder: Path, *, empty: bool = False) -> dict[int, int]:
    """What each shard that holds documents says, by its own number; with `empty` also the others."""
    found = {own: _stated(directory / layout.DOCUMENTS, empty) for own, directory in layout.shards(folder).items()}
    return {own: count for own, count in found.items() if count}


def check(folder: Path, shards: int) -> None:
    """Makes nothing, and needs no lock.

    Raises:
        InvalidParameter: there would be no shard.
        Conflict: the documents are in another number of shards.
    """
    if shards < 1:
        raise InvalidParameter('there is at least one shard')
    if other := next((count for count in stated(folder).values() if count != shards), 0):
        raise mismatch(folder, other, shards)


def mismatch(folder: Path, stored: int, asked: int) -> Conflict:
    """The error about another number of shards."""
    return Conflict(
        f'the documents in {folder} are in {_counted(stored)}, but {asked} are asked for; take a Flow (or '
        f'CLIPFLOW_SHARDS) of {_counted(stored)}, or move them with `clipflow reshard --to {asked}`'
    )


def _counted(count: int) -> str:
    return f'{count} shard{"s" if count > 1 else ""}'


def _stated(path: Path, empty: bool) -> int:
    """0 without documents, or before they have a schema; of whatever schema they are."""
    with translated(str(path)), closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=rw', uri=True)) as db:
        db.execute('PRAGMA busy_timeout = 30000')
        if not db.execute('PRAGMA user_version').fetchone()[0]:
            return 0
        if not empty and not db.execute('SELECT 1 FROM documents LIMIT 1').fetchone():
            return 0
        row = db.execute("SELECT value FROM meta WHERE name = 'shards'").fetchone()
        return int(row[0]) if row else 1

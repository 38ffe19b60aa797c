"""The index as a start finds it: from the newest snapshot and the changes after it, or else from the database."""

from dataclasses import dataclass

import numpy as np

from clipflow.errors import InvalidParameter
from clipflow.index import snapshot
from clipflow.index.build import build
from clipflow.index.choice import Choice, Wanted, choose
from clipflow.index.layered import LayeredIndex
from clipflow.index.tuning import Watch
from clipflow.store import layout
from clipflow.store.sqlite import Store


@dataclass(frozen=True)
class Loaded:
    """An index, its kind, and how it came to be.

    Attributes:
        sequence: up to which the snapshot knew the store; 0 without one.
        later: how many changes came after it.
        how: a sentence for `/status`.
    """

    index: LayeredIndex
    choice: Choice
    sequence: int
    later: int
    how: str


def load(store: Store, wanted: Wanted, watch: Watch) -> Loaded | None:
    """The index of everything in the store; None if it is empty.

    Args:
        store: nobody may write to it.
        wanted: the kind, for one that is built. It is plain rows where these fit in memory: then it serves at once. A
            kind that cannot be learnt leaves plain rows too; whoever keeps the index tries it again, and tells.
        watch: see `build`.

    Raises:
        DimensionMismatch: the kind has to be built now, from a trained index of other vectors.
    """
    if not store.dimension():
        return None
    count, dimension = store.count(), store.dimension()

    def fits(choice: Choice) -> bool:
        taken = choice.memory if choice.factory else choose(Wanted('flat'), count, dimension).memory
        return taken <= wanted.memory or choose(wanted, count, dimension, choice).memory >= taken

    try:
        index, choice, sequence = snapshot.read(store.directory / layout.SNAPSHOTS, store, fits)
    except snapshot.Unusable as reason:
        return _built(store, wanted, watch, str(reason))
    later = _catch_up(index, store, sequence)
    return Loaded(index, choice, sequence, later, f'{len(index):,} documents from a snapshot, {later:,} later changes')


def _built(store: Store, wanted: Wanted, watch: Watch, reason: str) -> Loaded:
    count, dimension = store.count(), store.dimension()
    flat = choose(Wanted('flat'), count, dimension)
    choice = flat if flat.memory <= wanted.memory else choose(wanted, count, dimension)
    nobody = np.empty((0, dimension), np.float32)
    try:
        index = build(store, choice, nobody, wanted.recall, watch)
    except InvalidParameter:
        choice = flat
        index = build(store, choice, nobody, wanted.recall, watch)
    return Loaded(index, choice, 0, 0, f'{len(index):,} documents read from the database ({reason})')


def _catch_up(index: LayeredIndex, store: Store, sequence: int) -> int:
    """Bring an index from a snapshot to what the store holds; how many changes that were."""
    known = index.table.view
    gone = np.setdiff1d(known.keys[known.all_alive()], store.keys(), assume_unique=True)
    index.remove(gone)
    later = len(gone)
    for keys, rows in store.vectors_since(sequence):
        index.put(keys, rows)
        later += len(keys)
    return later

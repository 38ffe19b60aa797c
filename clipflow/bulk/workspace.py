"""The shards of a workspace on disk, opened without a service, and moved to another number of them."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from clipflow.errors import Conflict, InvalidParameter, NotFound
from clipflow.sharding import shard_of
from clipflow.store import generations, layout
from clipflow.store.connection import lock
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.weights import ModelSpec

BLOCK = 1000


@contextmanager
def opened(folder: Path, spec: ModelSpec, shards: int, numbers: Iterable[int] | None = None) -> Iterator[list[Store]]:
    """The stores of all shards, or of those with these numbers; made where they are missing.

    Raises:
        InvalidParameter: there would be no shard.
        Conflict: a service has them open, or they are of another number of shards.
        ModelMismatch: their vectors are of another model.
    """
    if shards < 1:
        raise InvalidParameter('there is at least one shard')
    with ExitStack() as closing:
        stores = []
        for number in range(shards) if numbers is None else numbers:
            store = Store(folder / str(number), spec.fingerprint, spec.name, (), shards)
            closing.callback(store.close)
            stores.append(store)
        yield stores


def shards_in(folder: Path) -> int:
    """How many shards there are on disk.

    Raises:
        NotFound: there are none.
    """
    found = layout.shards(folder)
    if not found:
        raise NotFound(f'there are no documents in {folder}; check CLIPFLOW_WORKSPACE')
    return len(found)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No service has the shards that are there open meanwhile.

    Raises:
        Conflict: one has.
    """
    with ExitStack() as closing:
        for directory in layout.shards(folder).values():
            closing.callback(os.close, lock(directory))
        yield


def put(stores: Sequence[Store], records: Sequence[Record], precision: str = 'float', *, mixed: bool = False) -> None:
    """Store each record in the shard that keeps its id; see `Store.upsert`."""
    for store, own in _shared_out(stores, records):
        store.upsert(own, precision, mixed=mixed)


def check_numbered(stores: Sequence[Store], records: Sequence[Record]) -> None:
    """Of documents whose ids are only their places in a folder: whether they are new, or the very ones.

    Raises:
        Conflict: other documents would be replaced.
    """
    for store, own in _shared_out(stores, records):
        there = store.by_ids([record.id for record in own], vectors=True)
        for record in own:
            known = there.get(record.id, record).vector
            if known is None or record.vector is None or not np.array_equal(known, record.vector):
                raise Conflict(
                    f'the documents of this folder have no ids, so that their places are taken, and another document '
                    f'{record.id!r} is stored already; give them an `id` in documents.jsonl or in the metadata'
                )


def _shared_out(stores: Sequence[Store], records: Sequence[Record]) -> Iterator[tuple[Store, list[Record]]]:
    """Each shard that is to keep any of the records, with those."""
    for number, store in enumerate(stores):
        if own := [record for record in records if shard_of(record.id, len(stores)) == number]:
            yield store, own


def reshard(workspace: Path, spec: ModelSpec, shards: int, moved: Callable[[int], None]) -> tuple[int, int]:
    """Move all documents, with vectors and thumbnails, to `shards` shards, without encoding them again.

    The new ones are written beside the old ones and take their place at the end; until then nothing is changed, and an
    interrupted move begins anew.

    Args:
        workspace: as in CLIPFLOW_WORKSPACE; no service may have it open.
        spec: of the model that the vectors were made with.
        shards: how many there are to be.
        moved: is told of each block how many documents it had.

    Returns:
        How many shards there were, and how many documents were moved.

    Raises:
        InvalidParameter: there are that many already.
        NotFound, Conflict, ModelMismatch: see `opened` and `shards_in`.
    """
    folder, part = generations.current(workspace), generations.named(workspace, f'{shards}')
    before = shards_in(folder)
    if before == shards:
        raise InvalidParameter(f'{folder} has {shards} shards already')
    shutil.rmtree(part, ignore_errors=True)
    count = 0
    with opened(folder, spec, before) as source, opened(part, spec, shards) as target:
        for store in source:
            for keys, _ in store.vectors():
                for start in range(0, len(keys), BLOCK):
                    block = store.by_keys(keys[start : start + BLOCK].tolist(), thumbnails=True, vectors=True)
                    found = [block[key] for key in sorted(block)]
                    # Whoever has vectors of both has allowed it.
                    put(target, found, store.precision() or 'float', mixed=True)
                    count += len(block)
                    moved(len(block))
    generations.switch(workspace, part)
    generations.remove(folder)
    return before, count

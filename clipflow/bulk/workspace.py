"""The shards of a workspace on disk, opened without a service, and moved to another number of them."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import Conflict, Internal, InvalidParameter, NotFound
from clipflow.sharding import shard_of
from clipflow.store import generations, layout, shard_count
from clipflow.store.connection import lock
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.weights import ModelSpec

BLOCK = 1000


@contextmanager
def opened(folder: Path, spec: ModelSpec, shards: int) -> Iterator[list[Store]]:
    """The stores of all shards that count; made where there are none.

    Raises:
        InvalidParameter: there would be no shard.
        Conflict: a service has them open, they are of another number of shards, some are away, or they count no more.
        ModelMismatch: their vectors are of another model.
    """
    shard_count.check(folder, shards)
    away = set(range(shards)) - layout.shards(folder).keys()
    if away and shard_count.stated(folder):
        raise Conflict(
            f'of the {shards} shards in {folder} these are not there: {", ".join(map(str, sorted(away)))}; bring all '
            'of them below it'
        )
    with being_made(folder, spec, shards) as stores:
        generations.check(folder)
        yield stores


@contextmanager
def being_made(
    folder: Path, spec: ModelSpec, shards: int, numbers: Iterable[int] | None = None
) -> Iterator[list[Store]]:
    """The stores of shards that do not count yet: of all, or of those with these numbers.

    Raises:
        InvalidParameter, Conflict, ModelMismatch: see `opened`.
    """
    shard_count.check(folder, shards)
    with ExitStack() as closing:
        stores = []
        for number in range(shards) if numbers is None else numbers:
            store = Store(folder / str(number), spec.fingerprint, spec.name, (), shards)
            closing.callback(store.close)
            stores.append(store)
        yield stores


def shards_in(folder: Path) -> int:
    """In how many shards the documents are.

    Raises:
        NotFound: there are none.
    """
    found = shard_count.of(folder)
    if not found:
        raise NotFound(f'there are no documents in {folder}; check CLIPFLOW_WORKSPACE')
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No service has the shards that are there open meanwhile.

    Raises:
        Conflict: one has, or they count no more.
    """
    with ExitStack() as closing:
        for directory in layout.shards(folder).values():
            closing.callback(os.close, lock(directory))
        generations.check(folder)
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
            if known is None or record.vector is None or not _same(known, record.vector):
                raise Conflict(
                    f'documents of this folder have no ids, so that their places are taken, and another document '
                    f'{record.id!r} is stored already; give them an `id` in documents.jsonl or in the metadata'
                )


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether both are of one document: up to the last digit, for lengths may have been made one in other ways."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-6))


def _shared_out(stores: Sequence[Store], records: Sequence[Record]) -> Iterator[tuple[Store, list[Record]]]:
    """Each shard that is to keep any of the records, with those."""
    for number, store in enumerate(stores):
        if own := [record for record in records if shard_of(record.id, len(stores)) == number]:
            yield store, own


def reshard(workspace: Path, spec: ModelSpec, shards: int, moved: Callable[[int], None]) -> tuple[int, int]:
    """Move all documents, with vectors and thumbnails, to `shards` shards, without encoding them again.

    The new ones are written beside the old ones, which are locked, and take their place at the end; until then nothing
    is changed, and an interrupted move begins anew.

    Args:
        workspace: as in CLIPFLOW_WORKSPACE; no service may have it open.
        spec: of the model that the vectors were made with.
        shards: how many there are to be.
        moved: is told of each block how many documents it had.

    Returns:
        How many shards there were, and how many documents were moved.

    Raises:
        InvalidParameter: there are that many already.
        Internal: not all documents arrived.
        NotFound, Conflict, ModelMismatch: see `generations.alone`, `opened` and `shards_in`.
    """
    with generations.alone(workspace) as folder:
        before = shards_in(folder)
        if before == shards:
            raise InvalidParameter(f'{folder} has {shards} shards already')
        part = generations.free(workspace, 'moved')
        with opened(folder, spec, before) as source, _unless_it_fails(part):
            with being_made(part, spec, shards) as target:
                for store in source:
                    _move(store, target, moved)
                count, arrived = (sum(store.count() for store in stores) for stores in (source, target))
            if count != arrived:
                raise Internal(f'of {count:,} documents in {folder} {arrived:,} arrived, so nothing was changed')
            generations.check(folder)
            generations.switch(workspace, part, gone=folder)
            generations.clear(workspace)
    return before, count


def _move(store: Store, target: Sequence[Store], moved: Callable[[int], None]) -> None:
    for keys, _ in store.vectors():
        for start in range(0, len(keys), BLOCK):
            block = store.by_keys(keys[start : start + BLOCK].tolist(), thumbnails=True, vectors=True)
            # Whoever has vectors of both has allowed it.
            put(target, [block[key] for key in sorted(block)], store.precision() or 'float', mixed=True)
            moved(len(block))


@contextmanager
def _unless_it_fails(part: Path) -> Iterator[None]:
    """`part` is made anew; its place on the disk is wanted for something else when that fails."""
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield
    except BaseException:
        if generations.current(part.parent) != part:
            shutil.rmtree(part, ignore_errors=True)
        raise

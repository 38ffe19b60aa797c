"""From a folder of vectors to a workspace whose indexers start at once.

Every shard is a part of its own: documents into its store, its index, a snapshot of that. Parts share the clusters
that were learnt from a sample of the whole folder while the documents are stored, and are made by several processes.
All of it is a generation beside the one that counts, until it is complete; an interrupted run goes on in it.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import faiss
import numpy as np

from clipflow.bulk import exchange, workspace
from clipflow.bulk.mapped import Mapped
from clipflow.bulk.processes import each
from clipflow.errors import Conflict, InvalidParameter, StorageFull
from clipflow.index import snapshot
from clipflow.index.approximate import Approximate
from clipflow.index.build import build, sampled
from clipflow.index.choice import Choice, Wanted, choose, memory_for_vectors
from clipflow.index.trial import check_kind
from clipflow.sharding import shard_of
from clipflow.store import generations, layout
from clipflow.store.connection import ROLLBACK, WAL, lock
from clipflow.store.reading import Documents, Record
from clipflow.store.sqlite import Store
from clipflow.weights import ModelSpec
from clipflow.work import cores

STORING, INDEXING = 'storing', 'indexing'
_TOGETHER = 10_000
"""Documents of one transaction: each waits for the disk."""
_CLUSTERS = 'clusters.faiss'
_MADE = re.compile(rf'{layout.INDEXER}-b[0-9a-f]{{12}}2?')

Told = Callable[[str, int], None]
"""Is told a phase, and how many more documents are through it."""


class _GivenUp(Exception):
    """The work is given up because what runs beside it failed; nobody sees it."""


@dataclass(frozen=True)
class _Part:
    """What the process of a shard has to know."""

    source: Path
    target: Path
    number: int
    shards: int
    fingerprint: str
    model: str
    choice: Choice
    recall: float
    precision: str
    threads: int


def build_workspace(source: Mapped, place: Path, spec: ModelSpec, wanted: Wanted, *, shards: int, told: Told) -> Choice:
    """See the module.

    Args:
        source: the folder.
        place: the workspace, which must not hold documents; made if it is missing.
        spec: of the model of the vectors.
        wanted: the kind, and the memory of each shard.
        shards: how many there are to be.
        told: hears of STORING and INDEXING, of every document in each.

    Returns:
        The kind of index that it has become.

    Raises:
        Conflict: there are documents already, or the same command runs.
        InvalidParameter: FAISS knows no such kind, there are fewer than one shard, or the workspace is a file.
        ModelMismatch, DimensionMismatch: the vectors are of another model.
        ReadOnly, StorageFull: the workspace cannot be written; what is there stays for the next call.
    """
    if shards < 1:
        raise InvalidParameter('there is at least one shard')
    if place.exists() and not place.is_dir():
        raise InvalidParameter(f'{place} is a file; name a directory as the workspace')
    source.check_model(spec)
    check_kind(wanted.kind, source.dimension())
    choice = choose(wanted, -(-source.count() // shards), source.dimension())
    with ExitStack() as held:
        before = held.enter_context(generations.alone(place, make=True))
        target = _target(source, place, spec, shards, wanted)
        held.callback(os.close, lock(target))
        workers = max(1, min(shards, cores(), memory_for_vectors() // max(1, choice.memory)))
        threads = max(1, faiss.omp_get_max_threads() // workers)
        whole = _Part(
            source.folder,
            target,
            0,
            shards,
            spec.fingerprint,
            spec.name,
            choice,
            wanted.recall,
            source.precision,
            threads,
        )
        parts = [replace(whole, number=number) for number in range(shards)]
        with _beside(lambda heard: each(parts, _store, workers, heard), told):
            if choice.factory:
                _learn(source, choice, target / _CLUSTERS, workers)
        each(parts, _index, workers, told)
        _switch(place, before, target)
    return choice


def _target(source: Mapped, place: Path, spec: ModelSpec, shards: int, wanted: Wanted) -> Path:
    """Where it is made: a name of its own for everything that matters, so that no run goes on with another's parts."""
    mark = repr((source.folder.resolve(), source.files(), spec.fingerprint, shards, asdict(wanted)))
    target = generations.free(place, f'b{blake2b(mark.encode(), digest_size=6).hexdigest()}')
    with _nothing_in(place):
        return target  # a service that runs on nothing would be in the way at the end


@contextmanager
def _nothing_in(place: Path) -> Iterator[None]:
    """There are no documents, and meanwhile none can come."""
    with workspace.locked(generations.current(place)):
        if documents_in(place):
            raise Conflict(
                f'there are documents in {place} already; name another --workspace, or add to them with `clipflow load`'
            )
        yield


def documents_in(place: Path) -> int:
    """How many documents a workspace holds."""
    count = 0
    for folder in layout.shards(generations.current(place)).values():
        documents = Documents(folder)
        try:
            count += documents.count()
        finally:
            documents.close()
    return count


def _learn(source: Mapped, choice: Choice, file: Path, storing: int) -> None:
    """Clusters and codes, from a sample; none are learnt again that an earlier run has left.

    Beside it so many processes store. They have a core each, for FAISS's threads wait busily for one that has none.
    """
    try:
        Approximate.read(file)
    except InvalidParameter:
        main = Approximate.create(choice.factory, source.dimension())
        sample, threads = sampled([source], main), faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(max(1, threads - storing))
        try:
            main.train(sample)
        finally:
            faiss.omp_set_num_threads(threads)
        try:
            main.write(file)
        except (OSError, RuntimeError) as error:  # FAISS's word for any failure to write
            raise StorageFull(f'{file} could not be written: {error}') from None


@contextmanager
def _beside(work: Callable[[Told], None], told: Told) -> Iterator[None]:
    """`work` runs on a thread during the block; when that fails, `work` ends with the next that it tells."""
    failed = threading.Event()

    def heard(phase: str, count: int) -> None:
        if failed.is_set():
            raise _GivenUp
        told(phase, count)

    with ThreadPoolExecutor(1, thread_name_prefix='beside') as pool:
        running = pool.submit(work, heard)
        try:
            yield
            running.result()
        except BaseException:
            failed.set()
            raise


@contextmanager
def _opened(part: _Part, journal: str) -> Iterator[Store]:
    store = Store(part.target / str(part.number), part.fingerprint, part.model, (), part.shards, journal=journal)
    try:
        yield store
    finally:
        store.close()


def _store(part: _Part, told: Told) -> None:
    with _opened(part, ROLLBACK) as store:
        _take(part, store, told)


def _take(part: _Part, store: Store, told: Told) -> None:
    """The documents of this shard. `taken` counts those of the whole folder that were looked at."""
    before, place, unheard = store.taken(), 0, 0
    waiting: list[Record] = []
    for records in exchange.read(part.source):
        place += len(records)
        if place > before:
            waiting += [record for record in records if shard_of(record.id, part.shards) == part.number]
        unheard += len(records)
        if len(waiting) >= _TOGETHER:
            store.load(waiting, part.precision, place)
            waiting = []
        # All shards look at every document: together they tell of each once.
        if unheard >= _TOGETHER * part.shards:
            told(STORING, unheard // part.shards)
            unheard %= part.shards
    if place > before:
        store.load(waiting, part.precision, place)
    told(STORING, unheard // part.shards)


def _index(part: _Part, told: Told) -> None:
    faiss.omp_set_num_threads(part.threads)
    with _opened(part, WAL) as store:
        _fill(part, store, told)


def _fill(part: _Part, store: Store, told: Told) -> None:
    """The index of this shard, and its snapshot."""
    count = store.count()
    if not count or _is_there(part, store):
        told(INDEXING, count)
        return
    learnt = replace(part.choice, kind='trained', factory=str(part.target / _CLUSTERS))
    done = 0

    def watch(task: str, share: float) -> None:
        nonlocal done
        if task == 'filling':
            told(INDEXING, int(share * count) - done)
            done = int(share * count)

    index = build(
        store,
        learnt if part.choice.factory else part.choice,
        np.empty((0, store.dimension()), np.float32),
        part.recall,
        watch,
    )
    folder = store.directory / layout.SNAPSHOTS
    try:
        snapshot.write(folder, snapshot.Moment.of(index, part.choice, store))
    except OSError as error:
        raise StorageFull(f'the index in {folder} could not be written: {error.strerror or error}') from None


def _is_there(part: _Part, store: Store) -> bool:
    """Whether an earlier run has made this very index."""
    try:
        _, choice, sequence = snapshot.read(store.directory / layout.SNAPSHOTS, store, lambda _: True)
    except snapshot.Unusable:
        return False
    return choice == part.choice and sequence == store.last_sequence()


def _switch(place: Path, before: Path, target: Path) -> None:
    """It counts from now on; an empty generation that was there, and what only the making needed, are gone."""
    with _nothing_in(place):
        generations.switch(place, target, gone=before)
        generations.clear(place)
    for left in place.iterdir():  # of runs with other options or files, which will never go on
        if _MADE.fullmatch(left.name) and left != target:
            shutil.rmtree(left, ignore_errors=True)
    for path in (target / _CLUSTERS, (target / _CLUSTERS).with_suffix('.factory')):
        path.unlink(missing_ok=True)

"""Keeps the index of a store as it should be: loaded at the start, of the right kind, merged, compacted, on disk.

One thread does the long work beside the searches, one task at a time. Whoever writes to the store holds `writing` from
before the write until `put`, `remove` or `clear` has told of it: else a snapshot might count a change that it lacks.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from clipflow.errors import ClipflowError, StorageFull
from clipflow.index import snapshot
from clipflow.index.build import build
from clipflow.index.choice import Choice, Wanted, choose
from clipflow.index.layered import LayeredIndex
from clipflow.index.loading import load
from clipflow.index.snapshot import Moment
from clipflow.index.tuning import GROWN, QUERIES, retune
from clipflow.store import layout
from clipflow.store.sqlite import Store

log = logging.getLogger('clipflow.indexer')
R = TypeVar('R')

MERGE_AT = 2048
"""Plain rows beside a FAISS part: with so many the exact search of them takes a few hundred microseconds."""
DEAD_SHARE = 0.2
DEAD_LEAST = 1000
"""An index is built anew when more of its slots are dead than both of these."""
_JOURNAL_END = 1000
_KEPT_QUERIES = 10 * QUERIES
"""Many may be the same."""
_LONGEST_PAUSE = 60.0
_MOST_PAUSES = 16
"""What has failed is tried again after a pause, then after two, and at last after so many: a build takes minutes."""


@dataclass(frozen=True)
class Snapshots:
    """When a snapshot is written by itself: after so many changes, or so many seconds after a change."""

    changes: int = 100_000
    seconds: float = 3600.0


class _Stopped(Exception):
    """The work is given up because the service stops."""


@dataclass(frozen=True)
class _Problem:
    """A task that has failed, and when it is tried again, in seconds of the monotonic clock."""

    message: str
    pause: float
    again: float


@dataclass
class _Now:
    """What the thread does, for `/status`."""

    task: str = ''
    done: float = 0.0
    problems: dict[str, _Problem] = field(default_factory=dict)


class Keeper:
    """See the module.

    Args:
        store: the truth.
        wanted: what kind is asked for.
        policy: when snapshots are written.
    """

    def __init__(self, store: Store, wanted: Wanted, policy: Snapshots) -> None:
        self._store, self._wanted, self._policy = store, wanted, policy
        self.index: LayeredIndex | None = None
        self.choice: Choice | None = None
        self.started = 'empty'
        self.snapshot_sequence = 0
        self._asked: deque[NDArray[np.float32]] = deque(maxlen=_KEPT_QUERIES)
        self._now = _Now()
        self._journal: list[NDArray[np.int64]] | None = None
        self.writing = threading.RLock()
        self._tending = threading.Lock()
        self._changes, self._changed_at = 0, 0.0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._load()
        self._thread = threading.Thread(target=self._run, name='keeper', daemon=True)
        self._thread.start()

    def _load(self) -> None:
        begun = time.monotonic()
        found = load(self._store, self._wanted, self._watch)
        self._now = _Now()
        if found is not None:
            self.index, self.choice = found.index, found.choice
            self.snapshot_sequence, self._changes, self._changed_at = found.sequence, found.later, begun
            self.started = f'{found.how}, in {time.monotonic() - begun:.1f} s'
            log.info(self.started)

    # What the owner calls.

    def put(self, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """[N] keys have new vectors [N, D] in the store."""
        with self.writing:
            if self.index is None:
                self.index = LayeredIndex(rows.shape[1], self._store.vectors_of)
                self.choice = choose(Wanted('flat'), 0, rows.shape[1])
            self.index.put(keys, rows)
            self._changed(keys)

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Keys are gone from the store."""
        with self.writing:
            if self.index is not None:
                self.index.remove(keys)
                self._changed(keys)
                if not len(self.index):
                    self._forget()

    def clear(self) -> None:
        """Everything is gone from the store."""
        with self.writing:
            if self.index is not None:
                self._note(len(self.index))
            self._forget()

    def asked(self, queries: NDArray[np.float32]) -> None:
        """Remember late queries, with which the search effort is tuned."""
        self._asked.extend(queries[-_KEPT_QUERIES:])

    def snapshot(self) -> dict[str, Any]:
        """Write one now; of an empty index there is none.

        Raises:
            StorageFull: it could not be written; the snapshot before it stays.
        """
        with self._tending:
            changes = 0
            try:
                with self.writing:
                    moment = self._moment()
                    changes, self._changes = self._changes, 0
                if moment is None:
                    snapshot.drop(self._folder)
                    self.snapshot_sequence = 0
                    return {'documents': 0, 'sequence': self._store.last_sequence(), 'bytes': 0}
                path = _aside(lambda: snapshot.write(self._folder, moment))
            except OSError as error:
                self._changes += changes  # still to be done
                cause = error.strerror or error
                raise StorageFull(f'the snapshot could not be written: {cause}; the documents are safe') from None
            self.snapshot_sequence = moment.sequence
            size = sum(file.stat().st_size for file in path.iterdir())
        return {'documents': int(np.count_nonzero(moment.keys)), 'sequence': moment.sequence, 'bytes': size}

    @property
    def _folder(self) -> Path:
        return self._store.directory / layout.SNAPSHOTS

    def _moment(self) -> Moment | None:
        index, choice = self.index, self.choice
        return None if index is None or choice is None else Moment.of(index, choice, self._store)

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        index, choice = self.index, self.choice
        main = index.main if index is not None else None
        found: dict[str, Any] = {
            'kind': choice.kind if choice is not None else 'flat',
            'factory': choice.factory if choice is not None else '',
            'why': choice.why if choice is not None else 'empty',
            'effort': main.effort if main is not None else 0,
            'recall': round(main.recall, 4) if main is not None else 1.0,
            'recent': index.unmerged if main is not None and index is not None else 0,
            'dead': index.table.view.dead if index is not None else 0,
            'start': self.started,
            'snapshot': self.snapshot_sequence,
            'warnings': self._warnings(),
        }
        if self._now.task:
            found |= {'task': self._now.task, 'done': round(self._now.done, 3)}
        return found

    def _warnings(self) -> list[str]:
        found = [problem.message for problem in list(self._now.problems.values())]
        main, wanted = self.index.main if self.index is not None else None, self._wanted.recall
        if main is not None and len(main) and main.recall < wanted:
            found.append(
                f'{main.factory} finds {main.recall:.3f} of the ten best at most, {wanted} are asked for; choose '
                'another CLIPFLOW_INDEX_KIND, or auto with more CLIPFLOW_INDEX_MEMORY'
            )
        return found

    def close(self) -> None:
        """Stop the thread; once more does nothing."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    # The thread.

    def _run(self) -> None:
        faiss.omp_set_num_threads(1)
        while not self._stop.is_set():
            tasks = {'building': self._renew, 'merging': self._merge, 'tuning': self._tune, 'snapshot': self._save}
            for name, task in tasks.items():
                self._attempt(name, task)
            self._wake.wait(self._pause)
            self._wake.clear()

    @property
    def _pause(self) -> float:
        return min(_LONGEST_PAUSE, self._policy.seconds)

    def _attempt(self, name: str, task: Callable[[], object]) -> None:
        before = self._now.problems.get(name)
        if before is not None and time.monotonic() < before.again:
            return
        try:
            task()
            self._now.problems.pop(name, None)
        except _Stopped:
            return
        except ClipflowError as error:
            self._failed(name, error.message)
            log.warning('%s: %s', name, error.message)
        except Exception as error:
            self._failed(name, f'{name} failed ({type(error).__name__}); the log says more')
            log.exception('%s failed', name)
        finally:
            self._now.task, self._now.done = '', 0.0

    def _failed(self, name: str, message: str) -> None:
        before = self._now.problems.get(name)
        pause = self._pause if before is None else min(2 * before.pause, _MOST_PAUSES * self._pause)
        self._now.problems[name] = _Problem(message, pause, time.monotonic() + pause)

    def _renew(self) -> None:
        """Build another index if the kind does not fit any more, or too much of it is dead."""
        with self.writing:
            index, choice = self.index, self.choice
            if index is None or choice is None:
                return
            better = choose(self._wanted, len(index), index.dimension, choice)
            if better.makes(choice) and not _rotten(index):
                self.choice = better
                return
            self._journal = []
        try:
            queries = self._queries(index.dimension)
            new = _aside(lambda: build(self._store, better, queries, self._wanted.recall, self._watch))
            while len(journal := self._taken()) > _JOURNAL_END:
                self._catch_up(new, journal)
            with self._tending, self.writing:
                self._catch_up(new, np.concatenate([journal, self._taken()]))
                # Emptied meanwhile, perhaps filled again with vectors of another length: then this one is no use.
                if self.index is index:
                    self.index, self.choice = new, better
        except Exception:
            if self.index is index:
                raise
            return  # emptied while it was built, so that there was nothing to learn from
        finally:
            with self.writing:
                self._journal = None
        log.info('the index is now %s (%s)', better.factory or 'flat', better.why)

    def _taken(self) -> NDArray[np.int64]:
        """Keys that were written since the last call."""
        with self.writing:
            journal, self._journal = self._journal or [], []
        return np.concatenate([np.empty(0, np.int64), *journal])

    def _catch_up(self, index: LayeredIndex, keys: NDArray[np.int64]) -> None:
        """Bring keys of an index to what the store holds."""
        keys = np.unique(keys)
        found, rows = self._store.vectors_of(keys)
        if len(found) and rows.shape[1] == index.dimension:
            index.put(found, rows)
        index.remove(np.setdiff1d(keys, found))

    def _merge(self) -> None:
        """Move plain rows into the FAISS part, as long as there are many."""
        while (index := self.index) is not None and index.main is not None and index.unmerged >= MERGE_AT:
            with self._tending:
                self._watch('merging', 0.0)
                index.merge(MERGE_AT)

    def _tune(self) -> None:
        """Find the effort anew for another recall, and as soon as there are enough real queries to find it with.

        And when the FAISS part has grown: that of a small one finds too little then.
        """
        index, wanted = self.index, self._wanted.recall
        main = index.main if index is not None else None
        if index is None or main is None or not len(main):
            return
        due = main.aimed != wanted or len(main) >= GROWN * main.tuned_at
        if not due and (main.real >= QUERIES or len(self._asked) < QUERIES):
            return
        queries = self._queries(index.dimension)
        if due or len(queries) >= QUERIES:
            _aside(lambda: retune(self._store, index, queries, wanted, self._watch))
            with self.writing:
                self._note(1)  # the next snapshot has it

    def _save(self) -> None:
        late = self._changes > 0 and time.monotonic() - self._changed_at >= self._policy.seconds
        if self._changes >= self._policy.changes or late:
            self._watch('snapshot', 0.0)
            self.snapshot()

    def _watch(self, task: str, done: float) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._now.task, self._now.done = task, done

    # Small things.

    def _queries(self, dimension: int) -> NDArray[np.float32]:
        """Late ones, all different, [Q, D]."""
        late = {query.tobytes(): query for query in list(self._asked) if len(query) == dimension}
        return np.stack(list(late.values())[-QUERIES:]) if late else np.empty((0, dimension), np.float32)

    def _changed(self, keys: NDArray[np.int64]) -> None:
        if self._journal is not None:
            self._journal.append(keys)
        index, choice = self.index, self.choice
        if index is not None and choice is not None and self._is_due(index, choice):
            self._wake.set()
        self._note(len(keys))

    def _note(self, count: int) -> None:
        """So many changes are in no snapshot yet."""
        if not self._changes:
            self._changed_at = time.monotonic()
        self._changes += count
        if self._changes >= self._policy.changes:
            self._wake.set()

    def _is_due(self, index: LayeredIndex, choice: Choice) -> bool:
        """Whether the thread has something to do; cheap, because every write asks."""
        merging = index.main is not None and index.unmerged >= MERGE_AT
        better = choose(self._wanted, len(index), index.dimension, choice)
        return merging or _rotten(index) or not better.makes(choice)

    def _forget(self) -> None:
        self.index, self.choice, self._journal = None, None, None


def _aside(work: Callable[[], R]) -> R:
    """Do long work that nobody waits for.

    Searches come first: its thread, and those that FAISS starts from it, take what they leave. It must not hold what
    searches need, which they would then wait for as long as the processors are busy.
    """

    def step_back() -> None:
        with suppress(OSError):  # a process that steps back further already may not come nearer
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        faiss.omp_set_num_threads(max(1, faiss.omp_get_max_threads() // 2))

    with ThreadPoolExecutor(1, thread_name_prefix='keeper-aside', initializer=step_back) as pool:
        return pool.submit(work).result()


def _rotten(index: LayeredIndex) -> bool:
    view = index.table.view
    return view.dead > max(DEAD_LEAST, DEAD_SHARE * view.count)

"""Searches beside writes, for the sections `mixed` and `blocked` of index.py."""

import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

from index_graphs import (
    PLACES,
    QUERIES,
    Collection,
    Options,
    collection,
    documents,
    judge,
    opened,
    prepared,
    ratios,
    scratch,
    settle,
    table,
)

from clipflow.index.approximate import Turns
from clipflow.index.choice import Wanted
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from setups import quantiles, spread

BATCH = 100
WRITES_A_SECOND, MIXED_SECONDS = 2000, 5.0
TURN_SECONDS = 0.25
"""In each of these: one batch of new documents, one deletion, one change of tags."""
BLOCKED_MILLISECONDS = 50
KINDS = {'batch of 100', 'deletion of 100', 'tags of 100', 'snapshot'}


@contextmanager
def _written(options: Options, here: Collection) -> Iterator[LiveIndex]:
    """A copy of the index of kind auto, which may be changed."""
    source = prepared(here.folder, 'auto', Wanted())[0]
    with scratch(options) as folder:
        shutil.copy(source / 'documents.db', folder)
        shutil.copytree(source / 'snapshots', folder / 'snapshots')
        live = opened(folder, Wanted())
        try:
            yield live
        finally:
            live.close()


def mixed(options: Options) -> None:
    """Searches of one thread one after the other, alone and beside writes of new documents."""
    here = collection(options.workspace, options.size, options.dimension)
    number = int(WRITES_A_SECOND * MIXED_SECONDS)
    fresh = _fresh(options.size, options.rounds * number, options.dimension)
    idle, beside, rates = [], [], []
    with _written(options, here) as live:
        for turn in range(options.rounds):
            settle(live)
            idle.append(quantiles(_lengths(_searching(live, here))))
            batches = [fresh[at : at + BATCH] for at in range(turn * number, (turn + 1) * number, BATCH)]
            written: list[float] = []
            thread = threading.Thread(target=_writing, args=(live, batches, written))
            thread.start()
            beside.append(quantiles(_lengths(_searching(live, here))))
            rates.append(len(written) * BATCH / MIXED_SECONDS)
            thread.join()
            assert len(written) == len(batches), 'a write has failed'
        kind = live.status()['factory'] or 'flat'
    compared = ratios([p95 for _, p95 in beside], [p95 for _, p95 in idle])
    rows = [
        [name, *(spread(values, '.2f') for values in zip(*found, strict=True))]
        for name, found in (('idle', idle), ('beside writes', beside))
    ]
    table([f'searches, {kind}', 'p50 ms', 'p95 ms'], *rows)
    judge(
        f'p95 <= 2 times idle beside {WRITES_A_SECOND:,} upserts a second',
        f'{spread(compared, ".2f")}, beside {spread(rates, ".0f")} upserts a second',
        statistics.median(compared) <= 2 and statistics.median(rates) >= 0.95 * WRITES_A_SECOND,
    )


Span = tuple[float, float]
"""Begin and end, in seconds."""


@dataclass
class _Log:
    """When each kind of write was under way."""

    spans: dict[str, list[Span]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, name: str, call: Callable[[], object]) -> None:
        begun = time.perf_counter()
        call()
        self.spans.setdefault(name, []).append((begun, time.perf_counter()))

    def beside(self, name: str, searches: Sequence[Span]) -> list[float]:
        """Lengths of the searches during which a write of this kind was under way."""
        spans = self.spans.get(name, [])
        return [end - begun for begun, end in searches if any(b < end and begun < e for b, e in spans)]


def blocked(options: Options) -> None:
    """The longest single search of each round, alone and while everything is written that can be."""
    here = collection(options.workspace, options.large, options.dimension)
    turns = int(MIXED_SECONDS / TURN_SECONDS) + 2
    fresh = _fresh(options.large, options.rounds * turns * BATCH, options.dimension)
    idle, beside, median, turns_taken = [], [], [], []
    by_kind: dict[str, list[float]] = {}
    with _written(options, here) as live, _turns() as waits:
        for number in range(options.rounds):
            settle(live)
            alone = _lengths(_searching(live, here))
            log = _Log()
            start = number * turns * BATCH
            some = [fresh[at : at + BATCH] for at in range(start, start + turns * BATCH, BATCH)]
            threads = [
                threading.Thread(target=_everything, args=(live, some, number * turns, log)),
                threading.Thread(target=log.run, args=('snapshot', live.keeper.snapshot)),
            ]
            for thread in threads:
                thread.start()
            waits.clear()
            searches = _searching(live, here)
            turns_taken.append(1000 * max(waits, default=0.0))
            log.stop.set()
            for thread in threads:
                thread.join()
            assert log.spans.keys() == KINDS, 'a write has failed'
            idle.append(1000 * max(alone))
            beside.append(1000 * max(_lengths(searches)))
            median.append(1000 * statistics.median(_lengths(searches)))
            for name in log.spans:
                by_kind.setdefault(name, []).append(1000 * max(log.beside(name, searches), default=0.0))
        kind = live.status()['factory'] or 'flat'
    table(
        [f'searches, {kind}', 'longest ms'],
        ['idle', spread(idle, '.1f')],
        ['beside writes', spread(beside, '.1f')],
        *([f'of those during: {name}', spread(values, '.1f')] for name, values in by_kind.items()),
        ['of these, waiting for an addition to the FAISS part', spread(turns_taken, '.1f')],
        ['beside writes, p50', spread(median, '.1f')],
    )
    longer = [one - other for one, other in zip(beside, idle, strict=True)]
    judge(
        f'the longest search beside writes waits {BLOCKED_MILLISECONDS} ms at most',
        f'{spread(longer, ".1f")} ms longer than the longest when idle',
        max(longer) <= BLOCKED_MILLISECONDS,
    )


@contextmanager
def _turns() -> Iterator[list[float]]:
    """Seconds that each search waits for its turns at the FAISS part."""
    waits: list[float] = []
    usual = Turns.reading

    @contextmanager
    def timed(turns: Turns) -> Iterator[None]:
        begun = time.perf_counter()
        with usual(turns):
            waits.append(time.perf_counter() - begun)
            yield

    with patch.object(Turns, 'reading', timed):
        yield waits


def _everything(live: LiveIndex, batches: Sequence[Sequence[Record]], turn: int, log: _Log) -> None:
    """New documents, deletions of old ones, changed tags, again and again."""
    for number, batch in enumerate(batches, turn):
        begun = time.perf_counter()
        old = [str(n) for n in range(number * BATCH, (number + 1) * BATCH)]
        patches = [(str(n), json.dumps({'changed': number})) for n in range(20_000 + number, 20_000 + number + BATCH)]
        log.run('batch of 100', partial(live.upsert, batch))
        log.run('deletion of 100', partial(live.delete, old))
        log.run('tags of 100', partial(live.store.merge_tags, patches))
        if log.stop.wait(max(0.0, begun + TURN_SECONDS - time.perf_counter())):
            return


def _fresh(size: int, count: int, dimension: int) -> list[Record]:
    """New documents of the same make."""
    from vectors import made, real, widened

    photographs = widened(real()[0], dimension)
    return documents(made(len(photographs) + count, photographs, seed=1)[len(photographs) :], size)


def _searching(live: LiveIndex, here: Collection) -> list[Span]:
    spans: list[Span] = []
    until = time.perf_counter() + MIXED_SECONDS
    while (begun := time.perf_counter()) < until:
        live.search(here.captions[len(spans) % QUERIES][None], Query(PLACES))
        spans.append((begun, time.perf_counter()))
    return spans


def _lengths(spans: Sequence[Span]) -> list[float]:
    return [end - begun for begun, end in spans]


def _writing(live: LiveIndex, batches: Sequence[Sequence[Record]], written: list[float]) -> None:
    begun = time.perf_counter()
    for number, batch in enumerate(batches):
        time.sleep(max(0.0, begun + number * BATCH / WRITES_A_SECOND - time.perf_counter()))
        live.upsert(batch)
        written.append(time.perf_counter() - begun)

"""How good and how fast the index is, each property beside what it has to hold against.

    python benchmarks/index.py [--only NAME,...] [--size 100000] [--large 1000000] [--dimension 384] [--rounds 5]
        [--workspace FOLDER]

    recall   recall@10 of captions, kind auto, beside an exact search, at --size
    flat     exact search of 1 and of 64 queries, beside NumPy's matmul and argpartition, at --size
    kinds    every kind at --size: building, memory, effort, recall, latency
    graph    hnsw at recall 0.95, beside hnswlib, usearch and plain FAISS, at --large
    filter   exact search among 1 % and 0.1 % with a tag, beside an exact scan of everything, at --large; and apart from
             that what of it takes the store to find the keys, and the index to search them
    writes   durable upserts in batches of 100, beside SQLite alone with the same rows, schema and pragmas
    restart  opening from a snapshot at --large, beside reading its files into memory
    memory   VmRSS of a process with a budget of 1 GB at --large, started from a snapshot
    mixed    p95 of searches while 2,000 upserts a second run in another thread, beside idle, at --size
    blocked  the longest search while batches, deletions, tags and a snapshot are written, beside idle, at --large

Vectors are those of vectors.py (clip-mini, D = 384; more dimensions change no cosine), queries are 200 of its captions.
Efforts are tuned as the service tunes them before it has seen a query; only `graph` sets the effort of everyone by the
captions. Every contestant is asked one query at a time from one thread of this process, and all may use the same cores:
no limit of threads is set for any of them. They take turns in each round; a figure is the median of the rounds, with
the range. Files have been read before (they come from the page cache if they fit).

Workspaces are made once and kept in FOLDER/<count>-documents-<dimension>, with the indexes of --large and of `mixed`.
Delete that folder after a change of how an index is built; `recall` and `kinds` build theirs anew each time.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index_graphs import (
    MODEL,
    PLACES,
    QUERIES,
    TIE,
    Collection,
    Options,
    Rows,
    built,
    collection,
    core,
    documents,
    each,
    graph,
    judge,
    once,
    opened,
    plain,
    prepared,
    ratios,
    scratch,
    settle,
    table,
)
from index_mixed import BATCH, blocked, mixed

from clipflow.filters import Filter, compile_filter
from clipflow.index.choice import Wanted, memory_for_vectors
from clipflow.index.layered import LayeredIndex
from clipflow.index.live import LiveIndex, Query
from clipflow.store.migrations import migrate
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from setups import quantiles, spread, timed

BUDGET = 1 << 30
WRITTEN_A_ROUND = 5000
UPSERT = (
    'INSERT INTO documents (id, sequence, text, uri, tags, vector) VALUES (?, ?, ?, ?, ?, ?)'
    ' ON CONFLICT (id) DO UPDATE SET sequence = excluded.sequence, text = excluded.text,'
    ' uri = excluded.uri, tags = excluded.tags, vector = excluded.vector'
)
KINDS = {
    'flat': Wanted('flat'),
    'ivf': Wanted('ivf'),
    'ivf int8': Wanted('ivf', 'int8'),
    'hnsw': Wanted('hnsw'),
    'ivfpq': Wanted('ivfpq'),
}


def recall(options: Options) -> None:
    """Captions, kind auto."""
    here = collection(options.workspace, options.size, options.dimension)
    store = Store(here.folder, *MODEL)
    index, choice, _ = built(store, Wanted())
    found = here.recall(index.search(row[None], PLACES)[0][0][:PLACES] for row in here.captions)
    store.close()
    tuned = ('-', '-') if index.main is None else (index.main.effort, f'{index.main.recall:.4f}')
    head = ['auto is', 'effort', 'recall when tuned', f'recall@10 of {QUERIES} captions']
    table(head, [choice.factory or 'flat', *tuned, f'{found:.4f}'])
    judge('recall@10 >= 0.98', f'{found:.4f}', found >= 0.98)


def flat(options: Options) -> None:
    """Our exact search and NumPy's."""
    here = collection(options.workspace, options.size, options.dimension)
    index = LayeredIndex(here.vectors.shape[1])
    index.fill(np.arange(1, options.size + 1), here.vectors)
    rows, worst, same = [], 0.0, True
    for size, times in ((1, 50), (64, 5)):
        queries = here.captions[:size]
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for side, call in enumerate(
                (lambda q=queries: index.search(q, PLACES), lambda q=queries: plain(here.vectors, q))
            ):
                taken[side].append(1000 * statistics.median(timed(call, times)))
        ours, theirs = index.search(queries, PLACES), plain(here.vectors, queries)
        far = max(float(np.abs(one[1][:PLACES] - other[1]).max()) for one, other in zip(ours, theirs, strict=True))
        compared = ratios(*taken)
        worst, same = max(worst, statistics.median(compared)), same and far <= 2 * TIE
        rows.append([size, *(spread(side, '.2f') for side in taken), spread(compared, '.2f'), f'{far:.1e}'])
    table(['queries', 'clipflow ms', 'NumPy ms', 'ratio', 'scores differ by at most'], *rows)
    reached = f'{worst:.2f}, results are {"the same" if same else "others"}'
    judge('<= 1.1 times the time of NumPy, the same results', reached, worst <= 1.1 and same)


def kinds(options: Options) -> None:
    """What each kind costs and gives; nothing to reach."""
    here = collection(options.workspace, options.size, options.dimension)
    store = Store(here.folder, *MODEL)
    made = {name: built(store, wanted) for name, wanted in KINDS.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, (index, _, _) in made.items():
            taken[name].append(quantiles(each(partial(_ten, index), here.captions)))
    rows = []
    for name, (index, choice, seconds) in made.items():
        found = here.recall(index.search(row[None], PLACES)[0][0][:PLACES] for row in here.captions)
        effort = '-' if index.main is None else f'{index.main.effort}, {index.main.rerank} x candidates'
        p50, p95 = zip(*taken[name], strict=True)
        cells = [f'{choice.memory / 2**20:.0f}', effort, f'{found:.4f}', spread(p50, '.2f'), spread(p95, '.2f')]
        rows.append([name, choice.factory or '-', f'{seconds:.1f}', *cells])
    store.close()
    table(['kind', 'FAISS', 'build s', 'memory MB', 'effort', 'recall of captions', 'p50 ms', 'p95 ms'], *rows)
    print(flush=True)


def filtered(options: Options) -> None:
    """Search among the documents that have a tag, declared as such or not."""
    here = collection(options.workspace, options.large, options.dimension)
    place = prepared(here.folder, 'auto', Wanted())[0]
    plainly = LayeredIndex(here.vectors.shape[1])
    plainly.fill(np.arange(1, options.large + 1), here.vectors)
    rows, found = [], []
    for declared in ((), ('percent', 'permille')):
        live = opened(place, Wanted(), declared)
        for name, step in (('percent', 100), ('permille', 1000)):
            asked = compile_filter({name: True}, declared)
            taken, exact = _filtered(live, plainly, here, asked, options.rounds)
            compared = [ratios(taken[0], taken[1]), ratios(taken[0], taken[3])]
            cells = [spread(times, '.2f') for times in (*taken, *compared)]
            rows.append([f'{100 / step:g} %', 'yes' if declared else 'no', *cells, exact])
        found.append(compared)
        live.close()
    Store(place, *MODEL).close()  # which drops the indexes of tags
    head = ['passing', 'tag declared', 'scan of everything ms', 'filtered search ms', 'of it: store', 'of it: index']
    table([*head, 'scan / search', 'scan / index', 'exact'], *rows)
    quick = found[1][0]
    reached = f'{spread(quick, ".2f")} with a declared tag, {spread(found[0][0], ".2f")} without, '
    reached += f'{spread(found[1][1], ".2f")} for the index alone'
    met = statistics.median(quick) >= 20 and all(row[-1] for row in rows)
    judge('>= 20 times as fast as the scan at 0.1 %, exact', reached, met)


def _filtered(
    live: LiveIndex, plainly: LayeredIndex, here: Collection, asked: Filter, rounds: int
) -> tuple[list[list[float]], bool]:
    """Milliseconds of a scan, a filtered search, and its two parts: finding keys, and searching them. Whether exact."""
    index = core(live)
    keys = live.store.matching_keys(asked)
    calls: tuple[Callable[[Rows], object], ...] = (
        lambda q: plainly.search(q[None], PLACES),
        lambda q: live.search(q[None], Query(PLACES, asked)),
        lambda q: live.store.matching_keys(asked),
        lambda q: index.search(q[None], PLACES, keys),
    )
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            times.append(1000 * statistics.median(each(call, here.captions[:10])))
    far = 0.0
    for q in here.captions[:20]:
        scores = np.array([hit.score for hit in live.search(q[None], Query(PLACES, asked))[0]])
        far = max(far, float(np.abs(scores - plain(here.vectors[keys - 1], q[None])[0][1]).max()))
    return taken, far <= 2 * TIE


def _ten(index: LayeredIndex, query: Rows) -> None:
    index.search(query[None], PLACES)


def writes(options: Options) -> None:
    """Batches of new documents into an index, and into SQLite with the same schema and pragmas."""
    here = collection(options.workspace, options.size, options.dimension)
    records = documents(here.vectors[: min(options.size, options.rounds * WRITTEN_A_ROUND + BATCH)])
    part = (len(records) - BATCH) // options.rounds // BATCH * BATCH
    taken: tuple[list[float], list[float]] = ([], [])
    with scratch(options) as folder:
        live = LiveIndex(Store(folder / 'clipflow', *MODEL))
        db = sqlite3.connect(folder / 'alone.db', isolation_level=None)
        for pragma in ('journal_mode = WAL', 'synchronous = FULL', 'foreign_keys = ON', 'cache_size = -32000'):
            db.execute(f'PRAGMA {pragma}')
        migrate(db)
        for write in (live.upsert, lambda batch: _alone(db, _ready(batch))):
            write(records[:BATCH])
        for start in range(BATCH, BATCH + part * options.rounds, part):
            batches = [records[at : at + BATCH] for at in range(start, start + part, BATCH)]
            ready = [_ready(batch) for batch in batches]
            taken[0].append(part / once(partial(_all, live.upsert, batches)))
            taken[1].append(part / once(partial(_all, partial(_alone, db), ready)))
        live.close()
        db.close()
    compared = ratios(*taken)
    cells = [spread(taken[0], '.0f'), spread(taken[1], '.0f'), spread(compared, '.2f')]
    table(['documents a round', 'clipflow documents/s', 'SQLite documents/s', 'ratio'], [part, *cells])
    judge('>= 0.6 of the rate of SQLite alone', spread(compared, '.2f'), statistics.median(compared) >= 0.6)


def _all(write: Callable[[Any], None], batches: Sequence[Any]) -> None:
    for batch in batches:
        write(batch)


def _ready(batch: Sequence[Record]) -> list[tuple[object, ...]]:
    return [(r.id, int(r.id) + 1, r.text, r.uri, r.tags, r.vector.tobytes()) for r in batch if r.vector is not None]


def _alone(db: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    db.execute('BEGIN IMMEDIATE')
    db.executemany(UPSERT, rows)
    db.execute('COMMIT')


def restart(options: Options) -> None:
    """Until an index serves that has a snapshot, and the reading of its files."""
    here = collection(options.workspace, options.large, options.dimension)
    place = prepared(here.folder, 'auto', Wanted())[0]
    files = [file for file in (place / 'snapshots').glob('*/*') if file.is_file()]
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(options.rounds + 1):
        begun = time.perf_counter()
        live = opened(place, Wanted())
        seconds, kind = time.perf_counter() - begun, live.status()['factory'] or 'flat'
        live.close()
        del live
        read = sum(once(partial(np.fromfile, file, dtype=np.uint8)) for file in files)
        if number:  # the first pays for the page cache
            taken[0].append(seconds)
            taken[1].append(read)
    compared, size = ratios(*taken), sum(file.stat().st_size for file in files) / 2**20
    cells = [spread(taken[0], '.2f'), spread(taken[1], '.2f'), spread(compared, '.2f')]
    table(['kind', 'snapshot MB', 'opened after s', 'files read in s', 'ratio'], [kind, f'{size:.0f}', *cells])
    judge('<= 3 times the reading of the files', spread(compared, '.2f'), statistics.median(compared) <= 3)


def memory(options: Options) -> None:
    """A process that opens the workspace and is asked all captions."""
    here = collection(options.workspace, options.large, options.dimension)
    wanted = Wanted(memory=memory_for_vectors(BUDGET))
    place = prepared(here.folder, 'budget', wanted)[0]
    np.save(place / 'captions.npy', here.captions)
    found = []
    for _ in range(options.rounds):
        command = [sys.executable, __file__, '--child', str(place)]
        found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    reached = here.recall(np.array(keys) for keys in found[0]['keys'])
    names = ('before', 'opened', 'searched', 'peak')
    cells = [spread([one[name] / 1024 for one in found], '.0f') for name in names]
    head = ['kind', 'process before MB', 'after opening MB', 'after searching MB', 'peak MB', 'recall of captions']
    table(head, [found[0]['kind'], *cells, f'{reached:.4f}'])
    most = max(max(one['opened'], one['searched']) for one in found) / 1024
    met = most <= BUDGET / 2**20 and reached >= 0.9
    judge(f'VmRSS <= {BUDGET >> 20} MB, recall >= 0.9', f'{most:.0f} MB, {reached:.4f}', met)


def child(place: Path) -> None:
    """What `memory` starts: prints kilobytes and keys."""
    before = _kilobytes('VmRSS')
    live = opened(place, Wanted(memory=memory_for_vectors(BUDGET)))
    settle(live)
    after = _kilobytes('VmRSS')
    captions = np.load(place / 'captions.npy')
    keys = [[hit.record.key for hit in live.search(row[None], Query(PLACES))[0]] for row in captions]
    searched, peak = _kilobytes('VmRSS'), _kilobytes('VmHWM')
    kind = live.status()['factory'] or 'flat'
    live.close()
    print(
        json.dumps({'kind': kind, 'before': before, 'opened': after, 'searched': searched, 'peak': peak, 'keys': keys})
    )


def _kilobytes(name: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ':'))


SECTIONS: dict[str, Callable[[Options], None]] = {
    'recall': recall,
    'flat': flat,
    'kinds': kinds,
    'graph': graph,
    'filter': filtered,
    'writes': writes,
    'restart': restart,
    'memory': memory,
    'mixed': mixed,
    'blocked': blocked,
}


def main() -> None:
    """Run the sections, or, called by itself, the process of `memory`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default=','.join(SECTIONS), help='a comma-separated part of the default')
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--large', type=int, default=1_000_000)
    parser.add_argument('--dimension', type=int, default=384)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--workspace', type=Path, default=Path('~/.cache/clipflow/benchmarks'))
    parser.add_argument('--child', type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    names = given.only.split(',')
    if unknown := set(names) - set(SECTIONS):
        parser.error(f'--only knows {", ".join(SECTIONS)}; not {", ".join(sorted(unknown))}')
    options = Options(given.size, given.large, given.rounds, given.workspace.expanduser(), given.dimension)
    versions = f'NumPy {np.__version__}, faiss {faiss.__version__}'
    sizes = f'--size {given.size:,} --large {given.large:,}, D = {given.dimension}, {given.rounds} rounds'
    print(f'\n{len(os.sched_getaffinity(0))} cores, {versions}; {sizes}\n')
    for name in names:
        large = name in ('graph', 'filter', 'restart', 'memory', 'blocked')
        print(f'### {name}, {given.large if large else given.size:,} documents\n', flush=True)
        SECTIONS[name](options)


if __name__ == '__main__':
    main()

"""What index.py measures with: a collection, indexes of it that are kept, and other libraries' graphs.

The graphs, for its section `graph`, are those of hnswlib, usearch, and FAISS as it comes. All have 32 neighbours
(64 in the lowest layer), float32 and the inner product; the effort of building is the default of each. They are
built with all cores and kept beside the workspace, each with the seconds it took.
"""

import importlib.util
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, track

from clipflow.index import snapshot
from clipflow.index.base import Effort
from clipflow.index.build import build
from clipflow.index.choice import Choice, Wanted, choose
from clipflow.index.keeper import MERGE_AT, Snapshots
from clipflow.index.layered import LayeredIndex
from clipflow.index.live import LiveIndex
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from setups import quantiles, spread

PLACES = 10
QUERIES = 200
MODEL = ('0' * 16, 'clip-mini')
NEVER = Snapshots(10**9, 1e9)
TIE = 1e-6
NEIGHBOURS = 32
MOST_EFFORT = 4096
INSTALL = 'pip install hnswlib==0.8.0 usearch==2.26.6'
ERRORS = Console(stderr=True)

Rows = NDArray[np.float32]
Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What is given on the command line."""

    size: int
    large: int
    rounds: int
    workspace: Path
    dimension: int


@dataclass(frozen=True)
class Collection:
    """Vectors [N, D], queries [Q, D], the cosine of the tenth best of each query; and a store that holds the vectors.

    The key of row n is n + 1.
    """

    folder: Path
    vectors: Rows
    captions: Rows
    tenth: Rows

    def recall(self, found: Iterable[Keys]) -> float:
        """Share of the ten best among [n] keys for each caption; what ties with the tenth counts."""
        right = [
            min(PLACES, int(np.sum(self.vectors[keys - 1] @ caption >= tenth - TIE)))
            for keys, caption, tenth in zip(found, self.captions, self.tenth, strict=True)
        ]
        return float(np.mean(right)) / PLACES


@cache
def collection(workspace: Path, count: int, dimension: int) -> Collection:
    """Made, or read again, with its workspace in a folder of its own."""
    from vectors import made, real, widened

    photographs, captions = (widened(rows, dimension) for rows in real())
    vectors = made(count, photographs)
    chosen = captions[np.random.default_rng(0).choice(len(captions), QUERIES, replace=False)]
    best = np.full((QUERIES, PLACES), -np.inf, dtype=np.float32)
    for start in range(0, count, 50_000):
        scores = np.concatenate([best, chosen @ vectors[start : start + 50_000].T], axis=1)
        best = np.partition(scores, -PLACES, axis=1)[:, -PLACES:]
    folder = workspace / f'{count}-documents-{dimension}'
    store = Store(folder, *MODEL)
    have = store.count()
    for start in track(range(have, count, 1000), f'storing {count:,}', console=ERRORS, disable=have >= count):
        store.upsert(documents(vectors[start : start + 1000], start))
    store.close()
    return Collection(folder, vectors, chosen, best.min(axis=1))


def documents(vectors: Rows, start: int = 0, prefix: str = '') -> list[Record]:
    """Records of [N, D], numbered from `start` on."""
    return [
        Record(f'{prefix}{n}', '', '', json.dumps({'n': n, 'percent': n % 100 == 0, 'permille': n % 1000 == 0}), row)
        for n, row in enumerate(vectors, start)
    ]


def built(store: Store, wanted: Wanted) -> tuple[LayeredIndex, Choice, float]:
    """An index of the store, with all cores, and the seconds that took."""
    count, dimension = store.count(), store.dimension()
    choice = choose(wanted, count, dimension)
    begun = time.perf_counter()
    with Progress(console=ERRORS, transient=True) as bar:
        task = bar.add_task(choice.factory or 'flat', total=1.0)
        index = build(
            store,
            choice,
            np.empty((0, dimension), np.float32),
            wanted.recall,
            lambda phase, done: bar.update(task, description=f'{choice.factory or "flat"}: {phase}', completed=done),
        )
    return index, choice, time.perf_counter() - begun


def prepared(folder: Path, name: str, wanted: Wanted) -> tuple[Path, float]:
    """A copy of a workspace with a snapshot of the wanted kind, and the seconds of building that."""
    place = folder / name
    note = place / 'seconds'
    if not note.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copy(folder / 'documents.db', place)
        store = Store(place, *MODEL)
        index, choice, seconds = built(store, wanted)
        snapshot.write(place / 'snapshots', snapshot.Moment.of(index, choice, store))
        store.close()
        note.write_text(str(seconds))
    return place, float(note.read_text())


def opened(place: Path, wanted: Wanted, tags: Sequence[str] = ()) -> LiveIndex:
    """The index of a prepared workspace, from its snapshot, with declared tags."""
    live = LiveIndex(Store(place, *MODEL, tags), wanted, NEVER)
    assert 'from a snapshot' in live.status()['start'], f'{live.status()["start"]}; delete {place}'
    return live


def core(live: LiveIndex) -> LayeredIndex:
    """The index itself, without the store."""
    assert live.keeper.index is not None
    return live.keeper.index


def plain(vectors: Rows, queries: Rows) -> list[tuple[Keys, Rows]]:
    """Keys and cosines of the ten best, best first, with NumPy alone."""
    scores = (vectors @ queries[0])[None] if len(queries) == 1 else queries @ vectors.T
    top = np.argpartition(scores, -PLACES, axis=1)[:, -PLACES:]
    best = np.take_along_axis(scores, top, 1)
    order = np.argsort(-best, axis=1)
    return list(zip(np.take_along_axis(top, order, 1) + 1, np.take_along_axis(best, order, 1), strict=True))


def settle(live: LiveIndex) -> None:
    """Wait until nothing is done in the background."""
    while 'task' in live.status() or live.status()['recent'] >= MERGE_AT:
        time.sleep(0.05)


@contextmanager
def scratch(options: Options) -> Iterator[Path]:
    """A folder on the disk of the workspaces, gone afterwards."""
    options.workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.workspace) as folder:
        yield Path(folder)


def once(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def each(call: Callable[[Rows], object], queries: Rows) -> list[float]:
    """Seconds of each query, [D], one at a time; the first is asked once more before."""
    call(queries[0])
    seconds = []
    for query in queries:
        begun = time.perf_counter()
        call(query)
        seconds.append(time.perf_counter() - begun)
    return seconds


def ratios(some: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of each round."""
    return [one / other for one, other in zip(some, base, strict=True)]


def table(*rows: Sequence[object]) -> None:
    """As Markdown; the first row is the head."""
    lines = ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]
    print('\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]]), flush=True)


def judge(target: str, value: str, met: bool) -> None:
    """Say what was to be reached and whether it was."""
    print(f'\nTo reach: {target}. Reached: {value}. {"Met" if met else "MISSED"}.\n', flush=True)


@dataclass(frozen=True)
class Graph:
    """One contestant: `aim` sets the effort, `ask` finds the rows of the ten best of one query, [D]."""

    name: str
    seconds: float
    aim: Callable[[int], None]
    ask: Callable[[Rows], Keys]


def others(folder: Path, vectors: Rows) -> list[Graph]:
    """Built, or loaded from `folder`; what is not installed is left out."""
    found = []
    for name, make in (('hnswlib', _hnswlib), ('usearch', _usearch), ('faiss', _faiss)):
        if importlib.util.find_spec(name) is None:
            print(f'{name} is not installed and left out: {INSTALL}\n')
        else:
            folder.mkdir(parents=True, exist_ok=True)
            found.append(make(folder, vectors))
    return found


def _kept(path: Path, make: Callable[[], Any], save: Callable[[Any], object], load: Callable[[], Any]) -> Any:
    """The index, and how long its building took; the note of that is written last."""
    note = path.with_suffix('.seconds')
    if note.exists():
        return load(), float(note.read_text())
    ERRORS.print(f'building {path.name}')
    begun = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - begun
    save(made)
    note.write_text(str(seconds))
    return made, seconds


def _hnswlib(folder: Path, vectors: Rows) -> Graph:
    import hnswlib

    path = folder / 'hnswlib.bin'

    def made() -> Any:
        index = hnswlib.Index(space='ip', dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=NEIGHBOURS)
        index.add_items(vectors, np.arange(len(vectors)))
        return index

    def loaded() -> Any:
        index = hnswlib.Index(space='ip', dim=vectors.shape[1])
        index.load_index(str(path))
        return index

    index, seconds = _kept(path, made, lambda index: index.save_index(str(path)), loaded)
    return Graph(
        f'hnswlib {version("hnswlib")}',
        seconds,
        index.set_ef,
        lambda query: index.knn_query(query, PLACES)[0][0].astype(np.int64),
    )


def _usearch(folder: Path, vectors: Rows) -> Graph:
    from usearch.index import Index

    path = folder / 'usearch.bin'

    def empty() -> Any:
        return Index(ndim=vectors.shape[1], metric='ip', dtype='f32', connectivity=NEIGHBOURS)

    def made() -> Any:
        index = empty()
        index.add(np.arange(len(vectors)), vectors)
        return index

    def loaded() -> Any:
        index = empty()
        index.load(str(path))
        return index

    index, seconds = _kept(path, made, lambda index: index.save(str(path)), loaded)

    def aim(effort: int) -> None:
        index.expansion_search = effort

    return Graph(
        f'usearch {version("usearch")}',
        seconds,
        aim,
        lambda query: index.search(query, PLACES).keys.astype(np.int64),
    )


def _faiss(folder: Path, vectors: Rows) -> Graph:
    path = folder / 'faiss.bin'

    def made() -> Any:
        index = faiss.index_factory(vectors.shape[1], f'HNSW{NEIGHBOURS}', faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        return index

    index, seconds = _kept(
        path, made, lambda index: faiss.write_index(index, str(path)), lambda: faiss.read_index(str(path))
    )

    def aim(effort: int) -> None:
        index.hnsw.efSearch = effort

    return Graph(
        f'faiss {faiss.__version__} HNSW{NEIGHBOURS}',
        seconds,
        aim,
        lambda query: index.search(query[None], PLACES)[1][0],
    )


def smallest(recall: Callable[[int], float], wanted: float) -> int:
    """The smallest effort from 10 on that reaches a recall; 0 where none does. More effort finds no less."""
    low, high = PLACES, MOST_EFFORT
    if recall(high) < wanted:
        return 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= wanted else (middle + 1, high)
    return low


def graph(options: Options) -> None:
    """Ours with the effort that the captions need, ours as tuned, and the others."""
    here = collection(options.workspace, options.large, options.dimension)
    place, seconds = prepared(here.folder, 'hnsw', Wanted('hnsw'))
    live = opened(place, Wanted('hnsw'))
    ours, tuned = _ours(core(live), seconds)
    contestants = [ours, *others(here.folder / 'graphs', here.vectors)]

    def found(one: Graph, value: int) -> float:
        one.aim(value)
        return here.recall(one.ask(row) + 1 for row in here.captions)

    entries = [(one, smallest(partial(found, one), 0.95)) for one in contestants]
    for one, value in entries:
        if not value:
            print(f'{one.name} does not reach recall 0.95 and is left out')
    entries = [entry for entry in entries if entry[1]]
    entries.append((replace(ours, name='clipflow as tuned (0.98)'), tuned))
    recalls = [found(*entry) for entry in entries]
    taken: list[list[tuple[float, float]]] = [[] for _ in entries]
    for _ in range(options.rounds):
        for (one, value), times in zip(entries, taken, strict=True):
            one.aim(value)
            times.append(quantiles(each(one.ask, here.captions)))
    live.close()
    rows = []
    for (one, value), reached, times in zip(entries, recalls, taken, strict=True):
        p50, p95 = zip(*times, strict=True)
        cells = [f'{one.seconds:.0f}', value, f'{reached:.4f}', spread(p50, '.3f'), spread(p95, '.3f')]
        rows.append([one.name, *cells])
    table(['index', 'build s', 'effort', 'recall of captions', 'p50 ms', 'p95 ms'], *rows)
    p50s = {one.name: [time[0] for time in times] for (one, _), times in zip(entries[:-1], taken, strict=False)}
    fastest = min(p50s, key=lambda name: statistics.median(p50s[name]))
    met = ours.name in p50s and len(p50s) > 1
    compared = ratios(p50s[ours.name], p50s[fastest]) if met else [float('nan')]
    within = statistics.median(compared) <= 1.3
    judge('p50 <= 1.3 times the fastest', f'{spread(compared, ".2f")}, the fastest is {fastest}', met and within)


def _ours(index: LayeredIndex, seconds: float) -> tuple[Graph, int]:
    """Our index as a contestant, and the effort that it is tuned to."""
    effort = Effort()

    def aim(value: int) -> None:
        nonlocal effort
        effort = Effort(ef_search=value)

    def ask(query: Rows) -> Keys:
        return index.search(query[None], PLACES, effort=effort)[0][0][:PLACES] - 1

    return Graph('clipflow', seconds, aim, ask), index.main.effort if index.main is not None else 0

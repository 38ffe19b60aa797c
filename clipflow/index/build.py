"""Building an index from the store: training, filling, and tuning of the search effort to a recall.

Tuning asks with queries like those that will come. Texts lie apart from pictures, so that an effort tuned with stored
pictures finds less for a text. Real queries count first; where there are few, made ones lie as far from the stored
vectors as captions do.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipflow.index.approximate import Approximate
from clipflow.index.choice import Choice
from clipflow.index.layered import SPARE, LayeredIndex

QUERIES = 200
"""With so many the recall is known to about 0.005 (standard deviation at 0.98, ten places each)."""
PLACES = 10
RERANKS = (4, 10, 25)
"""Of a lossy kind so many times the limit are scored again with the stored vectors; the first that is enough."""
_SAMPLE_PER_LIST = 64
_SAMPLE = 39 * 256
"""For the 256 centres of a code of product quantisation."""
_COSINE = 0.3
"""About that of a caption and its picture in CLIP."""

Watch = Callable[[str, float], None]
"""Is told a phase and how much of it is done, 0 to 1; may raise to stop the work."""


class Stored(Protocol):
    """Vectors under their keys, as a store has them."""

    def count(self) -> int:
        """N."""
        ...

    def dimension(self) -> int:
        """D."""
        ...

    def vectors(self, step: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All keys and vectors, or one of `step`, in blocks of [n] and [n, D]."""
        ...

    def vectors_of(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of [N] keys those that exist, [n], and their vectors, [n, D]."""
        ...


def build(store: Stored, choice: Choice, asked: NDArray[np.float32], recall: float, watch: Watch) -> LayeredIndex:
    """An index of everything in the store.

    Args:
        store: what it is built from; may change meanwhile.
        choice: the kind.
        asked: late queries, [Q, D]; fewer than `QUERIES` are filled up with made ones.
        recall: of the ten best, to tune the effort to.
        watch: is told how far it is.
    """
    count, dimension = max(1, store.count()), store.dimension()
    main = None
    queries = np.empty((0, dimension), np.float32)
    if choice.factory:
        trained = choice.kind == 'trained'
        main = Approximate.read(Path(choice.factory)) if trained else Approximate.create(choice.factory, dimension)
        sample = sampled([store], main)
        watch('training', 0.0)
        main.train(sample)
        queries = calibration(sample, asked)
    index = LayeredIndex(dimension, store.vectors_of, main)
    best = Best(queries)
    done = 0
    for keys, rows in store.vectors():
        best.look(rows, done)
        index.fill(keys, rows)
        done += len(keys)
        watch('filling', min(1.0, done / count))
    if main is not None and len(main):
        watch('tuning', 0.0)
        # Made queries are a little easier than captions: what is found of them has to be half as far from everything.
        tune(main, queries, best.slots(), recall if len(asked) >= QUERIES else (1 + recall) / 2)
    return index


def sampled(stores: Sequence[Stored], main: Approximate, most: int | None = None) -> NDArray[np.float32]:
    """Vectors from everywhere in some stores, [N, D], as many as `main` needs to learn from.

    Fewer if it has learnt already, and about `most` at most.
    """
    wanted = _SAMPLE if main.trained else max(main.lists * _SAMPLE_PER_LIST, _SAMPLE)
    wanted = wanted if most is None else max(main.lists, min(wanted, most))
    step = max(1, sum(store.count() for store in stores) // wanted)
    blocks = [rows for store in stores for _, rows in store.vectors(step)]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def calibration(sample: NDArray[np.float32], asked: NDArray[np.float32]) -> NDArray[np.float32]:
    """`QUERIES` queries, [Q, D]: the latest real ones, and made ones where those are fewer.

    A made query points in a random direction, turned towards a stored vector until their cosine is that of a caption
    and its picture. Clusters have to be searched for it as for a caption (measured: benchmarks/README.md).
    """
    real = asked[-QUERIES:]
    missing = QUERIES - len(real)
    if missing <= 0 or not len(sample):
        return real
    rng = np.random.default_rng(0)
    one = sample[rng.integers(0, len(sample), missing)]
    noise = rng.normal(size=one.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    made = _COSINE * one + np.sqrt(1 - _COSINE**2) * noise
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return np.concatenate([real, made.astype(np.float32)])


class Best:
    """The true ten best of some queries, found while the vectors go by."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self._queries = queries
        self._scores = np.full((len(queries), PLACES), -np.inf, dtype=np.float32)
        self._slots = np.full((len(queries), PLACES), -1, dtype=np.int64)

    def look(self, rows: NDArray[np.float32], start: int) -> None:
        """[N, D] that stand in the slots from `start` on."""
        if not len(self._queries):
            return
        scores = self._queries @ rows.T
        # Soon only few rows are among the best of any query, and only those are worth sorting.
        better = np.flatnonzero((scores > self._scores.min(axis=1, keepdims=True)).any(axis=0))
        scores = np.concatenate([self._scores, scores[:, better]], axis=1)
        slots = np.concatenate([self._slots, np.broadcast_to(start + better, (len(scores), len(better)))], axis=1)
        top = np.argpartition(-scores, PLACES - 1, axis=1)[:, :PLACES]
        self._scores, self._slots = np.take_along_axis(scores, top, 1), np.take_along_axis(slots, top, 1)

    def slots(self) -> NDArray[np.int64]:
        """[Q, 10], in no order."""
        return self._slots


def tune(main: Approximate, queries: NDArray[np.float32], truth: NDArray[np.int64], recall: float) -> None:
    """Set the smallest effort whose recall of the ten best reaches `recall`, else the one with the best recall.

    A lossy kind may also need more candidates to be scored again: `rerank` grows only when no effort is enough.

    Args:
        main: is given its `effort`, `rerank` and `recall`.
        queries: [Q, D].
        truth: slots of the ten best of each, [Q, 10]; -1 where there are fewer.
        recall: to reach.
    """
    if main.exact and main.mapped and (truth >= 0).all():
        # What is in a list that is searched is found: no search is needed to know how much that is.
        ranks = main.ranks(queries, truth)
        reached_by = [(float((ranks < effort).mean()), effort) for effort in main.efforts]
        main.recall, main.effort = next((pair for pair in reached_by if pair[0] >= recall), reached_by[-1])
        main.rerank = 1
        return
    best = (0.0, main.efforts[-1], 1)
    for rerank in (1,) if main.exact else RERANKS:
        count = PLACES * rerank + SPARE
        for effort in main.efforts:
            _, slots, _ = main.search(queries, count, effort)
            found = slots[:, :PLACES] if main.exact else slots
            reached = [np.isin(real[real >= 0], some).mean() for real, some in zip(truth, found, strict=True)]
            if float(np.mean(reached)) > best[0]:
                best = (float(np.mean(reached)), effort, rerank)
            if best[0] >= recall:
                break
        if best[0] >= recall:
            break
    main.recall, main.effort, main.rerank = best

"""The search effort of an index, tuned to a recall.

Tuning asks with queries like those that will come. Texts lie apart from pictures, so that an effort tuned with stored
pictures finds less for a text. Real queries count first; where there are few, made ones lie as far from the stored
vectors as captions do.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from clipflow.index.approximate import SPARE, Approximate
from clipflow.index.base import TIE, Ranked, Stored
from clipflow.index.flat import cosines
from clipflow.index.layered import LayeredIndex
from clipflow.index.slots import Slots

QUERIES = 200
"""With so many the recall is known to about 0.005 (standard deviation at 0.98, ten places each)."""
PLACES = 10
RERANKS = (1, 2, 4)
"""Of a lossy kind so many times the usual candidates are scored with the stored vectors; the first that is enough."""
SAMPLE = 39 * 256
"""For the 256 centres of a code of product quantisation, and to make queries of."""
GROWN = 2
"""An effort is tuned again when the index holds so many times what it did; more vectors ask for more of it."""
_COSINE = 0.3
"""About that of a caption and its picture in CLIP."""

Watch = Callable[[str, float], None]
"""Is told a phase and how much of it is done, 0 to 1; may raise to stop the work."""


class Held(Protocol):
    """Which documents a FAISS part holds; that may change while it is tuned."""

    def keys_at(self, slots: Slots) -> NDArray[np.int64]:
        """The key in each of [N] slots, -1 for a dead one."""
        ...

    def vectors_at(self, keys: NDArray[np.int64], slots: Slots) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of [N] keys in [N] slots those that exist, [n], and their stored vectors, [n, D]."""
        ...

    def holds(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of [N] keys can be found in the part."""
        ...


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
    """The true ten best of some `queries`, [Q, D], found while the vectors go by."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self.queries = queries
        self._scores = np.full((len(queries), PLACES), -np.inf, dtype=np.float32)
        self.keys = np.full((len(queries), PLACES), -1, dtype=np.int64)
        """[Q, 10], in no order; -1 where there are fewer."""

    def look(self, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """[n] and [n, D]."""
        if not len(self.queries) or not len(rows):
            return
        # Not NumPy's product: its threads serve one caller at a time, and searches would wait for this one.
        near, places = faiss.knn(self.queries, rows, min(PLACES, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([self._scores, near], axis=1)
        known = np.concatenate([self.keys, keys[places]], axis=1)
        top = np.argpartition(-scores, PLACES - 1, axis=1)[:, :PLACES]
        self._scores, self.keys = np.take_along_axis(scores, top, 1), np.take_along_axis(known, top, 1)

    def forget(self, held: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> None:
        """Ask no longer for keys that are not `held` any more."""
        gone = ~held(self.keys.ravel()).reshape(self.keys.shape)
        self._scores[gone], self.keys[gone] = -np.inf, -1

    def recall(self, found: Iterable[Ranked]) -> float:
        """Of what each query has found; of queries that nothing is asked for any more, all.

        Equal vectors stand for each other. A vector that has been replaced in the store since has another cosine.
        """
        shares = []
        for (keys, scores), best, known in zip(found, self._scores, self.keys, strict=True):
            asked = known >= 0
            if there := int(asked.sum()):
                right = max(int(np.sum(scores >= best[asked].min() - TIE)), int(np.isin(known[asked], keys).sum()))
                shares.append(min(there, right) / there)
        return float(np.mean(shares)) if shares else 1.0


def aim(recall: float, asked: NDArray[np.float32]) -> float:
    """What to reach with the queries of `calibration`.

    The smallest effort that is enough for 200 queries is often too small for others: a quarter of what may be missed is
    left over (measured: benchmarks/README.md). Made queries are a little easier than captions, too: of them, half.
    """
    share = 1 / 4 if len(asked) >= QUERIES else 1 / 2
    return recall + share * (1 - recall)


def tune(index: LayeredIndex, best: Best, asked: NDArray[np.float32], wanted: float) -> None:
    """Set the effort of the FAISS part of an index; `best` is of what is in that part. See `aim` and `smallest`."""
    main = index.main
    assert main is not None
    recall = aim(wanted, asked)
    slots = index.table.slots(best.keys.ravel()).reshape(best.keys.shape)
    if main.exact and main.mapped and ((slots >= 0) & (slots < len(main))).all():
        # What is in a list that is searched is found: no search is needed to know how much that is.
        ranks = main.ranks(best.queries, slots)
        reached = [(float((ranks < effort).mean()), effort) for effort in main.efforts]
        main.recall, main.effort = next((pair for pair in reached if pair[0] >= recall), reached[-1])
        main.rerank, main.tuned_at = 1, len(main)
    else:
        smallest(main, best, recall, index)
    main.aimed, main.real = wanted, len(asked)  # last: who sees them sees the effort that they led to


def smallest(main: Approximate, best: Best, recall: float, held: Held) -> None:
    """Set the smallest effort whose recall of the ten best reaches `recall`, else the one with the best recall.

    A lossy kind may also need more candidates to be scored again: `rerank` grows only when no effort is enough.

    Args:
        main: is given its `effort`, `rerank`, `recall` and `tuned_at`.
        best: of the queries; forgets what is written anew or deleted meanwhile, which no effort could find.
        recall: to reach.
        held: by `main`.
    """
    reached = (-1.0, main.efforts[-1], 1)
    for rerank in (1,) if main.exact else RERANKS:
        for effort in main.efforts:
            ranked = _found(main, best.queries, (effort, rerank), held)
            best.forget(held.holds)
            found = best.recall(ranked)
            if found > reached[0]:
                reached = (found, effort, rerank)
            if found >= recall:
                break
        if reached[0] >= recall:
            break
    main.recall, main.effort, main.rerank = reached
    main.tuned_at = len(main)


def _found(main: Approximate, queries: NDArray[np.float32], how: tuple[int, int], held: Held) -> list[Ranked]:
    """For each query the keys that a search with an effort and a `rerank` scores, and cosines of the stored vectors.

    Keys count by themselves: a vector that was replaced since it was read into the index has another cosine.
    """
    effort, rerank = how
    scores, slots, _ = main.search(queries, main.page(PLACES) * rerank + SPARE, effort)
    ranked: list[Ranked] = []
    for query, about, row in zip(queries, scores, slots, strict=True):
        there = row >= 0
        keys = held.keys_at(row[there])
        alive = keys >= 0
        if main.exact:
            ranked.append((keys[alive][:PLACES], about[there][alive][:PLACES].astype(np.float64)))
        else:
            keys, rows = held.vectors_at(keys[alive], row[there][alive])
            ranked.append((keys, cosines(query, rows)))
    return ranked


def retune(store: Stored, index: LayeredIndex, asked: NDArray[np.float32], recall: float, watch: Watch) -> None:
    """Tune the effort of an index that serves, with queries and a recall as for `build.build`."""
    main = index.main
    assert main is not None
    best = Best(calibration(store.sample(SAMPLE), asked))
    done, count = 0, max(1, store.count())
    for keys, rows in store.vectors():
        slots = index.table.slots(keys)
        merged = (slots >= 0) & (slots < len(main))
        best.look(keys[merged], rows[merged])
        done += len(keys)
        watch('tuning', min(1.0, done / count))
    tune(index, best, asked, recall)

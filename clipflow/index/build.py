"""Building an index from the store: training, filling, and tuning of the search effort to a recall."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow.index.approximate import Approximate
from clipflow.index.base import Stored
from clipflow.index.choice import Choice
from clipflow.index.layered import LayeredIndex
from clipflow.index.tuning import SAMPLE, Best, Watch, calibration, tune

_SAMPLE_PER_LIST = 64


def build(store: Stored, choice: Choice, asked: NDArray[np.float32], recall: float, watch: Watch) -> LayeredIndex:
    """An index of everything in the store.

    Args:
        store: what it is built from; may change meanwhile.
        choice: the kind.
        asked: late queries, [Q, D]; few are filled up with made ones.
        recall: of the ten best, to tune the effort to.
        watch: is told how far it is.
    """
    count, dimension = max(1, store.count()), store.dimension()
    main = None
    queries = np.empty((0, dimension), np.float32)
    if choice.factory:
        trained = choice.kind == 'trained'
        main = (
            Approximate.read(Path(choice.factory), dimension)
            if trained
            else Approximate.create(choice.factory, dimension)
        )
        sample = sampled([store], main)
        watch('training', 0.0)
        main.train(sample)
        queries = calibration(sample, asked)
    index = LayeredIndex(dimension, store.vectors_of, main)
    best = Best(queries)
    done = 0
    for keys, rows in store.vectors():
        best.look(keys, rows)
        index.fill(keys, rows)
        done += len(keys)
        watch('filling', min(1.0, done / count))
    if main is not None and len(main):
        watch('tuning', 0.0)
        tune(index, best, asked, recall)
    return index


def sampled(stores: Sequence[Stored], main: Approximate, most: int | None = None) -> NDArray[np.float32]:
    """Vectors from everywhere in some stores, [N, D], as many as `main` needs to learn from.

    Fewer if it has learnt already, and about `most` at most.
    """
    wanted = SAMPLE if main.trained else max(main.lists * _SAMPLE_PER_LIST, SAMPLE)
    wanted = wanted if most is None else max(main.lists, min(wanted, most))
    counts = [store.count() for store in stores]
    shares = [-(-wanted * count // max(1, sum(counts))) for count in counts]
    blocks = [store.sample(share) for store, share in zip(stores, shares, strict=True) if share]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)

"""Which pairs stand in one batch: by chance, or each beside those that the model takes for it most easily.

Everything drawn is a function of the seed, the epoch and the example, so that a resumed run draws the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Vectors = NDArray[np.float32]

_ORDER, _CAPTION, _REJECTED = range(3)


def shuffled(count: int, seed: int, epoch: int) -> Places:
    """The order of `count` examples in an epoch."""
    return np.random.default_rng((seed, epoch, _ORDER)).permutation(count)


def drawn_text(texts: Sequence[str], seed: int, epoch: int, example: int) -> str:
    """One of the texts."""
    return texts[int(np.random.default_rng((seed, epoch, _CAPTION, example)).integers(len(texts)))]


def drawn_rejected(places: Sequence[int], most: int, seed: int, epoch: int, example: int) -> list[int]:
    """At most so many of the places."""
    if len(places) <= most:
        return list(places)
    rng = np.random.default_rng((seed, epoch, _REJECTED, example))
    return [places[int(number)] for number in sorted(rng.choice(len(places), most, replace=False))]


def hard(order: Places, images: Vectors, texts: Vectors, alike: Sequence[NDArray[np.int64]], beside: int) -> Places:
    """Bring each example's hardest negatives behind it, as far as they are not placed yet.

    How hard a pair is for another: the larger cosine of one's text and the other's picture. After Robinson et al.
    2021, arXiv:2010.04592, in that hard ones are in the same batch, but chosen once an epoch.

    Args:
        order: of N examples.
        images: unit vectors of their pictures, [N, D].
        texts: unit vectors of their texts, [N, D].
        alike: arrays [N]; two examples with the same number in one of them are no negatives of each other.
        beside: how many hard ones each gets.
    """
    free = np.ones(len(order), dtype=bool)
    found: list[int] = []
    for seed in order.tolist():
        if not free[seed]:
            continue
        free[seed] = False
        found.append(seed)
        hardness = np.maximum(images @ texts[seed], texts @ images[seed])
        usable = free.copy()
        for numbers in alike:
            usable &= numbers != numbers[seed]
        hardness[~usable] = -np.inf
        best = np.argsort(-hardness, kind='stable')[: min(beside, int(usable.sum()))]
        free[best] = False
        found += best.tolist()
    return np.array(found, dtype=np.int64)


def batches(order: Places, size: int) -> list[Places]:
    """Cut into batches of at most `size`, as equal as can be: no pair is lost, and no batch is tiny."""
    return np.array_split(order, -(-len(order) // size))

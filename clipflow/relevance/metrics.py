"""Measures of rankings, in plain NumPy: Q queries, N items, R right items of a query at most.

Ranks begin at 1. Ties are counted against the query: whatever scores as much as a right item stands before it, so that
a model that gives every item the same score gets nothing for the order in which items happen to lie.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
"""Ranks of the right items of each query, ascending, [Q, R]; 0 where a query has fewer."""

Scores = Callable[[slice], NDArray[np.floating]]
"""Of a range of queries with all items, [q, N]."""

Found = tuple[NDArray[np.int64], NDArray[np.floating]]
"""The best items of a query, as places, and their scores, in the order in which they were given."""

TIE = 1e-6
"""Cosines closer than this are equal, as everywhere in clipflow: float32 sums differ by their order."""
MEDIAN = 'median rank'
RECALLS = (1, 5, 10)
GAIN = 10
_SCORES = 1 << 23
"""In memory at once: 32 MB in float32."""


def cosines(queries: NDArray[np.float32], items: NDArray[np.float32]) -> Scores:
    """Of [Q, D] with all of [N, D]."""
    return lambda part: queries[part] @ items.T


def grouped(owners: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The places at which each of `count` owners stands in `owners`, ascending, [count, R], -1 where it has fewer."""
    order = np.argsort(owners, kind='stable')
    sizes = np.bincount(owners, minlength=count)
    places = np.full((count, int(sizes.max())), -1, np.int64)
    places[owners[order], np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = order
    return places


def ranks_of(scores: Scores, right: NDArray[np.int64], items: int, tie: float = TIE) -> Ranks:
    """Ranks in blocks of queries, so that the memory does not grow with Q.

    Args:
        scores: of queries with items.
        right: places of the right items of each query, [Q, R], -1 where a query has fewer.
        items: N.
        tie: scores closer than this are equal.
    """
    step = max(1, _SCORES // max(1, items))
    blocks = [slice(start, start + step) for start in range(0, len(right), step)]
    found = [_ranks(scores(block), right[block], tie) for block in blocks]
    return np.concatenate(found) if found else np.zeros(right.shape, np.int64)


def _ranks(scores: NDArray[np.floating], right: NDArray[np.int64], tie: float) -> Ranks:
    """Of the i-th best right item: i, and the wrong items that score as much or more."""
    there = right >= 0
    own = np.take_along_axis(scores, np.where(there, right, 0), axis=1)
    own = -np.sort(-np.where(there, own, -np.inf), axis=1)
    bounds = own - tie
    ranks = np.zeros(right.shape, np.int64)
    for place in range(right.shape[1]):
        bound = bounds[:, place, None]
        wrong = (scores >= bound).sum(axis=1) - (own >= bound).sum(axis=1)
        ranks[:, place] = np.where(np.isfinite(own[:, place]), place + 1 + wrong, 0)
    return ranks


def ranks_found(found: Sequence[Found], right: NDArray[np.int64], items: int) -> Ranks:
    """Ranks in lists that hold the best items only, as an approximate index or a service gives them.

    Args:
        found: of each query.
        right: see `ranks_of`.
        items: N: the rank of what was not found, the worst there is.
    """
    ranks = np.zeros(right.shape, np.int64)
    for row, (places, scores) in enumerate(found):
        wanted = right[row][right[row] >= 0]
        is_right = np.isin(places, wanted)
        wrong = np.cumsum(~is_right)
        several = list[int]()
        for at in np.flatnonzero(is_right).tolist():
            # Those behind it with its score might as well have come before.
            last = at
            while last + 1 < len(places) and abs(scores[last + 1] - scores[at]) < TIE:
                last += 1
            several.append(len(several) + 1 + int(wrong[last]))
        several += [items] * (len(wanted) - len(several))
        ranks[row, : len(several)] = several
    return ranks


def retrieval(ranks: Ranks) -> dict[str, NDArray[np.float64]]:
    """What each query contributes to each measure, [Q]; `bootstrap.total` makes one number of it.

    - `R@k`: 1 if a right item is among the first k. The Recall@k of the papers on captions (Hodosh, Young and
      Hockenmaier 2013, section 5.2; Karpathy and Fei-Fei 2015, section 4.1), where one of a picture's captions is
      enough.
    - `median rank`: the rank of the first right item (same sources); the median over queries is taken.
    - `MRR`: 1 / that rank (Voorhees 1999, "The TREC-8 Question Answering Track Report", section 3).
    - `nDCG@10`: sum of 1 / log2(1 + rank) over right items among the first 10, divided by the largest that it can be
      (Järvelin and Kekäläinen 2002, with gains of 0 and 1 and the discount of Burges et al. 2005).
    """
    first = ranks[:, 0]
    values = {f'R@{k}': (first <= k).astype(np.float64) for k in RECALLS}
    return values | {MEDIAN: first.astype(np.float64), 'MRR': 1 / first, f'nDCG@{GAIN}': _gain(ranks)}


def _gain(ranks: Ranks) -> NDArray[np.float64]:
    discounts = 1 / np.log2(1 + np.arange(1, GAIN + 1))
    shown = (ranks > 0) & (ranks <= GAIN)
    gained = np.where(shown, 1 / np.log2(1 + np.maximum(ranks, 1)), 0.0).sum(axis=1)
    count = np.minimum((ranks > 0).sum(axis=1), GAIN)
    gain: NDArray[np.float64] = gained / np.cumsum(discounts)[count - 1]
    return gain


def zero_shot(ranks: Ranks, classes: int) -> dict[str, NDArray[np.float64]]:
    """`top-1` and `top-5`: 1 if the right class of a picture is among the first 1 or 5, [Q].

    The accuracy of Radford et al. 2021, section 3.1. Of five classes or fewer there is no top-5.
    """
    return {f'top-{k}': (ranks[:, 0] <= k).astype(np.float64) for k in (1, 5) if k < classes}

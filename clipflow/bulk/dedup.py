"""Near-duplicates in a folder of vectors: what has a cosine of a threshold or more, and what hangs together by that.

Up to `EXACT` vectors every pair is compared, in blocks. Of more, an index with clusters proposes pairs, and the vectors
as they are decide. Equal vectors are one from the beginning, so that a picture that comes a thousand times is searched
once.
"""

from collections.abc import Callable, Iterator

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

from clipflow.bulk.mapped import Mapped
from clipflow.errors import InvalidParameter
from clipflow.index.approximate import Approximate
from clipflow.index.build import sampled
from clipflow.index.choice import Wanted, choose

EXACT = 100_000
_EXACT_BLOCK = 4096
"""Rows of each side of a product: 64 MB of cosines."""
_QUERIES = 256
"""Of one search in the index."""
_PROBES = 8
"""Clusters that are searched for each vector."""
_MARGIN = 0.02
"""What a cosine of vectors in 8 bits may differ by."""
_ROWS = 4096

Places = NDArray[np.int64]


class Components:
    """What hangs together, of N: a forest in which every root is the smallest of its tree (union-find, in arrays)."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def roots(self, places: Places) -> Places:
        """The smallest of the component of each of [N]."""
        while True:
            above = self._parent[places]
            if np.array_equal(above, places):
                return places
            places = above

    def join(self, some: Places, others: Places) -> None:
        """Each of [N] hangs together with the one at the same position of the others."""
        while True:
            some, others = self.roots(some), self.roots(others)
            apart = some != others
            if not apart.any():
                return
            some, others = np.minimum(some, others)[apart], np.maximum(some, others)[apart]
            # Of several for one root the smallest wins; the next round sees to the others.
            np.minimum.at(self._parent, others, some)

    def labels(self) -> Places:
        """The smallest of the component of every one, [N]."""
        return self.roots(np.arange(len(self._parent)))


def components(source: Mapped, threshold: float, memory: int, told: Callable[[int], None]) -> Places:
    """For each of N vectors the first of what it hangs together with, [N]; itself, where it is alone.

    Args:
        source: the folder.
        threshold: cosine from which on two are near-duplicates.
        memory: bytes that an index may take, of more than `EXACT` vectors.
        told: hears how many more vectors were compared with all.

    Raises:
        InvalidParameter: the threshold is out of range, or the memory is too small.
    """
    if not 0 < threshold <= 1:
        raise InvalidParameter('--threshold is a cosine above 0, to 1')
    found = Components(source.count())
    single = _without_equals(source, found)
    told(source.count() - len(single))
    pairs = _all_pairs(source, single, threshold, told)
    if len(single) > EXACT:
        pairs = _proposed(source, single, threshold, memory, told)
    for some, others in pairs:
        found.join(some, others)
    return found.labels()


def _without_equals(source: Mapped, found: Components) -> Places:
    """The places of vectors without those that are equal to an earlier one, bit for bit; these are joined."""
    hashes = np.empty(source.count(), dtype=np.uint64)
    for places, rows in source.vectors():
        hashes[places] = [xxhash.xxh3_64_intdigest(row.data) for row in rows]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    originals = first[inverse[copies]]
    other = np.zeros(len(copies), dtype=bool)
    for start in range(0, len(copies), _ROWS):
        part = slice(start, start + _ROWS)
        # Of 64 bits two that differ may be alike.
        other[part] = (source.vectors_of(copies[part])[1] != source.vectors_of(originals[part])[1]).any(axis=1)
    found.join(originals[~other], copies[~other])
    return np.setdiff1d(np.arange(len(hashes)), copies[~other], assume_unique=True)


Pairs = Iterator[tuple[Places, Places]]


def _all_pairs(source: Mapped, places: Places, threshold: float, told: Callable[[int], None]) -> Pairs:
    """Exact: the product of every block with itself and those after it."""
    for start in range(0, len(places), _EXACT_BLOCK):
        some, rows = source.vectors_of(places[start : start + _EXACT_BLOCK])
        for other in range(start, len(places), _EXACT_BLOCK):
            others, columns = (
                (some, rows) if other == start else source.vectors_of(places[other : other + _EXACT_BLOCK])
            )
            # As one list of positions: two, as `nonzero` has them, take twice the memory where all are alike.
            near = np.flatnonzero(rows @ columns.T >= threshold)
            yield some[near // len(others)], others[near % len(others)]
        told(len(some))


def _proposed(source: Mapped, places: Places, threshold: float, memory: int, told: Callable[[int], None]) -> Pairs:
    """What an index finds near each vector, if the vectors themselves are that near."""
    choice = choose(Wanted(memory=memory), len(places), source.dimension())
    if choice.kind != 'ivf':
        raise InvalidParameter(
            f'the vectors do not fit in {memory:,} bytes of memory, not even with 8 bits a number; give more --memory'
        )
    main = Approximate.create(choice.factory, source.dimension())
    main.train(sampled([source], main))
    for start in range(0, len(places), _EXACT_BLOCK):
        main.add(source.vectors_of(places[start : start + _EXACT_BLOCK])[1])
    options = faiss.SearchParametersIVF(nprobe=min(_PROBES, main.lists))
    radius = threshold - (1e-6 if main.exact else _MARGIN)
    for start in range(0, len(places), _QUERIES):
        some, rows = source.vectors_of(places[start : start + _QUERIES])
        limits, _, slots = main.faiss.range_search(rows, radius, params=options)
        queries = np.repeat(np.arange(len(some)), np.diff(limits).astype(np.int64))
        # Every pair is found from both sides, or from one that does not know of the other.
        apart = places[slots] != some[queries]
        queries, others = queries[apart], places[slots[apart]]
        for part in range(0, len(queries), _ROWS):
            one, two = queries[part : part + _ROWS], others[part : part + _ROWS]
            near = np.einsum('nd,nd->n', rows[one], source.vectors_of(two)[1]) >= threshold
            yield some[one][near], two[near]
        told(len(some))


def counted(labels: Places) -> tuple[int, int]:
    """How many groups of two and more there are, and how many members they have beside one of each."""
    more = labels[labels != np.arange(len(labels))]
    return len(np.unique(more)), len(more)

"""A FAISS index over slots: built once, added to in small pieces, never removed from.

FAISS numbers vectors in the order of their coming, and so do slots. Search effort goes along with each call; nothing of
a request is left in the index.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clipflow.errors import DimensionMismatch, InvalidParameter
from clipflow.index.base import Effort
from clipflow.index.choice import NAMED
from clipflow.index.slots import Slots

EVERYTHING = 1 << 62
"""An effort with which everything is compared."""
PAGE = 64
"""As many candidates are taken for a smaller limit, so that the first pages are parts of one list."""
SPARE = 8
"""Candidates beyond that: some may be dead, or tie with the last."""
EFFORTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
"""Steps of `nprobe` and `ef_search` that tuning tries."""
_ROUNDS = 10
"""Of k-means; more improve little and take as much longer."""
_BUILD_EFFORT = 200
"""`efConstruction` of a graph. FAISS takes 40, and its searches then need twice the effort for the same recall."""
_KEPT_OPTIONS = 100
_NEIGHBOURS = 64
"""Of a vector in the lowest layer of a graph; all are compared when it is visited."""
_PIECE_SECONDS = 0.02
"""Searches wait for one piece of an addition: well below the 50 ms that they may wait for writes."""


def cause_of(error: Exception) -> str:
    """What FAISS says, without the C++ signature before it."""
    return str(error).rpartition(': ')[2] or str(error)


def save(index: Any, path: Path) -> None:
    """Write a FAISS index; raises OSError if that fails."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS's word for any failure to write
        raise OSError(cause_of(error)) from None


class Turns:
    """Many readers or one writer at a time.

    A waiting writer goes before new readers, and those who waited for it go before the next one: a writer with many
    short turns, one right after the other, holds up nobody for longer than one of them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._waiting = 0
        self._owed = 0  # turns of readers who waited for the last writer
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Among other readers."""
        with self._changed:
            if self._writing:
                self._wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._changed.wait_for(lambda: not self._writing)
        finally:
            self._waiting -= 1
            self._owed = max(0, self._owed - 1)
            if not self._owed:
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._owed)
            self._writing = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._owed = self._waiting
                self._changed.notify_all()


class Approximate:
    """One FAISS index of unit vectors, inner product, slots from 0 on.

    Args:
        index: empty or filled; trained, where its kind needs that.
        factory: the string that it was made from.

    `effort` is the `nprobe` or `ef_search` of a request that gives none.
    """

    def __init__(self, index: Any, factory: str) -> None:
        self.faiss = index
        self.factory = factory
        self.effort = 16
        self.rerank = 1  # so many times the limit are candidates, of a kind that is not exact
        self.recall = 0.0  # as measured when both were tuned
        self.tuned_at = 0  # vectors that there were then
        self.aimed = 0.0  # the recall that was asked for then
        self.real = 0  # queries among those it was tuned with that somebody had asked
        ivf = faiss.try_extract_index_ivf(index)
        self.lists = int(ivf.nlist) if ivf is not None else 0
        self._graph = 'HNSW' in factory and ivf is None
        # Else the lists are found through an index too, which may miss some.
        self._all_lists = ivf is None or isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexFlat)
        self._transformed = isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
        # Whether FAISS keeps the vectors as they are.
        self.exact = bool(re.fullmatch(r'(IVF\w+,|HNSW\d+,)?Flat|HNSW\d+', factory))
        self._turns = Turns()
        self._piece = 32
        self._ready: dict[tuple[int, int], Any] = {}

    @classmethod
    def create(cls, factory: str, dimension: int) -> 'Approximate':
        """An empty index of a kind.

        Raises:
            InvalidParameter: FAISS knows no such kind. Whether it can serve is found out by `trial`.
        """
        try:
            index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        except (RuntimeError, AssertionError):
            raise InvalidParameter(
                f'{factory!r} is not a kind of index: {", ".join(NAMED)}, or a factory string of FAISS that fits '
                f'{dimension} dimensions'
            ) from None
        if 'IDMap' in factory or 'Refine' in factory or re.search(r',RFlat', factory):
            raise InvalidParameter(f'leave IDMap and refinement out of {factory!r}: clipflow does both itself')
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.set_direct_map_type(faiss.DirectMap.Array)  # for `rows`
        inner = faiss.downcast_index(index if lists is None else lists)
        if isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        if isinstance(inner, faiss.IndexHNSW):
            inner.hnsw.efConstruction = _BUILD_EFFORT
        if hasattr(inner, 'do_polysemous_training'):
            # Minutes of annealing, for a kind of search that is not used here.
            inner.do_polysemous_training = False
            inner.pq.cp.min_points_per_centroid = 1
            inner.pq.cp.niter = _ROUNDS
        return cls(index, factory)

    @classmethod
    def read(cls, path: Path, dimension: int = 0) -> 'Approximate':
        """A trained index without vectors, as `write` has left it.

        Args:
            path: of the file.
            dimension: of the vectors, if it is known.

        Raises:
            InvalidParameter: there is none, it cannot be read, or has vectors.
            DimensionMismatch: it is one of other vectors.
        """
        try:
            factory = path.with_suffix('.factory').read_text(encoding='utf-8')
            found = cls(faiss.read_index(str(path)), factory)
        except (OSError, RuntimeError):
            raise InvalidParameter(
                f'{path} is no trained index; make one with `clipflow quantizer`, or unset CLIPFLOW_INDEX_TRAINED'
            ) from None
        if len(found):
            raise InvalidParameter(
                f'{path} has {len(found):,} vectors in it; make an index without any with `clipflow quantizer`'
            )
        if dimension and found.faiss.d != dimension:
            raise DimensionMismatch(
                f'{path} was trained with vectors of {found.faiss.d} dimensions, not of {dimension}; make another one '
                'with `clipflow quantizer`, or unset CLIPFLOW_INDEX_TRAINED'
            )
        return found

    def write(self, path: Path) -> None:
        """Put a trained index without vectors into a file, and its kind beside it."""
        faiss.write_index(self.faiss, str(path))
        path.with_suffix('.factory').write_text(self.factory, encoding='utf-8')

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    @property
    def trained(self) -> bool:
        """Whether it has learnt its clusters and codes, or has none."""
        return bool(self.faiss.is_trained)

    @property
    def efforts(self) -> list[int]:
        """The steps that make sense here."""
        return [step for step in EFFORTS if self.lists == 0 or step < self.lists] + [self.lists or EFFORTS[-1]]

    def train(self, sample: NDArray[np.float32]) -> None:
        """Learn clusters and codes from [N, D], where the kind has any.

        Raises:
            InvalidParameter: the kind cannot be learnt from these.
        """
        if not self.trained:
            ivf = faiss.try_extract_index_ivf(self.faiss)
            if ivf is not None:
                ivf.cp.niter = _ROUNDS
                ivf.cp.min_points_per_centroid = 1  # small collections are told so in /status, not on stdout
                ivf.cp.max_points_per_centroid = 64
            try:
                self.faiss.train(sample)
            except RuntimeError as error:
                raise InvalidParameter(
                    f'{self.factory!r} cannot be learnt from {len(sample):,} vectors: {cause_of(error)}; choose '
                    'another CLIPFLOW_INDEX_KIND'
                ) from None

    def fill(self, rows: NDArray[np.float32]) -> None:
        """Add [N, D] under the next slots while nobody searches: at once, for in small pieces FAISS mostly waits."""
        with self._turns.writing():
            self.faiss.add(np.ascontiguousarray(rows))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add [N, D] under the next slots, in pieces between which searches run."""
        done = 0
        while done < len(rows):
            part = np.ascontiguousarray(rows[done : done + self._piece])
            with self._turns.writing():
                begun = time.perf_counter()
                self.faiss.add(part)
                taken = time.perf_counter() - begun
            done += len(part)
            if taken > _PIECE_SECONDS:
                self._piece = max(8, self._piece // 2)
            elif taken < _PIECE_SECONDS / 2 and len(part) == self._piece:
                self._piece = min(8192, self._piece * 2)

    def chosen(self, effort: Effort | None) -> int:
        """What a request asks for, or the effort that was tuned."""
        asked = None if effort is None else effort.nprobe if self.lists else effort.ef_search
        return self.effort if asked is None else asked

    def page(self, limit: int) -> int:
        """How many documents to look for when `limit` are wanted: the same for all limits up to a power of two.

        With another number a graph and a lossy kind find other documents, and five would not be the first of ten.
        """
        return max(PAGE, 1 << (limit - 1).bit_length())

    def is_cheap(self, count: int) -> bool:
        """Whether to find so many candidates is less work than to compare everything."""
        return count * (_NEIGHBOURS if self._graph else 1) < len(self)

    def search(
        self, queries: NDArray[np.float32], count: int, effort: int, only: Slots | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
        """The `count` best of [Q, D] as far as the effort goes; with `most` everything is compared.

        Returns:
            Cosines and slots, both [Q, count], slot -1 where nothing was found; and how many slots were searched.
        """
        selector, keep, known = None, None, len(self)
        if only is not None:
            mask = np.zeros(known, dtype=bool)
            mask[only[only < len(mask)]] = True
            keep = np.packbits(mask, bitorder='little')
            selector = faiss.IDSelectorBitmap(keep)
        rows = np.ascontiguousarray(queries)
        with self._turns.reading():
            total = len(self) if only is None else known  # what was added since is not in the mask
            searched, most = self.faiss, min(count, max(total, 1))
            if not self._all_lists and effort >= self.lists:
                return *self._in_every_list(rows, most, selector), total
            if self._graph and effort >= self.most:
                # Not every vector of a graph can be reached: the vectors themselves are compared.
                searched, rows = self._beneath(rows)
                options = None if selector is None else faiss.SearchParameters(sel=selector)
            elif selector is not None:
                options = self._options(effort, count, selector)
            else:
                options = self._usual(effort, count)
            scores, slots = searched.search(rows, most, params=options)
        return scores, slots, total

    def _beneath(self, rows: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
        """The vectors of a graph, as an index, and [Q, D] as it takes them."""
        graph = faiss.downcast_index(self.faiss)
        if self._transformed:
            rows = self._chained(rows, graph)
            graph = faiss.downcast_index(graph.index)
        return faiss.downcast_index(graph.storage), rows

    def _in_every_list(
        self, rows: NDArray[np.float32], count: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `search`, where the quantizer itself does not find all lists."""
        ivf = faiss.extract_index_ivf(self.faiss)
        if self._transformed:
            rows = self._chained(rows, faiss.downcast_index(self.faiss))
        near = np.ascontiguousarray(rows @ ivf.quantizer.reconstruct_n(0, self.lists).T)
        lists = np.tile(np.arange(self.lists), (len(rows), 1))
        scores = np.empty((len(rows), count), np.float32)
        slots = np.empty((len(rows), count), np.int64)
        options = faiss.SearchParametersIVF(nprobe=self.lists, **({} if selector is None else {'sel': selector}))
        pointers = [faiss.swig_ptr(array) for array in (rows, lists, near, scores, slots)]
        asked, *others = pointers
        ivf.search_preassigned_c(len(rows), asked, count, *others, False, options)
        return scores, slots

    @staticmethod
    def _chained(rows: NDArray[np.float32], index: Any) -> NDArray[np.float32]:
        """[Q, D] as the index behind its transformations takes them."""
        for number in range(index.chain.size()):
            rows = index.chain.at(number).apply(rows)
        return rows

    def _usual(self, effort: int, count: int) -> Any:
        """Options without a selector: kept, because making them takes a while and requests ask alike."""
        ready = self._ready
        found = ready.get((effort, count))
        if found is None:
            found = self._options(effort, count, None)
            self._ready = {**(ready if len(ready) < _KEPT_OPTIONS else {}), (effort, count): found}
        return found

    def rows(self, slots: Slots) -> NDArray[np.float32]:
        """The vectors of [N] slots, [N, D], of a kind that is `exact`."""
        with self._turns.reading():
            found: NDArray[np.float32] = self.faiss.reconstruct_batch(np.ascontiguousarray(slots))
            return found

    @property
    def mapped(self) -> bool:
        """Whether it has lists, all of which are compared to find the nearest, and knows in which of them a slot is."""
        lists = faiss.try_extract_index_ivf(self.faiss)
        return lists is not None and '_' not in self.factory and lists.direct_map.type != faiss.DirectMap.NoMap

    def ranks(self, queries: NDArray[np.float32], slots: Slots) -> NDArray[np.int64]:
        """Of a kind that is `exact` and `mapped`: for [Q, D] as which the list of each of [Q, N] slots is searched."""
        with self._turns.reading():
            quantizer = faiss.extract_index_ivf(self.faiss).quantizer
            _, order = quantizer.search(np.ascontiguousarray(queries), self.lists)
            _, own = quantizer.search(self.faiss.reconstruct_batch(slots.ravel()), 1)
        ranks = np.argsort(order, axis=1)
        found: NDArray[np.int64] = np.take_along_axis(ranks, own.reshape(slots.shape), axis=1)
        return found

    def _options(self, effort: int, count: int, selector: Any) -> Any:
        given = {} if selector is None else {'sel': selector}
        if self.lists:
            options = faiss.SearchParametersIVF(nprobe=min(effort, self.lists), **given)
        elif self._graph:
            options = faiss.SearchParametersHNSW(efSearch=max(effort, count), **given)
        else:
            options = faiss.SearchParameters(**given)
        return faiss.SearchParametersPreTransform(index_params=options) if self._transformed else options

    @property
    def most(self) -> int:
        """The effort beyond which nothing more is found; 0 where there is no effort to choose."""
        return self.lists or (len(self) if self._graph else 0)

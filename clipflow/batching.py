"""Documents to embeddings: collect what is to be encoded, pass it through the session in minibatches, put it back.

Texts pass sorted by length, padded to the longest of their minibatch and cut behind their end token where the model
allows it (tokens).
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.cache import Encoded, TextCache
from clipflow.errors import ClipflowError, Internal, InvalidDocument, Unavailable
from clipflow.preparation import check_parts, check_pixels
from clipflow.sessions.base import IMAGE, TEXT, TOWERS, OutOfMemory, Session, Tower, grey
from clipflow.templates import PLACE
from clipflow.tokens import Tokenizer
from clipflow.vectors import normalised, unit_vector
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.encoder')

STAGE = 'encoder'


@dataclass(frozen=True)
class Job:
    """Documents of one request, and the sentences with a place `{}` that their texts are put into."""

    docs: Sequence[Document]
    templates: Sequence[str] = ()


@dataclass(frozen=True)
class _Slot:
    """One place for a vector: a Document, or a part of a compound query."""

    doc: Document
    weight: float = 1.0


def _slots(doc: Document) -> list[_Slot]:
    """The Document itself, or the parts of a compound query."""
    if doc.text or doc.tensor is not None or doc.embedding is not None:
        return [_Slot(doc)]
    # DocArray's weight is 0 where none was given; a part that should have no effect is left out.
    return [_Slot(part, part.weight or 1.0) for part in wire.parts_of(doc)] or [_Slot(doc)]


def in_jobs(docs: Sequence[Document], templates: Sequence[str], most: int) -> Iterator[tuple[Job, int]]:
    """Documents in jobs of at most `most` items for the model, and the number of these items.

    A job has to be run before the next is asked for: of a Document that has more items the parts go before it.
    """
    some: list[Document] = []
    size = 0
    for doc in docs:
        # Each part is an item, and a text as many as there are templates.
        own = sum(len(templates) or 1 if slot.doc.text else 1 for slot in _slots(doc))
        if own > most and not wire.failed(doc) and len(_slots(doc)) <= wire.MAX_PARTS:
            yield from _pieces(doc, templates or (PLACE,), most)
            own = 0
        if some and size + own > most:
            yield Job(some, templates), size
            some, size = [], 0
        some.append(doc)
        size += own
    if some:
        yield Job(some, templates), size


def _pieces(doc: Document, templates: Sequence[str], most: int) -> Iterator[tuple[Job, int]]:
    """Jobs after which the Document, or each of its parts, has its embedding."""
    parts = [slot.doc for slot in _slots(doc) if slot.doc.embedding is None]
    items = iter([(part, form) for part in parts for form in (templates if part.text else (PLACE,))])
    totals: dict[int, NDArray[np.float64]] = {}
    while batch := list(itertools.islice(items, most)):
        pieces = [
            Document(id=doc.id, text=form.replace(PLACE, part.text))
            if part.text
            else Document(id=doc.id, tensor=part.tensor, weight=part.weight, tags=part.tags)
            for part, form in batch
        ]
        yield Job(pieces), len(pieces)
        for (part, _), piece in zip(batch, pieces, strict=True):
            if error := wire.error_of(piece):
                wire.fail(doc, error, STAGE)
            if piece.embedding is None:
                return  # nothing to encode is an error too, and found when it is the turn of the whole Document
            totals[id(part)] = totals.get(id(part), 0.0) + piece.embedding.astype(np.float64)
            if piece.tags.get(wire.TRUNCATED):
                part.tags[wire.TRUNCATED] = True
    for part in parts:
        part.embedding = normalised(totals[id(part)])


class Embedder:
    """Sets `embedding` (float32, unit norm) on Documents; one bad Document fails alone.

    Args:
        spec: of the model in `session`.
        session: where the model runs.
        batch_size: items that pass through the model at once; halved when the device has no memory for so many.
        cache: of texts that were encoded before; None: none.
    """

    def __init__(self, spec: ModelSpec, session: Session, batch_size: int, cache: TextCache | None = None) -> None:
        self.spec = spec
        self.session = session
        self.cache = TextCache(0) if cache is None else cache
        self.mark = wire.model_mark(spec.fingerprint, session.description['precision'])
        self._tokenizer = Tokenizer(spec)
        self.batch_size = batch_size
        self._used: dict[Tower, float] = dict.fromkeys(TOWERS, time.monotonic())

    def embed(self, docs: Iterable[Document], templates: Sequence[str] = ()) -> None:
        """Encode what is not encoded and not failed.

        Args:
            docs: prepared by the preprocessor; empty ones stay as they are.
            templates: sentences with a place `{}` that a text is put into; their embeddings are averaged.
        """
        self.embed_together([Job(list(docs), templates)])

    def embed_together(self, jobs: Sequence[Job]) -> None:
        """See `embed`: the Documents of several requests in the same minibatches."""
        found = [
            (doc, _slots(doc), job.templates)
            for job in jobs
            for doc in job.docs
            if not wire.failed(doc) and not wire.is_empty(doc)
        ]
        for doc, parts, _ in found:
            try:
                check_parts(len(parts))
                for part in parts:
                    self._check(part.doc)
            except ClipflowError as error:
                wire.fail(doc, type(error)(f'{doc.id!r}: {error.message}'), STAGE)
        sound = [(doc, parts, templates) for doc, parts, templates in found if not wire.failed(doc)]
        flat = [(part.doc, templates) for _, parts, templates in sound for part in parts if part.doc.embedding is None]
        self._encode_texts([(doc, templates or (PLACE,)) for doc, templates in flat if doc.text])
        self._encode_pictures([doc for doc, _ in flat if doc.tensor is not None])
        for doc, parts, _ in sound:
            self._finish(doc, parts)

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of N texts, [N, D]."""
        return np.stack([encoded.vector for encoded in self._encoded(texts)])

    def probe(self) -> None:
        """Ask both towers for something, past the cache; raises what they raise."""
        self._through_model(['a photo'])
        self._in_minibatches(IMAGE, 1, lambda _: self.session.encode_images(grey(self.spec)))

    def release_idle(self, seconds: float) -> None:
        """Free the towers that nobody has asked for so long; they come back with the next call that needs them."""
        for tower, used in list(self._used.items()):
            if time.monotonic() - used >= seconds:
                self.session.release(tower)
                del self._used[tower]

    @property
    def loaded(self) -> list[Tower]:
        """The towers that are in memory."""
        return sorted(self._used)

    def _check(self, doc: Document) -> None:
        if not math.isfinite(doc.weight or 0):
            raise InvalidDocument('the weight of a part is not finite')
        if doc.embedding is not None:
            doc.embedding = unit_vector(doc.embedding, self.session.dimension)
        elif doc.tensor is not None:
            check_pixels(doc, self.spec)
        elif not doc.text:
            raise InvalidDocument('a picture did not pass the preprocessor')

    def _encode_texts(self, texts: Sequence[tuple[Document, Sequence[str]]]) -> None:
        encoded = iter(self._encoded([form.replace(PLACE, doc.text) for doc, forms in texts for form in forms]))
        for doc, forms in texts:
            of_forms = [next(encoded) for _ in forms]
            doc.embedding = normalised(np.sum([one.vector for one in of_forms], axis=0, dtype=np.float64))
            if any(one.cut for one in of_forms):
                doc.tags[wire.TRUNCATED] = True

    def _encoded(self, texts: Sequence[str]) -> list[Encoded]:
        """Vectors of N texts; each text passes the model once, if it is not in the cache."""
        known = self.cache.get(texts)
        new = self._through_model([text for text in dict.fromkeys(texts) if text not in known])
        self.cache.put(new)
        known |= new
        return [known[text] for text in texts]

    def _through_model(self, texts: Sequence[str]) -> dict[str, Encoded]:
        tokens = self._tokenizer(texts)
        lengths = tokens.mask.sum(axis=1)
        fixed = self.spec.padding == 'fixed'
        vectors = np.empty((len(texts), self.session.dimension), dtype=np.float32)
        # Sorted by length, so that a long text does not make the short ones of its minibatch long.
        order = np.argsort(lengths, kind='stable')

        def encode(part: slice) -> None:
            rows = order[part]
            longest = tokens.ids.shape[1] if fixed else int(lengths[rows].max())
            vectors[rows] = self.session.encode_texts(tokens.ids[rows, :longest], tokens.mask[rows, :longest])

        self._in_minibatches(TEXT, len(texts), encode)
        return {
            text: Encoded(vector, bool(cut)) for text, vector, cut in zip(texts, vectors, tokens.truncated, strict=True)
        }

    def _encode_pictures(self, docs: list[Document]) -> None:
        def encode(part: slice) -> None:
            vectors = self.session.encode_images(np.stack([np.asarray(doc.tensor) for doc in docs[part]]))
            for doc, vector in zip(docs[part], vectors, strict=True):
                doc.embedding = vector

        self._in_minibatches(IMAGE, len(docs), encode)

    def _in_minibatches(self, tower: Tower, count: int, encode: Callable[[slice], object]) -> None:
        """Call `encode` on one slice after the other of `count` items."""
        start = 0
        while start < count:
            size = min(self.batch_size, count - start)
            try:
                encode(slice(start, start + size))
                start += size
            except OutOfMemory as error:
                if size == 1:
                    raise Unavailable('the device has no memory for a single item; is something else on it?') from None
                self.batch_size = (size + 1) // 2
                _log.warning('no memory for %d items at once, now %d: %s', size, self.batch_size, error)
            finally:
                self._used[tower] = time.monotonic()  # a call that fails may have brought it back

    def _finish(self, doc: Document, slots: list[_Slot]) -> None:
        if slots[0].doc is not doc:
            total = np.sum([slot.weight * slot.doc.embedding.astype(np.float64) for slot in slots], axis=0)
            if float(np.linalg.norm(total)) < 1e-6 * sum(abs(slot.weight) for slot in slots):
                wire.fail(doc, InvalidDocument(f'{doc.id!r}: the parts of the query cancel each other out'), STAGE)
                return
            doc.embedding = normalised(total)
            for slot in slots:
                slot.doc.pop('tensor', 'embedding')
                if slot.doc.tags.get(wire.TRUNCATED):
                    doc.tags[wire.TRUNCATED] = True
        if not np.isfinite(doc.embedding).all():
            wire.fail(doc, Internal(f'{doc.id!r}: the model gave a vector that is not finite'), STAGE)
            return
        doc.pop('tensor')
        doc.tags[wire.MODEL] = self.mark
        original = wire.detach(doc, wire.ORIGINAL)
        if original is not None:
            doc.content = original.content

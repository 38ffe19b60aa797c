"""Documents to embeddings: collect what is to be encoded, pass it through the session in minibatches, put it back.

Texts pass sorted by length, padded to the longest of their minibatch and cut behind their end token where the model
allows it (tokens).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.cache import Encoded, TextCache
from clipflow.errors import ClipflowError, DimensionMismatch, Internal, InvalidDocument
from clipflow.preparation import check_pixels
from clipflow.sessions.base import Session
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec

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


class Embedder:
    """Sets `embedding` (float32, unit norm) on Documents; one bad Document fails alone.

    Args:
        spec: of the model in `session`.
        session: where the model runs.
        batch_size: items that pass through the model at once.
        cache: of texts that were encoded before; None: none.
    """

    def __init__(self, spec: ModelSpec, session: Session, batch_size: int, cache: TextCache | None = None) -> None:
        self.spec = spec
        self.session = session
        self.cache = TextCache(0) if cache is None else cache
        self._mark = wire.model_mark(spec.fingerprint, session.description['precision'])
        self._tokenizer = Tokenizer(spec)
        self._batch_size = batch_size

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
                for part in parts:
                    self._check(part.doc)
            except ClipflowError as error:
                wire.fail(doc, type(error)(f'{doc.id!r}: {error.message}'), STAGE)
        sound = [(doc, parts, templates) for doc, parts, templates in found if not wire.failed(doc)]
        flat = [(part.doc, templates) for _, parts, templates in sound for part in parts if part.doc.embedding is None]
        self._encode_texts([(doc, templates or ('{}',)) for doc, templates in flat if doc.text])
        self._encode_pictures([doc for doc, _ in flat if doc.tensor is not None])
        for doc, parts, _ in sound:
            self._finish(doc, parts)

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of N texts, [N, D]."""
        return np.stack([encoded.vector for encoded in self._encoded(texts)])

    def probe(self) -> None:
        """Ask the model for something, past the cache; raises what it raises."""
        self._through_model(['a photo'])

    def _check(self, doc: Document) -> None:
        if not math.isfinite(doc.weight or 0):
            raise InvalidDocument('the weight of a part is not finite')
        if doc.embedding is not None:
            doc.embedding = self._ready(doc.embedding)
        elif doc.tensor is not None:
            check_pixels(doc, self.spec)
        elif not doc.text:
            raise InvalidDocument('a picture did not pass the preprocessor')

    def _ready(self, embedding: Any) -> NDArray[np.float32]:
        """A client's own vector, normalised."""
        try:
            vector = np.asarray(embedding, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidDocument('the embedding is not an array of numbers') from None
        if vector.ndim != 1:
            raise InvalidDocument(f'an embedding has one axis, not the shape {vector.shape}')
        if len(vector) != self.session.dimension:
            raise DimensionMismatch(
                f'the embedding has {len(vector)} dimensions, the model has {self.session.dimension}'
            )
        length = float(np.linalg.norm(vector)) if np.isfinite(vector).all() else 0.0
        if not np.isfinite(length) or length == 0:
            raise InvalidDocument('the embedding has to be finite and other than zero')
        return (vector / length).astype(np.float32)

    def _encode_texts(self, texts: Sequence[tuple[Document, Sequence[str]]]) -> None:
        encoded = iter(self._encoded([form.replace('{}', doc.text) for doc, forms in texts for form in forms]))
        for doc, forms in texts:
            of_forms = [next(encoded) for _ in forms]
            doc.embedding = _normalised(np.sum([one.vector for one in of_forms], axis=0, dtype=np.float64))
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
        for start in range(0, len(texts), self._batch_size):
            rows = order[start : start + self._batch_size]
            longest = tokens.ids.shape[1] if fixed else int(lengths[rows].max())
            vectors[rows] = self.session.encode_texts(tokens.ids[rows, :longest], tokens.mask[rows, :longest])
        return {
            text: Encoded(vector, bool(cut)) for text, vector, cut in zip(texts, vectors, tokens.truncated, strict=True)
        }

    def _encode_pictures(self, docs: list[Document]) -> None:
        for start in range(0, len(docs), self._batch_size):
            batch = docs[start : start + self._batch_size]
            vectors = self.session.encode_images(np.stack([np.asarray(doc.tensor) for doc in batch]))
            for doc, vector in zip(batch, vectors, strict=True):
                doc.embedding = vector

    def _finish(self, doc: Document, slots: list[_Slot]) -> None:
        if slots[0].doc is not doc:
            total = np.sum([slot.weight * slot.doc.embedding.astype(np.float64) for slot in slots], axis=0)
            if float(np.linalg.norm(total)) < 1e-6:
                wire.fail(doc, InvalidDocument(f'{doc.id!r}: the parts of the query cancel each other out'), STAGE)
                return
            doc.embedding = _normalised(total)
            for slot in slots:
                slot.doc.pop('tensor', 'embedding')
        if not np.isfinite(doc.embedding).all():
            wire.fail(doc, Internal(f'{doc.id!r}: the model gave a vector that is not finite'), STAGE)
            return
        doc.pop('tensor')
        doc.tags[wire.MODEL] = self._mark
        original = wire.detach(doc, wire.ORIGINAL)
        if original is not None:
            doc.content = original.content


def _normalised(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)

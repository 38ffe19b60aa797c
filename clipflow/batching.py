"""Documents to embeddings: collect what is to be encoded, pass it through the session in minibatches, put it back."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.errors import ClipflowError, DimensionMismatch, Internal, InvalidDocument
from clipflow.preparation import check_pixels
from clipflow.sessions.base import Session
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec

STAGE = 'encoder'


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
    """

    def __init__(self, spec: ModelSpec, session: Session, batch_size: int) -> None:
        self.spec = spec
        self.session = session
        self._tokenizer = Tokenizer(spec)
        self._batch_size = batch_size

    def embed(self, docs: Iterable[Document], templates: Sequence[str] = ()) -> None:
        """Encode what is not encoded and not failed.

        Args:
            docs: prepared by the preprocessor; empty ones stay as they are.
            templates: sentences with a place `{}` that a text is put into; their embeddings are averaged.
        """
        slots = [(doc, _slots(doc)) for doc in docs if not wire.failed(doc) and not wire.is_empty(doc)]
        for doc, parts in slots:
            try:
                for part in parts:
                    self._check(part.doc)
            except ClipflowError as error:
                wire.fail(doc, type(error)(f'{doc.id!r}: {error.message}'), STAGE)
        slots = [(doc, parts) for doc, parts in slots if not wire.failed(doc)]
        flat = [part.doc for _, parts in slots for part in parts if part.doc.embedding is None]
        self._encode_texts([doc for doc in flat if doc.text], templates)
        self._encode_pictures([doc for doc in flat if doc.tensor is not None])
        for doc, parts in slots:
            self._finish(doc, parts)

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of N texts, [N, D]."""
        return self._vectors_of(texts)[0]

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

    def _encode_texts(self, docs: list[Document], templates: Sequence[str]) -> None:
        if not docs:
            return
        forms = templates or ('{}',)
        texts = [form.replace('{}', doc.text) for doc in docs for form in forms]
        vectors, truncated = self._vectors_of(texts)
        means = vectors.reshape(len(docs), len(forms), -1).sum(axis=1)
        cuts = truncated.reshape(len(docs), -1).max(axis=1).tolist()
        for doc, vector, cut in zip(docs, means, cuts, strict=True):
            doc.embedding = _normalised(vector)
            if cut:
                doc.tags[wire.TRUNCATED] = True

    def _vectors_of(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
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
        return vectors, tokens.truncated

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
        doc.tags[wire.MODEL] = self.spec.fingerprint
        original = wire.detach(doc, wire.ORIGINAL)
        if original is not None:
            doc.content = original.content


def _normalised(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)

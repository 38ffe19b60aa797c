"""Zero-shot classification: which of the labels, put into templates, fits a Document best."""

from collections.abc import Sequence

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.errors import InvalidParameter


def classify(docs: Sequence[Document], labels: Sequence[Document], scale: float) -> None:
    """Set `tags['label']` and `tags['probabilities']` (label to probability) on every Document that was encoded.

    Where a label was longer than the model's context and was cut, their tags say so too.

    The probabilities are the softmax of the model's temperature x cosine over the labels, as in Radford et al. 2021,
    section 3.1; the vectors of a label's templates are averaged and normalised.

    Args:
        docs: encoded, or failed, or empty; they lose their embeddings.
        labels: their texts, encoded with the templates.
        scale: the model's temperature.

    Raises:
        ClipflowError: a label is empty, or could not be encoded.
    """
    for label in labels:
        if error := wire.error_of(label):
            raise error
        if label.embedding is None:
            raise InvalidParameter("parameter 'labels' holds an empty text; give each label a name")
    classes = np.stack([label.embedding for label in labels])  # [labels, D]
    names = [label.text for label in labels]
    for doc in docs:
        if doc.embedding is None or wire.failed(doc):
            continue
        shares = softmax(scale * (classes @ doc.embedding).astype(np.float64))
        doc.tags['label'] = names[int(shares.argmax())]
        doc.tags['probabilities'] = {name: float(share) for name, share in zip(names, shares, strict=True)}
        if any(label.tags.get(wire.TRUNCATED) for label in labels):
            doc.tags[wire.TRUNCATED] = True
        doc.pop('embedding')


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares

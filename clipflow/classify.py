"""Zero-shot classification: which of the labels, put into templates, fits a Document best."""

from collections.abc import Iterable, Sequence

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.batching import Embedder


def classify(embedder: Embedder, docs: Iterable[Document], labels: Sequence[str], templates: Sequence[str]) -> None:
    """Set `tags['label']` and `tags['probabilities']` (label to probability) on every Document that can be encoded.

    The probabilities are the softmax of the model's temperature x cosine over the labels, as in Radford et al. 2021,
    section 3.1; the vectors of a label's templates are averaged and normalised.
    """
    chosen = list(docs)
    embedder.embed(chosen)
    fit = [doc for doc in chosen if doc.embedding is not None and not wire.failed(doc)]
    if not fit:
        return
    sentences = [template.replace('{}', label) for label in labels for template in templates]
    means = embedder.text_vectors(sentences).reshape(len(labels), len(templates), -1).mean(axis=1)
    classes = means / np.linalg.norm(means, axis=1, keepdims=True)  # [labels, D]
    cosines = np.stack([doc.embedding for doc in fit]) @ classes.T  # [docs, labels]
    for doc, row in zip(fit, softmax(embedder.spec.scale * cosines.astype(np.float64)), strict=True):
        doc.tags['label'] = labels[int(row.argmax())]
        doc.tags['probabilities'] = {label: float(share) for label, share in zip(labels, row, strict=True)}
        doc.pop('embedding')


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares

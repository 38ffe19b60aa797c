"""Orders and scores of matches."""

import numpy as np
from docarray import Document, DocumentArray
from docarray.score import NamedScore

from clipflow import order, wire
from clipflow.errors import InvalidDocument
from clipflow.vectors import distinct
from clipflow.wire import SearchParameters

STAGE = 'ranker'


def merge(doc: Document, parameters: SearchParameters) -> None:
    """Bring the matches of one query into their final order, and cut the page that was asked for.

    Best cosine first, ties by id, one an id and a group, no near-duplicates; or in the order of a tag. One index
    answers in this order already; several shards answer one after the other.
    """
    matches = sorted(doc.matches, key=lambda match: (-match.scores['cosine'].value, match.id))
    seen: set[str] = set()
    kept = []
    for match in matches:
        marks = {'id ' + match.id, 'group ' + match.tags.get(wire.GROUP, match.id)}
        if not marks & seen:
            kept.append(match)
            seen |= marks
    if parameters.dedup is not None and kept:
        # Each shard knows its own duplicates only.
        rows = np.stack([match.embedding for match in kept]).astype(np.float32)
        kept = [kept[number] for number in distinct(rows, parameters.dedup)]
    if parameters.sort_by is not None:
        kept = order.ordered(kept, _mark, descending=order.parse(parameters.sort_by)[1])
    doc.matches = DocumentArray(kept[parameters.offset : parameters.offset + parameters.limit])
    for match in doc.matches:
        if 'embedding' not in parameters.include:
            match.pop('embedding')
        kept_tags = {wire.KEY: match.tags[wire.KEY]} if wire.KEY in match.tags else {}
        wire.drop_private_tags(match)
        match.tags.update(kept_tags)


def _mark(match: Document) -> order.Mark:
    kind, value = match.tags[wire.SORT]
    return int(kind), value


def clip_scores(doc: Document, scale: float) -> None:
    """Order a Document's own matches by how well they fit it.

    Sets `clip_score_cosine`, and `clip_score`, the softmax of scale x cosine over the matches, as clip-as-service
    names them (there the scale is 100 for every model). A match that failed keeps its error and goes last.
    """
    if not doc.matches:
        raise InvalidDocument(f'{doc.id!r}: /rank orders the matches of a document, and this one has none')
    fit = [match for match in doc.matches if match.embedding is not None]
    unfit = [match for match in doc.matches if match.embedding is None]
    if fit:
        cosines = np.stack([match.embedding for match in fit]).astype(np.float64) @ doc.embedding.astype(np.float64)
        weights = np.exp(scale * (cosines - cosines.max()))
        for match, cosine, share in zip(fit, cosines, weights / weights.sum(), strict=True):
            match.scores['clip_score'] = NamedScore(value=float(share), op_name='softmax')
            match.scores['clip_score_cosine'] = NamedScore(value=float(cosine), op_name='cosine')
            match.pop('embedding')
            wire.drop_private_tags(match)
    fit.sort(key=lambda match: (-match.scores['clip_score_cosine'].value, match.id))
    doc.matches = DocumentArray(fit + unfit)

"""Orders and scores of matches."""

from collections.abc import Sequence

import numpy as np
from docarray import Document, DocumentArray
from docarray.score import NamedScore
from numpy.typing import NDArray

from clipflow import order, wire
from clipflow.errors import InvalidDocument
from clipflow.quantiles import DECIMALS, floor_of, percentile, share_above
from clipflow.rank.calibration import Calibration
from clipflow.rank.diversity import mixed
from clipflow.rank.head import Head
from clipflow.tags import drop_private_tags
from clipflow.vectors import distinct
from clipflow.wire import SearchParameters

STAGE = 'ranker'


def merge(
    doc: Document, parameters: SearchParameters, head: Head | None = None, calibration: Calibration | None = None
) -> None:
    """Bring the matches of one query into their final order, and cut the page that was asked for.

    Best cosine first, ties by id, one an id and a group, no near-duplicates; or in the order of a tag, or mixed. One
    index answers in the first two orders already; several shards answer one after the other, each with the sample that
    it compares scores with. With a head its order is that of the best `parameters.candidates`, and the rest follows as
    it was, so that a page begins the next.
    """
    background = _background(doc)
    kept = _ordered(doc, _kept(doc, parameters, background), parameters, head)
    doc.matches = DocumentArray(kept[parameters.offset : parameters.offset + parameters.limit])
    for match in doc.matches:
        if 'percentile' in parameters.include and len(background):
            match.scores['percentile'] = NamedScore(value=percentile(_score(match), background))
        if 'probability' in parameters.include and calibration is not None and doc.text and not match.text:
            score = np.array(_score(match))
            found = calibration.probability(score, share_above(score, background))
            match.scores['probability'] = NamedScore(value=round(float(found), DECIMALS))
        if 'embedding' not in parameters.include:
            match.pop('embedding')
        kept_tags = {wire.KEY: match.tags[wire.KEY]} if wire.KEY in match.tags else {}
        drop_private_tags(match)
        match.tags.update(kept_tags)


def _kept(doc: Document, parameters: SearchParameters, background: NDArray[np.float64]) -> list[Document]:
    """What may be shown, best cosine first: each id and group once, what is relevant, no near-duplicates."""
    seen: set[str] = set()
    kept = []
    for match in sorted(doc.matches, key=lambda match: (-match.scores['cosine'].value, match.id)):
        marks = {'id ' + match.id, 'group ' + match.tags.get(wire.GROUP, match.id)}
        if not marks & seen:
            kept.append(match)
            seen |= marks
    if parameters.relevance is not None and parameters.sort_by is None:
        floor = floor_of(parameters.relevance, background)
        kept = [match for match in kept if _score(match) >= floor]
    if parameters.dedup is not None and kept:
        # Each shard knows its own duplicates only.
        most = parameters.reach if parameters.sort_by is None else order.RELEVANT
        kept = [kept[number] for number in distinct(_rows(kept), parameters.dedup, most)]
    if parameters.sort_by is not None and parameters.group_by is not None:
        kept = kept[: order.RELEVANT]
    return kept


def _ordered(doc: Document, matches: list[Document], parameters: SearchParameters, head: Head | None) -> list[Document]:
    """In the order of the head, of a tag or mixed, as far as the page reaches."""
    depth = _by_head(doc, matches, head, parameters.candidates) if head is not None else 0
    if parameters.sort_by is not None:
        return order.ordered(matches, _mark, descending=order.parse(parameters.sort_by)[1])
    if parameters.diversity and matches:
        size = depth or wire.MIXED  # scores of a head and cosines are not compared
        pool, rest = matches[:size], matches[size:]
        scores = np.array([match.scores['head'].value if depth else _score(match) for match in pool])
        end = parameters.offset + parameters.limit
        return [pool[number] for number in mixed(scores, _rows(pool), parameters.diversity, end)] + rest
    return matches


def _by_head(doc: Document, matches: list[Document], head: Head, candidates: int) -> int:
    """Put the first of `matches` into the order of the head, in place; how many.

    None for a query without a text: a head has learned how texts move, and pictures lie elsewhere.
    """
    pool = matches[:candidates]
    if not pool or doc.embedding is None or not doc.text:
        return 0
    found = head.scores(doc.embedding[None].astype(np.float32), _rows(pool))[0]
    for match, score in zip(pool, found, strict=True):
        match.scores['head'] = NamedScore(value=round(float(score), DECIMALS))
    matches[:candidates] = sorted(pool, key=lambda match: (-match.scores['head'].value, match.id))
    return len(pool)


def _background(doc: Document) -> NDArray[np.float64]:
    """The samples of all shards as one, ascending; empty where one index has compared by itself."""
    samples = []
    while (chunk := wire.detach(doc, wire.BACKGROUND)) is not None:
        samples.append(chunk.tensor)
    return np.sort(np.concatenate(samples)) if samples else np.empty(0)


def _score(match: Document) -> float:
    return round(float(match.scores['cosine'].value), DECIMALS)


def _rows(matches: Sequence[Document]) -> NDArray[np.float32]:
    return np.stack([match.embedding for match in matches]).astype(np.float32)


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
    if doc.embedding is None:
        raise InvalidDocument(f'{doc.id!r}: has no content to which its matches could be compared')
    fit = [match for match in doc.matches if match.embedding is not None]
    unfit = [match for match in doc.matches if match.embedding is None]
    if fit:
        cosines = np.stack([match.embedding for match in fit]).astype(np.float64) @ doc.embedding.astype(np.float64)
        weights = np.exp(scale * (cosines - cosines.max()))
        for match, cosine, share in zip(fit, cosines, weights / weights.sum(), strict=True):
            match.scores['clip_score'] = NamedScore(value=float(share), op_name='softmax')
            match.scores['clip_score_cosine'] = NamedScore(value=float(cosine), op_name='cosine')
            match.pop('embedding')
            drop_private_tags(match)
    fit.sort(key=lambda match: (-match.scores['clip_score_cosine'].value, match.id))
    doc.matches = DocumentArray(fit + unfit)

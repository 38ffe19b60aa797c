"""What calls return."""

from dataclasses import dataclass, field
from typing import Any

from docarray import Document

from clipflow import wire
from clipflow.errors import ClipflowError
from clipflow.tags import plain_tags


@dataclass(frozen=True)
class Match:
    """One result of a search: cosine in [-1, 1], higher is better; `thumbnail` (WebP) only where it was asked for."""

    id: str
    score: float
    uri: str = ''
    text: str = ''
    tags: dict[str, Any] = field(default_factory=dict)
    thumbnail: bytes = b''
    percentile: float | None = None
    """Share of the collection that fits the query less; only where it was asked for."""
    probability: float | None = None
    """That this picture is what the text asks for; only where it was asked for."""
    head: float | None = None
    """Score of the head of the ranker, which results are ordered by; None where none is live."""


class Matches(list[Match]):
    """The results of one query, best first. `partial`: a shard was away, and its documents are missing."""

    partial: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one document that was written: `error` is None if it is stored."""

    id: str
    error: ClipflowError | None = None


def match_of(doc: Document) -> Match:
    """From a match on the wire; the score is exact to 6 decimals."""
    score = round(doc.scores['cosine'].value, 6) if 'cosine' in doc.scores else 0.0
    digits = {'percentile': 4, 'probability': 6, 'head': 6}
    further = {name: round(doc.scores[name].value, places) for name, places in digits.items() if name in doc.scores}
    return Match(doc.id, score, doc.uri or '', doc.text or '', plain_tags(doc), doc.blob or b'', **further)


def matches_of(doc: Document) -> Matches:
    """From a query that came back."""
    found = Matches(match_of(match) for match in doc.matches)
    found.partial = wire.PARTIAL in doc.tags
    return found


def outcome_of(doc: Document) -> Outcome:
    """From a reply to a write."""
    return Outcome(doc.id, wire.error_of(doc))

"""What people clicked: one entry of the feedback log, and how much of a click is due to the place of a result.

A result that stands first is looked at, one that stands tenth mostly not; so a click says more the lower it was. In the
position-based model (Richardson, Dominowska, Ragno: Predicting clicks, WWW 2007; Craswell et al.: An experimental
comparison of click position-bias models, WSDM 2008) the probability of a click is a product,

    P(click | place k, document d) = propensity(k) * relevance(d),

and a click that is weighted by 1 / propensity(k) counts as if everything had been looked at (Joachims, Swaminathan,
Schnabel: Unbiased learning-to-rank with biased feedback, WSDM 2017). Better results stand first, so the bare click
rates of places would mix both. Therefore places are compared by results of one search that have nearly the same cosine
and are taken as equally relevant: of those, the clicks at places k and l are as propensity(k) to propensity(l). That
holds although searches without a click are in no log, because a click is only ever counted with its search.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter

PLACES = 50
"""Places that are told apart; a later one counts as the last of them."""
FLOOR = 0.05
"""The least propensity: no click weighs more than twenty, which bounds the variance."""
NEAR = 0.005
"""Cosines that differ by less are taken as equally relevant."""
_PRIOR = 10.0
_ROUNDS = 500


@dataclass(frozen=True)
class Feedback:
    """One answer of the service and what became of it.

    Attributes:
        text: of the query; empty for another kind of query.
        vector: of the query, float32 of unit length, [D].
        model: fingerprint of the model that made it.
        shown: ids of the results, in their order.
        clicked, disliked: some of them.
        scores: cosines of `shown`; empty if they were not told.
        user: whose, as the caller names people; may be empty.
        head: version of the ranker's head that ordered the results; empty without one.
        time: when, in seconds since the epoch.
    """

    text: str
    vector: NDArray[np.float32]
    model: str
    shown: tuple[str, ...]
    clicked: tuple[str, ...]
    disliked: tuple[str, ...]
    scores: tuple[float, ...] = ()
    user: str = ''
    head: str = ''
    time: float = 0.0

    def tags(self) -> dict[str, Any]:
        """Everything but text and vector, as JSON."""
        names = ('time', 'user', 'model', 'head', 'shown', 'scores', 'clicked', 'disliked')
        found = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def line(self) -> str:
        """One line of JSON. `read_log` reads it back, to the last bit."""
        # The shortest text that gives the same float32 again.
        vector = [float(str(number)) for number in self.vector]
        return json.dumps({**self.tags(), 'text': self.text, 'vector': vector}, ensure_ascii=False)

    @classmethod
    def of(cls, tags: Mapping[str, Any], text: str, vector: Any) -> 'Feedback':
        """From `tags`, a text and a vector.

        Raises:
            KeyError, TypeError, ValueError: they are not of this form.
        """
        shown, clicked, disliked = (
            tuple(str(item) for item in tags[name]) for name in ('shown', 'clicked', 'disliked')
        )
        row = np.asarray(vector, dtype=np.float32)
        scores = tuple(float(score) for score in tags.get('scores', ()))
        if row.ndim != 1 or not np.isfinite(row).all() or (scores and len(scores) != len(shown)):
            raise ValueError('the vector or the scores are not right')
        model, user, head = (str(tags.get(name, '')) for name in ('model', 'user', 'head'))
        when = float(tags.get('time', 0.0))
        return cls(str(text), row, model, shown, clicked, disliked, scores, user, head, when)


def read_log(path: Path) -> list[Feedback]:
    """Entries that `clipflow feedback export` has written.

    Raises:
        InvalidParameter: the file cannot be read, or a line of it is no such entry.
    """
    try:
        return list(_parsed(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f'{path} cannot be read: {error}') from None


def _parsed(path: Path) -> Iterator[Feedback]:
    with path.open(encoding='utf-8') as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    found = json.loads(line)
                    yield Feedback.of(found, found['text'], found['vector'])
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise InvalidParameter(
                        f'line {number} of {path} is no entry that `clipflow feedback export` has written'
                    ) from None


@dataclass(frozen=True)
class Counts:
    """Sums of a log, those of several can be added. Places are numbered from 0.

    Attributes:
        places: by place how often something was shown there, and clicked.
        pairs: by two places, the earlier first: how often each was clicked where both held nearly equal results.
    """

    places: dict[int, tuple[int, int]]
    pairs: dict[tuple[int, int], tuple[int, int]]

    def json(self) -> dict[str, list[list[int]]]:
        """Rows of numbers."""
        places = [[place, *counts] for place, counts in sorted(self.places.items())]
        return {'places': places, 'pairs': [[*pair, *counts] for pair, counts in sorted(self.pairs.items())]}


def counted(entries: Iterable[tuple[Sequence[str], Sequence[float], Sequence[str]]]) -> Counts:
    """Sums over entries: what was shown, with which cosines, and which of it was clicked.

    Without cosines all results of an entry are taken as equally relevant. An entry without a click (dislikes only)
    tells nothing about where people look.
    """
    places: dict[int, list[int]] = {}
    pairs: dict[tuple[int, int], list[int]] = {}
    for shown, scores, clicked in entries:
        wanted = set(clicked)
        hits = [place for place, name in enumerate(shown) if name in wanted]
        for place in range(len(shown) if hits else 0):
            count = places.setdefault(min(place, PLACES - 1), [0, 0])
            count[0] += 1
            count[1] += place in hits
        for hit in hits:
            for place in range(min(len(shown), PLACES)):
                if hit < PLACES and place != hit and (not scores or abs(scores[place] - scores[hit]) < NEAR):
                    pairs.setdefault((min(place, hit), max(place, hit)), [0, 0])[hit > place] += 1
    return Counts({k: (v[0], v[1]) for k, v in places.items()}, {k: (v[0], v[1]) for k, v in pairs.items()})


def merged(parts: Iterable[Mapping[str, Iterable[Sequence[float]]]]) -> Counts:
    """The sum of several counts, as JSON."""
    places: dict[int, tuple[int, int]] = {}
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for part in parts:
        for row in part['places']:
            place, shown, clicks = map(int, row)
            before = places.get(place, (0, 0))
            places[place] = (before[0] + shown, before[1] + clicks)
        for row in part['pairs']:
            one, other, first, second = map(int, row)
            before = pairs.get((one, other), (0, 0))
            pairs[one, other] = (before[0] + first, before[1] + second)
    return Counts(places, pairs)


def propensities(counts: Counts) -> NDArray[np.float64]:
    """How probable it is that each place is looked at, relative to the first, [K], each from `FLOOR` to 1.

    Of the clicks on a pair, the share of one place is its propensity divided by the sum of both: the model of Bradley
    and Terry, fitted by the iteration of Hunter (MM algorithms for generalized Bradley-Terry models, Annals of
    Statistics 32, 2004). Each place has ten clicks more against the first, in the proportion of 1 to its number, so
    that without a log this curve is the answer.
    """
    prior = 1.0 / np.arange(1, PLACES + 1)
    games, wins = np.zeros((PLACES, PLACES)), np.zeros(PLACES)
    wins[1:] += _PRIOR * prior[1:] / (1 + prior[1:])
    wins[0] += float((_PRIOR / (1 + prior[1:])).sum())
    games[0, 1:] = _PRIOR
    for (one, other), (first, second) in counts.pairs.items():
        games[one, other] += first + second
        wins[one] += first
        wins[other] += second
    games += games.T
    theta = prior.copy()
    for _ in range(_ROUNDS):
        theta = wins / (games / (theta[:, None] + theta[None, :])).sum(axis=1)
        theta /= theta[0]
    return np.clip(theta, FLOOR, 1.0)

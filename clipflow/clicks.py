"""What people clicked: one entry of the feedback log, and how much of a click is due to the place of a result.

A result that stands first is looked at, one that stands tenth mostly not; so a click says more the lower it was. In the
position-based model (Richardson, Dominowska, Ragno: Predicting clicks, WWW 2007; Craswell et al.: An experimental
comparison of click position-bias models, WSDM 2008) the probability of a click is a product,

    P(click | place k, document d) = propensity(k) * relevance(d),

and a click that is weighted by 1 / propensity(k) counts as if everything had been looked at (Joachims, Swaminathan,
Schnabel: Unbiased learning-to-rank with biased feedback, WSDM 2017). Better results stand first, so the bare click
rates of places would mix both. Therefore places are compared by results of one search that have nearly the same cosine
and are taken as equally relevant: of those, the clicks at places k and l are as propensity(k) to propensity(l). That
holds although searches without a click are in no log, because a click is only ever counted with its search. It does
not hold under a head of the ranker, which puts the more relevant of two equal cosines first; what a head has ordered is
left out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
PAUSE = 1800.0
"""Seconds: what somebody says of the same results later than this belongs to another search."""
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
            KeyError, TypeError, ValueError, OverflowError: they are not of this form.
        """
        names = ('shown', 'clicked', 'disliked')
        if any(isinstance(tags[name], str) for name in names):
            raise ValueError('a text is no list of ids')
        shown, clicked, disliked = (tuple(str(item) for item in tags[name]) for name in names)
        row = np.asarray(vector, dtype=np.float32)
        scores = tuple(float(score) for score in tags.get('scores', ()))
        if row.ndim != 1 or not np.isfinite(row).all() or (scores and len(scores) != len(shown)):
            raise ValueError('the vector or the scores are not right')
        model, user, head = (str(tags.get(name, '')) for name in ('model', 'user', 'head'))
        when = float(tags.get('time', 0.0))
        return cls(str(text), row, model, shown, clicked, disliked, scores, user, head, when)


def check_judged(
    shown: Sequence[str], clicked: Sequence[str], disliked: Sequence[str], scores: Sequence[float]
) -> None:
    """Raises ValueError with a sentence if these do not fit together."""
    for name, ids in (('shown', shown), ('clicked', clicked), ('disliked', disliked)):
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f'{name!r} names each result once; {twice!r} is there twice')
    if both := {*clicked} & {*disliked}:
        raise ValueError(f"a result is either 'clicked' or 'disliked'; {min(both)!r} is both")
    if strange := {*clicked, *disliked} - {*shown}:
        raise ValueError(f"'clicked' and 'disliked' name results that are in 'shown'; {min(strange)!r} is not")
    if not clicked and not disliked:
        raise ValueError("say which of the results were 'clicked' or 'disliked'")
    if scores and len(scores) != len(shown):
        raise ValueError(f"'scores' has a cosine for each of 'shown': {len(shown)}, not {len(scores)}")


def read_log(path: Path) -> tuple[dict[int, Feedback], dict[int, str]]:
    """Entries that `clipflow feedback export` has written, and what is wrong with other lines, by number of line.

    Raises:
        InvalidParameter: the file cannot be read, or no line of it is an entry.
    """
    entries, faults = dict[int, Feedback](), dict[int, str]()
    try:
        with path.open(encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found = _parsed(line)
                    if isinstance(found, str):
                        faults[number] = found
                    else:
                        entries[number] = found
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f'{path} cannot be read: {error}') from None
    if faults and not entries:
        number, reason = next(iter(faults.items()))
        raise InvalidParameter(f'{path} is nothing that `clipflow feedback export` has written: line {number} {reason}')
    return entries, faults


def _parsed(line: str) -> Feedback | str:
    """An entry, or what is wrong with the line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return 'is not JSON'
    try:
        return Feedback.of(found, found['text'], found['vector'])
    except KeyError as error:
        return f'has no `{error.args[0]}`'
    except (TypeError, ValueError, OverflowError, AttributeError):
        return 'is no entry of a log of feedback'


def searches(entries: Iterable[Feedback]) -> list[Feedback]:
    """One entry a search: what somebody says of its results one after the other is put together.

    It is one search if query, model, head and user are the same, one shown list begins the other (more results were
    shown meanwhile), and less than `PAUSE` lies between. Of two judgements about a result the later one counts.
    """
    found = list[Feedback]()
    places: dict[object, int] = {}
    for entry in sorted(entries, key=lambda one: one.time):
        key = (entry.text, entry.vector.tobytes(), entry.model, entry.head, entry.user, entry.shown[:1])
        place = places.get(key)
        if place is not None and _continues(found[place], entry):
            found[place] = _with(found[place], entry)
        else:
            places[key] = len(found)
            found.append(entry)
    return found


def _continues(before: Feedback, entry: Feedback) -> bool:
    common = min(len(before.shown), len(entry.shown))
    return before.shown[:common] == entry.shown[:common] and entry.time - before.time < PAUSE


def _with(before: Feedback, entry: Feedback) -> Feedback:
    longer = max(before, entry, key=lambda one: len(one.shown))
    liked: dict[str, bool] = {}
    for one in (before, entry):
        liked |= dict.fromkeys(one.disliked, False) | dict.fromkeys(one.clicked, True)
    clicked, disliked = (tuple(name for name in longer.shown if liked.get(name) is wanted) for wanted in (True, False))
    return replace(
        before, shown=longer.shown, scores=longer.scores, clicked=clicked, disliked=disliked, time=entry.time
    )


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


def counted(entries: Iterable[tuple[Sequence[str], Sequence[float], Sequence[str], str]]) -> Counts:
    """Sums over entries: what was shown, with which cosines, which of it was clicked, and which head ordered it.

    Without cosines all results of an entry are taken as equally relevant. An entry without a click (dislikes only)
    tells nothing about where people look, and one that a head has ordered has no pairs.
    """
    places: dict[int, list[int]] = {}
    pairs: dict[tuple[int, int], list[int]] = {}
    for shown, scores, clicked, head in entries:
        wanted = set(clicked)
        hits = [place for place, name in enumerate(shown) if name in wanted]
        for place in range(len(shown) if hits else 0):
            count = places.setdefault(min(place, PLACES - 1), [0, 0])
            count[0] += 1
            count[1] += place in hits
        for hit in () if head else hits:
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

"""A head from what people clicked, or from captions: which results were right, what to learn from, and does it help."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow import clicks
from clipflow.clicks import Feedback
from clipflow.errors import DimensionMismatch, InvalidParameter, ModelMismatch
from clipflow.rank.fit import Lists, fit, measure, split
from clipflow.rank.head import Head
from clipflow.relevance.bootstrap import Estimate, difference, estimate

LEAST = 50
"""Different queries, at least."""
DEPTH = 100
"""So many of the nearest pictures are ordered; as the ranker does by default."""
_LEARNED = 30
_VALIDATION = 0.15
_QUERIES = 256

Rows = Mapping[str, NDArray[np.float32]]
"""Unit vectors by the ids of their documents."""


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        rank: of its matrix; more than the vectors have dimensions counts as so many.
        blend: the share of the moved query in the score, 0 to 1.
        held_out: share of the queries that only the check sees.
        seed: of the split, of the start and of the order.
    """

    rank: int = 32
    blend: float = 1.0
    held_out: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A measure on the queries that were held out: of the cosine, of the head, and the difference, with intervals."""

    cosine: Estimate
    head: Estimate
    difference: Estimate


def from_feedback(entries: Sequence[Feedback], rows: Rows, model: str) -> Lists:
    """Lists of what was shown in one search; a click counts 1 / propensity of its place, a dislike as no click.

    Args:
        entries: of the log. Those of another model are left out, and those without a text or a click.
        rows: vectors of what was shown; a document that is missing is left out.
        model: fingerprint of the model.

    Raises:
        ModelMismatch: all entries are of another model.
        DimensionMismatch: vectors of queries and documents have different lengths.
        InvalidParameter: too few are left.
    """
    own = clicks.searches(entry for entry in entries if entry.model == model)
    if entries and not own:
        raise ModelMismatch('the feedback is of another model than the documents; nothing can be learned from it')
    _check_dimensions((entry.vector for entry in own), rows)
    theta = clicks.propensities(clicks.counted((e.shown, e.scores, e.clicked, e.head) for e in own))
    numbers = {name: number for number, name in enumerate(rows)}
    queries, places, gains, keys = [], [], [], []
    for entry in own:
        known = [(place, name) for place, name in enumerate(entry.shown) if name in numbers]
        worth = [
            1 / theta[min(place, clicks.PLACES - 1)] if name in set(entry.clicked) else 0.0 for place, name in known
        ]
        if entry.text and any(worth) and not all(worth):
            queries.append(entry.vector)
            places.append([numbers[name] for _, name in known])
            gains.append(worth)
            keys.append(entry.text)  # people search for the same again
    return _lists(queries, places, gains, keys, rows)


def from_pairs(queries: NDArray[np.float32], right: Sequence[str], rows: Rows) -> Lists:
    """Lists of the nearest documents of each caption; its own is right.

    Args:
        queries: unit vectors of captions, [Q, D].
        right: the id of the document that each belongs to, [Q].
        rows: vectors of all documents.

    Raises:
        DimensionMismatch: vectors of captions and documents have different lengths.
        InvalidParameter: too few.
    """
    _check_dimensions(queries, rows)
    names = list(rows)
    numbers = {name: number for number, name in enumerate(names)}
    matrix = np.stack([rows[name] for name in names])
    own = np.array([numbers[name] for name in right], dtype=np.int64)
    # In blocks: all captions with all documents at once do not fit into memory.
    blocks = (queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES))
    nearest = np.vstack([np.argsort(-(block @ matrix.T), axis=1, kind='stable')[:, :DEPTH] for block in blocks])
    gains = (nearest == own[:, None]).astype(np.float64)
    return _lists(list(queries), nearest.tolist(), gains.tolist(), list(right), rows)


def train(
    lists: Lists, model: str, source: str, recipe: Recipe, told: Callable[[int, float, float], None]
) -> tuple[Head, dict[str, Figure]]:
    """A head and how it does on queries that were held out.

    It has passed its check if neither measure is lower than that of the cosine.

    Args:
        lists: of `from_feedback` or `from_pairs`.
        model: fingerprint of the model.
        source: what this is, for people.
        recipe: how.
        told: see `fit`.

    Raises:
        InvalidParameter: nothing is left to learn from, or to check with.
    """
    rest, held_out = split(lists, recipe.held_out, recipe.seed)
    # Lists without a right result teach nothing; in the check they count as such, for the cosine and for the head.
    learned, validation = split(rest.part(rest.gains.sum(axis=1) > 0), _VALIDATION, recipe.seed + 1)
    if not len(learned) or not held_out.gains.any():
        raise InvalidParameter(
            f'with a share of {recipe.held_out} for the check no query is left to learn from, or none to check with; '
            'choose another --held-out'
        )
    rank = min(recipe.rank, lists.queries.shape[1])
    down, up = fit(_learnable(learned), validation, rank, recipe.seed, told)
    head = Head(down, up, model, recipe.blend)
    before = measure(held_out, held_out.queries)
    after = measure(held_out, head.moved(held_out.queries))
    figures = {
        name: Figure(
            estimate(name, before[name], held_out.groups),
            estimate(name, after[name], held_out.groups),
            difference(name, before[name], after[name], held_out.groups),
        )
        for name in before
    }
    kept: dict[str, Any] = {name: asdict(figure) for name, figure in figures.items()}
    kept['queries'] = len(np.unique(held_out.groups))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    passed = all(figure.difference.value >= 0 for figure in figures.values())
    return Head(down, up, model, recipe.blend, now, source, kept, passed), figures


def _learnable(lists: Lists) -> Lists:
    """The right results of each list and the best of the others: the far ones teach nothing, and cost time."""
    if lists.places.shape[1] <= _LEARNED:
        return lists
    order = np.argsort(lists.gains == 0, axis=1, kind='stable')[:, :_LEARNED]
    places, gains = np.take_along_axis(lists.places, order, axis=1), np.take_along_axis(lists.gains, order, axis=1)
    return Lists(lists.queries, lists.vectors, places, gains, lists.groups)


def _check_dimensions(queries: Iterable[NDArray[np.float32]], rows: Rows) -> None:
    found = sorted({len(vector) for vector in (*queries, *rows.values())})
    if len(found) > 1:
        raise DimensionMismatch(
            f'the vectors of queries and documents have {" and ".join(map(str, found))} dimensions; they are not of '
            'one model, and nothing can be learned from them'
        )


def _lists(
    queries: Sequence[NDArray[np.float32]],
    places: Sequence[Sequence[int]],
    gains: Sequence[Sequence[float]],
    keys: Sequence[str],
    rows: Rows,
) -> Lists:
    useful = {key for key, gain in zip(keys, gains, strict=True) if any(gain) and not all(gain)}
    if len(useful) < LEAST:
        raise InvalidParameter(
            f'there are {len(useful)} different queries with a right result and a wrong one; a head needs '
            f'at least {LEAST}'
        )
    groups = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)[1]
    width = max(map(len, places))
    padded = np.full((len(places), width), -1, dtype=np.int64)
    worth = np.zeros((len(places), width))
    for number, (row, gain) in enumerate(zip(places, gains, strict=True)):
        padded[number, : len(row)], worth[number, : len(gain)] = row, gain
    vectors = np.stack(list(rows.values())).astype(np.float32)
    return Lists(np.stack(queries).astype(np.float32), vectors, padded, worth, groups.astype(np.int64))

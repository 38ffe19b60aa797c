"""Fitting a head: the gradients, the measures, and that it learns what clicks with position bias tell."""

import numpy as np
import pytest

from clipflow.clicks import Feedback
from clipflow.errors import InvalidParameter, ModelMismatch
from clipflow.rank import fit as module
from clipflow.rank.fit import Lists, measure, split
from clipflow.tuning.head import Recipe, from_feedback, from_pairs, train

D = 16


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def small() -> Lists:
    rng = np.random.default_rng(2)
    places = np.array([[0, 1, 2, 3], [4, 5, 6, -1], [7, 3, 1, 0]])
    gains = np.array([[0, 2.0, 0, 1.0], [0, 1.0, 0, 0], [3.0, 0, 0, 0]])
    vectors = units(rng.normal(size=(8, D)))
    return Lists(units(rng.normal(size=(3, D))), vectors, places, gains, np.array([0, 1, 0]))


def test_the_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(2, D)) * 0.2, rng.normal(size=(D, 2)) * 0.2]
    _, gradients = module._loss(small(), *weights)
    for number, gradient in enumerate(gradients):
        for place in [(0, 0), (1, 1)]:
            shifted = []
            for sign in (1, -1):
                changed = [matrix.copy() for matrix in weights]
                changed[number][place] += sign * 1e-6
                shifted.append(module._loss(small(), *changed)[0])
            assert gradient[place] == pytest.approx((shifted[0] - shifted[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_measures_are_those_computed_by_hand() -> None:
    lists = small()
    moved = lists.vectors[[1, 6, 3]]  # so that these documents stand first
    found = measure(lists, moved)
    for number in range(3):
        known = [n for n in lists.places[number] if n >= 0]
        gains = dict(zip(known, lists.gains[number], strict=False))
        order = sorted(known, key=lambda n: -float(lists.vectors[n] @ moved[number]))
        value = sum(gains[n] / np.log2(place + 2) for place, n in enumerate(order))
        best = sum(g / np.log2(place + 2) for place, g in enumerate(sorted(gains.values(), reverse=True)))
        assert found['nDCG'][number] == pytest.approx(value / best)
    assert found['Recall@5'].tolist() == [1, 1, 1]


def test_a_tie_is_counted_against_the_head() -> None:
    lists = small()
    assert measure(lists, np.zeros((3, D)))['nDCG'][1] == pytest.approx(1 / np.log2(4))


def test_a_split_has_no_query_in_both_parts() -> None:
    rng = np.random.default_rng(0)
    count = 200
    places = np.zeros((count, 1), dtype=np.int64)
    lists = Lists(
        units(rng.normal(size=(count, D))),
        units(np.ones((1, D))),
        places,
        np.ones((count, 1)),
        rng.integers(0, 60, count),
    )
    rest, held_out = split(lists, 0.2, 0)
    assert set(rest.groups).isdisjoint(held_out.groups)
    assert len(set(held_out.groups)) == round(0.2 * len(set(lists.groups)))
    assert len(rest) + len(held_out) == count


class World:
    """People want what lies near a query that is turned a little, and look at the first results most."""

    def __init__(self, searches: int, noise: float = 0.05, documents: int = 300) -> None:
        self.rng = np.random.default_rng(1)
        self.rows = units(self.rng.normal(size=(documents, D)))
        self.turn = np.eye(D) + 0.6 * self.rng.normal(size=(D, 2)) @ self.rng.normal(size=(2, D))
        self.entries = [entry for n in range(searches) if (entry := self.search(n, noise)).clicked]

    def relevant(self, query: np.ndarray, shown: np.ndarray) -> set[int]:
        wanted = units(query @ self.turn.T)
        return set(shown[np.argsort(-(self.rows[shown] @ wanted))[:3]].tolist())

    def search(self, number: int, noise: float) -> Feedback:
        query = units(self.rng.normal(size=D))
        scores = self.rows @ query
        shown = np.argsort(-scores)[:12]
        right = self.relevant(query, shown)
        clicked = [str(n) for k, n in enumerate(shown) if self.rng.random() < (0.9 if n in right else noise) / (k + 1)]
        ids = tuple(str(n) for n in shown)
        return Feedback(f'q{number}', query, 'm', ids, tuple(clicked), (), tuple(scores[shown].tolist()))

    def lists(self) -> Lists:
        return from_feedback(self.entries, {str(n): row for n, row in enumerate(self.rows)}, 'm')

    def precision(self, order: object) -> float:
        """Share of the three right results among the first three, on new queries, in truth."""
        found = []
        for query in units(np.random.default_rng(9).normal(size=(200, D))):
            shown = np.argsort(-(self.rows @ query))[:12]
            moved = order(query[None])[0]  # type: ignore[operator]
            best = shown[np.argsort(-(self.rows[shown] @ moved))[:3]]
            found.append(len(set(best.tolist()) & self.relevant(query, shown)) / 3)
        return float(np.mean(found))


def test_clicks_with_position_bias_teach_what_people_want() -> None:
    world = World(2500)
    head, figures = train(world.lists(), 'm', 'simulated', Recipe(rank=8), lambda *_: None)
    assert head.passed
    assert figures['nDCG'].difference.value > 0.02
    assert world.precision(head.moved) > world.precision(lambda query: query) + 0.1
    assert head.figures['queries'] == round(len({one.text for one in world.entries}) / 5)


def test_clicks_that_mean_nothing_change_nothing_or_do_not_pass() -> None:
    world = World(300)
    rng = np.random.default_rng(0)
    world.entries = [
        Feedback(e.text, e.vector, 'm', e.shown, (e.shown[rng.integers(0, 12)],), (), e.scores) for e in world.entries
    ]
    head, figures = train(world.lists(), 'm', 'noise', Recipe(), lambda *_: None)
    assert figures['nDCG'].difference.low <= 0
    assert head.passed == all(figure.difference.value >= 0 for figure in figures.values())
    assert np.abs(head.moved(world.rows) - world.rows).max() < 0.5


def test_captions_are_pairs() -> None:
    world = World(0)
    wanted = np.random.default_rng(4).integers(0, len(world.rows), 400)
    queries = units(world.rows[wanted] @ np.linalg.inv(world.turn).T)
    rows = {str(n): row for n, row in enumerate(world.rows)}
    head, figures = train(
        from_pairs(queries, [str(n) for n in wanted], rows), 'm', 'captions', Recipe(rank=8), lambda *_: None
    )
    assert head.passed
    assert figures['Recall@5'].difference.low > 0


def test_too_little_or_foreign_feedback_is_refused() -> None:
    world = World(200)
    rows = {str(n): row for n, row in enumerate(world.rows)}
    with pytest.raises(InvalidParameter, match='at least 50'):
        from_feedback(world.entries[:20], rows, 'm')
    with pytest.raises(InvalidParameter, match='there are 0 different queries'):
        from_feedback(world.entries, {}, 'm')
    with pytest.raises(ModelMismatch):
        from_feedback(world.entries, rows, 'other')

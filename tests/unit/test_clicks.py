"""Entries of the feedback log as lines, and the position bias in them against a truth that is known."""

from pathlib import Path

import numpy as np
import pytest

from clipflow.clicks import FLOOR, PAUSE, PLACES, Counts, Feedback, counted, merged, propensities, read_log, searches
from clipflow.errors import InvalidParameter

SHOWN = 10


def entry(**changes: object) -> Feedback:
    vector = np.array([0.1, -0.7, 1 / 3], dtype=np.float32)
    given = {
        'shown': ('a', 'b'),
        'clicked': ('b',),
        'disliked': ('a',),
        'scores': (0.5, 0.25),
        'time': 12.5,
        'user': 'u',
    }
    return Feedback('ein Hund', vector, 'm', head='h', **given | changes)  # type: ignore[arg-type]


Shown = tuple[list[str], list[float], list[str], str]


def simulated(truth: np.ndarray, count: int = 10_000) -> list[Shown]:
    """Clicks on lists that are sorted by a score, where the score decides how relevant a result is."""
    rng = np.random.default_rng(3)
    entries = []
    for _ in range(count):
        scores = np.sort(rng.uniform(rng.uniform(0.1, 0.3), 0.35, SHOWN))[::-1]
        clicked = rng.random(SHOWN) < truth * 0.8 * (scores / 0.35) ** 3
        names = [str(place) for place in range(SHOWN)]
        chosen = [name for name, hit in zip(names, clicked, strict=True) if hit]
        entries.append((names, scores.tolist(), chosen, ''))
    return [entry for entry in entries if entry[2]]  # what is not clicked is not sent


@pytest.mark.parametrize('power', [0.5, 1.0, 1.6])
def test_propensities_are_found_although_better_results_stand_first(power: float) -> None:
    truth = np.maximum(np.arange(1, SHOWN + 1) ** -power, FLOOR)
    entries = simulated(truth)
    found = propensities(counted(entries))[:SHOWN]
    assert np.abs(found - truth).max() < 0.08
    # Without the scores all results count as equally relevant, and places as less looked at than they are.
    bare = propensities(counted((shown, [], clicked, '') for shown, _, clicked, _ in entries))[:SHOWN]
    assert np.abs(bare - truth).mean() > 1.7 * np.abs(found - truth).mean()


NOTHING = Counts({}, {})


def test_without_clicks_a_place_counts_as_one_divided_by_its_number() -> None:
    assert propensities(NOTHING).tolist() == pytest.approx([max(FLOOR, 1 / place) for place in range(1, PLACES + 1)])
    assert counted([(['a', 'b'], [], [], '')]) == NOTHING


def test_a_few_clicks_change_little_and_many_decide() -> None:
    at_second = (['a', 'b'], [0.3, 0.3], ['b'], '')
    at_first = (['a', 'b'], [0.3, 0.3], ['a'], '')
    assert propensities(counted([at_second, at_first]))[1] < 0.6
    assert propensities(counted([at_second, at_first] * 1000))[1] > 0.95


def test_counts_of_several_logs_add_up() -> None:
    one = [(['a', 'b'], [0.303, 0.3], ['b'], '')]
    two = [(['c', 'b'], [0.31, 0.1], ['c'], ''), (['c'], [], ['c'], '')]
    together = counted(one + two)
    assert merged([counted(one).json(), counted(two).json()]) == together
    assert together.places == {0: (3, 2), 1: (2, 1)}
    assert together.pairs == {(0, 1): (0, 1)}


def test_an_entry_survives_its_line_to_the_last_bit(tmp_path: Path) -> None:
    file = tmp_path / 'log.jsonl'
    file.write_text(entry().line() + '\n\n' + entry(scores=(), user='').line() + '\n')
    entries, faults = read_log(file)
    assert (list(entries), faults) == ([1, 3], {})
    first, second = entries.values()
    assert first.vector.tobytes() == entry().vector.tobytes()
    assert {**vars(first), 'vector': None} == {**vars(entry()), 'vector': None}
    assert (second.scores, second.user) == ((), '')


@pytest.mark.parametrize(
    'line',
    [
        '{',
        '[' * 100_000,
        '[]',
        '{"text": "x"}',
        entry().line().replace('0.25', '"x"'),
        entry().line().replace('["b"]', '"b"'),
        entry(scores=(0.1,)).line(),
        entry().line().replace('0.25', '1' + 400 * '0'),
    ],
)
def test_a_line_that_is_no_entry_is_named_and_the_others_count(tmp_path: Path, line: str) -> None:
    file = tmp_path / 'log.jsonl'
    file.write_text(entry().line() + '\n' + line + '\n' + entry().line() + '\n')
    entries, faults = read_log(file)
    assert (list(entries), list(faults)) == ([1, 3], [2])
    file.write_text('\n' + line + '\n')
    with pytest.raises(InvalidParameter, match='line 2 '):
        read_log(file)
    with pytest.raises(InvalidParameter, match='cannot be read'):
        read_log(tmp_path / 'none.jsonl')


def test_what_a_head_has_ordered_tells_nothing_about_places() -> None:
    """Results of equal cosines, of which a head puts first what people want; they look at each place equally often."""
    rng = np.random.default_rng(0)
    names, entries = [str(place) for place in range(4)], []
    for _ in range(2000):
        clicked = [name for name, wanted in zip(names, (0.9, 0.5, 0.1, 0.02), strict=True) if rng.random() < wanted]
        entries.append((names, [0.3] * 4, clicked))
    under = counted((*one, 'a1b2c3') for one in entries)
    assert propensities(under).tolist() == propensities(NOTHING).tolist()
    assert under.places.keys() == {0, 1, 2, 3}  # what was shown and clicked is told all the same
    without = simulated(np.ones(SHOWN), 2000)
    both = counted([*without, *((*one, 'a1b2c3') for one in entries)])
    assert both.pairs == counted(without).pairs


def test_clicks_of_one_search_are_one_entry_and_the_last_judgement_counts() -> None:
    shown = ('a', 'b', 'c')
    given = {'shown': shown, 'scores': (0.5, 0.4, 0.3), 'disliked': ()}
    first = entry(**given | {'clicked': ('c',), 'time': 0.0})
    second = entry(**given | {'clicked': ('a',), 'time': PAUSE - 1})
    third = entry(**given | {'clicked': (), 'disliked': ('c',), 'time': 2 * PAUSE - 3})
    (found,) = searches([first, second, third])
    assert (found.shown, found.clicked, found.disliked) == (shown, ('a',), ('c',))
    later = entry(**given | {'clicked': ('b',), 'time': 3 * PAUSE})
    assert [one.clicked for one in searches([first, second, later])] == [('a', 'c'), ('b',)]


def test_results_that_were_shown_later_belong_to_the_same_search() -> None:
    first = entry(shown=('a', 'b'), scores=(0.5, 0.4), clicked=('a',), disliked=())
    second = entry(shown=('a', 'b', 'c'), scores=(0.5, 0.4, 0.3), clicked=('c',), disliked=('b',))
    for order in ([first, second], [second, first]):
        (found,) = searches(order)
        assert (found.shown, found.scores, found.clicked, found.disliked) == (
            second.shown,
            second.scores,
            ('a', 'c'),
            ('b',),
        )


@pytest.mark.parametrize('other', [{'user': 'v'}, {'shown': ('b', 'a')}, {'shown': ('a', 'c'), 'disliked': ()}])
def test_other_people_and_other_results_are_other_searches(other: dict[str, object]) -> None:
    one, two = entry(clicked=('a',), disliked=()), entry(**{'clicked': ('a',), 'disliked': ()} | other)
    assert searches([one, two]) == [one, two]

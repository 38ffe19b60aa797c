"""Results that differ from each other, against the formula of the paper written out."""

import numpy as np
import pytest
from docarray import Document, DocumentArray
from docarray.score import NamedScore
from numpy.typing import NDArray

from clipflow import wire
from clipflow.errors import InvalidParameter
from clipflow.rank.diversity import mixed
from clipflow.rank.scores import merge
from clipflow.wire import SearchParameters


def unit_rows(count: int, dimension: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(0.4, size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def oracle(scores: NDArray[np.float64], rows: NDArray[np.float32], diversity: float) -> list[int]:
    """argmax over what is not shown of lambda sim(d, q) - (1 - lambda) max sim(d, shown)."""
    shown: list[int] = []
    while len(shown) < len(rows):
        worths = []
        for n in range(len(rows)):
            alike = max((float(rows[n].astype(float) @ rows[m].astype(float)) for m in shown), default=0.0)
            worths.append(-np.inf if n in shown else (1 - diversity) * scores[n] - diversity * alike)
        shown.append(int(np.argmax(worths)))
    return shown


def candidates(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    rows = unit_rows(count, 8, seed)
    scores = rows.astype(float) @ unit_rows(1, 8, seed + 1000)[0].astype(float)
    order = np.argsort(-scores)
    return scores[order], rows[order]


@pytest.mark.parametrize('diversity', [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('seed', range(3))
def test_the_order_is_that_of_the_formula(diversity: float, seed: int) -> None:
    scores, rows = candidates(40, seed)
    assert mixed(scores, rows, diversity, 40) == oracle(scores, rows, diversity)


def test_few_are_the_beginning_of_many() -> None:
    scores, rows = candidates(60, 5)
    whole = mixed(scores, rows, 0.4, 60)
    assert whole != sorted(whole)
    assert [mixed(scores, rows, 0.4, count) for count in range(61)] == [whole[:count] for count in range(61)]
    assert mixed(scores, rows, 0.4, 1000) == whole


def test_the_best_comes_first_whatever_is_asked_for() -> None:
    scores, rows = candidates(20, 6)
    assert mixed(scores, rows, 0.0, 20) == list(range(20))
    assert mixed(scores, rows, 1.0, 20)[0] == 0
    assert mixed(scores[:1], rows[:1], 0.5, 5) == [0]


def test_of_nearly_the_same_pictures_one_stands_in_front() -> None:
    rows = np.array([[1, 0, 0], [0.999, 0.0447, 0], [0.6, 0, 0.8]], dtype=np.float32)
    assert mixed(np.array([0.9, 0.899, 0.8]), rows, 0.5, 3) == [0, 2, 1]


def query(count: int, seed: int, chance: int | None = None) -> Document:
    """Matches as one index sends them, or as several do: in any order."""
    scores, rows = candidates(count, seed)
    matches = []
    for n, (score, row) in enumerate(zip(scores, rows, strict=True)):
        matches.append(Document(id=f'{n:04}', embedding=row, tags={'n': n}))
        matches[-1].scores['cosine'] = NamedScore(value=round(score, 6))
    if chance is not None:
        matches = [matches[n] for n in np.random.default_rng(chance).permutation(count)]
    return Document(text='q', matches=DocumentArray(matches))


def merged(doc: Document, **parameters: object) -> list[str]:
    merge(doc, SearchParameters.parse(parameters))
    return [match.id for match in doc.matches]


def test_pages_follow_one_another_and_go_on_behind_what_is_mixed() -> None:
    count = wire.MIXED + 30
    scores, rows = candidates(count, 7)
    pool = mixed(np.round(scores, 6)[: wire.MIXED], rows[: wire.MIXED], 0.3, wire.MIXED)
    expected = [f'{n:04}' for n in [*pool, *range(wire.MIXED, count)]]
    assert merged(query(count, 7), diversity=0.3, limit=count) == expected
    pages = [merged(query(count, 7, chance=at), diversity=0.3, limit=40, offset=at) for at in range(0, count, 40)]
    assert [name for page in pages for name in page] == expected


def test_the_index_is_asked_for_as_many_whatever_the_page() -> None:
    assert SearchParameters.parse({'limit': 10}).reach == 10
    assert SearchParameters.parse({'diversity': 0, 'limit': 10}).reach == 10
    assert {SearchParameters.parse({'diversity': 0.2, 'limit': n}).reach for n in (1, 10, 48)} == {wire.MIXED}
    assert SearchParameters.parse({'diversity': 0.2, 'limit': 10, 'offset': 400}).reach == 410


def test_near_duplicates_go_before_the_rest_is_mixed_and_vectors_stay_behind() -> None:
    doc = query(40, 8)
    twin = Document(id='twin', embedding=doc.matches[0].embedding)
    twin.scores['cosine'] = NamedScore(value=doc.matches[0].scores['cosine'].value)
    doc.matches.append(twin)
    found = merged(doc, diversity=0.2, dedup=0.9999, limit=41)
    scores, rows = candidates(40, 8)
    assert found == [f'{n:04}' for n in oracle(np.round(scores, 6), rows, 0.2)]
    assert all(match.embedding is None for match in doc.matches)
    doc = query(5, 8)
    merged(doc, diversity=0.2, include=['embedding'])
    assert all(match.embedding is not None for match in doc.matches)


def test_two_orders_at_once_are_refused() -> None:
    with pytest.raises(InvalidParameter, match='two orders'):
        SearchParameters.parse({'sort_by': 'n', 'min_score': 0, 'diversity': 0.5})
    assert SearchParameters.parse({'sort_by': 'n', 'min_score': 0, 'diversity': 0}).sort_by == 'n'

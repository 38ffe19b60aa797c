"""The final order of matches: merged from shards, grouped, cut; and the scores of /rank."""

import json

import numpy as np
import pytest
from docarray import Document, DocumentArray
from docarray.score import NamedScore
from hypothesis import given
from hypothesis import strategies as st

from clipflow import wire
from clipflow.errors import InvalidDocument
from clipflow.rank.head import Head
from clipflow.rank.scores import clip_scores, merge
from clipflow.wire import SearchParameters


def match(identifier: str, score: float, group: object = None) -> Document:
    """As the indexer sends it; `group` is a value of a tag."""
    doc = Document(id=identifier, tags={'mine': identifier})
    doc.scores['cosine'] = NamedScore(value=score)
    if group is not None:
        doc.tags[wire.GROUP] = json.dumps(group)
    return doc


def merged(matches: list[Document], limit: int = 10, offset: int = 0) -> list[str]:
    doc = Document(text='query', matches=DocumentArray(matches))
    merge(doc, SearchParameters(limit=limit, offset=offset))
    return [found.id for found in doc.matches]


def test_the_best_stand_first_and_ties_go_by_id() -> None:
    shards = [match('b', 0.5), match('c', 0.25), match('z', 0.9), match('a', 0.5), match('d', -0.1)]
    assert merged(shards) == ['z', 'a', 'b', 'c', 'd']


def test_one_document_from_two_shards_is_shown_once_with_its_best_score() -> None:
    doc = Document(matches=DocumentArray([match('a', 0.4), match('b', 0.5), match('a', 0.6)]))
    merge(doc, SearchParameters())
    assert [(found.id, found.scores['cosine'].value) for found in doc.matches] == [('a', 0.6), ('b', 0.5)]


def test_of_a_group_the_best_remains_across_shards() -> None:
    shards = [
        match('a', 0.9, 'x'),
        match('b', 0.7, 'y'),
        match('c', 0.95, 'x'),
        match('d', 0.6, {'deep': 1}),
        match('e', 0.5, 'null'),
        match('f', 0.4, 'x'),
    ]
    assert merged(shards) == ['c', 'b', 'd', 'e']


def test_a_group_is_not_mistaken_for_an_id() -> None:
    assert merged([match('"x"', 0.9, 'y'), match('a', 0.8, 'x'), match('b', 0.7, 'a')]) == ['"x"', 'a', 'b']
    assert merged([match('group x', 0.9), match('x', 0.8), match('id x', 0.7)]) == ['group x', 'x', 'id x']


@pytest.mark.parametrize(
    ('limit', 'offset', 'expected'), [(2, 0, 'ab'), (2, 1, 'bc'), (10, 3, 'de'), (1, 4, 'e'), (3, 5, ''), (3, 50, '')]
)
def test_offset_and_limit_cut_the_merged_order(limit: int, offset: int, expected: str) -> None:
    shards = [match(name, score) for name, score in zip('ceadb', (0.3, 0.1, 0.5, 0.2, 0.4), strict=True)]
    assert merged(shards, limit, offset) == list(expected)


def test_private_tags_do_not_leave_the_service() -> None:
    doc = Document(matches=DocumentArray([match('a', 0.4, 'x')]))
    merge(doc, SearchParameters())
    assert doc.matches[0].tags == {'mine': 'a'}


def test_no_matches_are_no_matches() -> None:
    assert merged([]) == []


@given(
    st.dictionaries(st.text('abc', min_size=1, max_size=3), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=12),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_merging_shards_equals_sorting_the_whole(
    scores: dict[str, float], shards: int, limit: int, offset: int, chance: object
) -> None:
    # Each shard sends its first `offset + limit`; shards answer in any order.
    whole = sorted(scores, key=lambda name: (-scores[name], name))
    parts = [[name for name in whole if hash(name) % shards == shard][: offset + limit] for shard in range(shards)]
    chance.shuffle(parts)  # type: ignore[attr-defined]
    sent = [match(name, scores[name]) for part in parts for name in part]
    assert merged(sent, limit, offset) == whole[offset : offset + limit]


def candidate(identifier: str, vector: list[float] | None) -> Document:
    doc = Document(id=identifier, text=identifier, tags={wire.MODEL: 'abc', 'mine': 1})
    if vector is not None:
        doc.embedding = np.array(vector, dtype=np.float32)
    return doc


def query(*candidates: Document) -> Document:
    return Document(id='q', embedding=np.array([1, 0], np.float32), matches=DocumentArray(candidates))


def test_candidates_are_ordered_by_cosine_with_the_softmax_of_the_scale() -> None:
    doc = query(candidate('half', [0.6, 0.8]), candidate('same', [1, 0]), candidate('against', [-1, 0]))
    clip_scores(doc, 2.0)
    assert [found.id for found in doc.matches] == ['same', 'half', 'against']
    weights = np.exp([2.0, 1.2, -2.0])
    for found, cosine, weight in zip(doc.matches, (1, 0.6, -1), weights, strict=True):
        assert found.scores['clip_score_cosine'].value == pytest.approx(cosine, abs=1e-6)
        assert found.scores['clip_score'].value == pytest.approx(weight / weights.sum(), abs=1e-6)
        assert found.embedding is None
        assert found.tags == {'mine': 1}


def test_a_large_scale_gives_no_nan() -> None:
    doc = query(candidate('a', [1, 0]), candidate('b', [-1, 0]))
    clip_scores(doc, 1e4)
    assert [found.scores['clip_score'].value for found in doc.matches] == [1.0, 0.0]


def test_candidates_that_tie_are_ordered_by_id() -> None:
    doc = query(*(candidate(name, [0.6, 0.8]) for name in 'cab'))
    clip_scores(doc, 100.0)
    assert [found.id for found in doc.matches] == ['a', 'b', 'c']
    assert [found.scores['clip_score'].value for found in doc.matches] == pytest.approx([1 / 3] * 3)


def test_a_candidate_that_failed_goes_last_and_keeps_its_error() -> None:
    failed = candidate('bad', None)
    failed.tags[wire.ERROR] = {'code': 'undecodable', 'message': 'm', 'stage': 'preprocessor'}
    doc = query(failed, candidate('a', [0, 1]))
    clip_scores(doc, 100.0)
    assert [found.id for found in doc.matches] == ['a', 'bad']
    assert doc.matches[0].scores['clip_score'].value == 1.0
    assert doc.matches[1].tags[wire.ERROR]['code'] == 'undecodable'
    assert 'clip_score' not in doc.matches[1].scores
    clip_scores(query(candidate('bad', None)), 100.0)


def test_nothing_to_order_is_an_error_of_the_document() -> None:
    with pytest.raises(InvalidDocument, match="'q'"):
        clip_scores(query(), 100.0)
    with pytest.raises(InvalidDocument, match="'q': has no content"):
        clip_scores(Document(id='q', matches=DocumentArray([candidate('a', [1, 0])])), 100.0)


def test_near_duplicates_of_several_shards_leave_the_best_and_their_vectors_stay_behind() -> None:
    rows = {'a': [1, 0], 'b': [0.6, 0.8], 'c': [0.98, 0.199], 'd': [0, 1]}
    matches = [match(name, 0.9 - 0.1 * n) for n, name in enumerate(rows)]
    for found in matches:
        found.embedding = np.array(rows[found.id], dtype=np.float32)
    doc = Document(matches=DocumentArray(matches))
    merge(doc, SearchParameters(dedup=0.9))
    assert [found.id for found in doc.matches] == ['a', 'b', 'd']
    assert all(found.embedding is None for found in doc.matches)


@pytest.mark.parametrize(
    ('sort_by', 'expected'),
    [('n', ['b', 'c', 'a', 'text', 'none']), ('-n', ['a', 'b', 'c', 'text', 'none'])],
)
def test_results_in_the_order_of_a_tag_are_merged_in_it(sort_by: str, expected: list[str]) -> None:
    marks = {'none': [2, ''], 'text': [1, 'x'], 'a': [0, 5.0], 'b': [0, 1.0], 'c': [0, 1.0]}
    matches = [match(name, 0.9 - 0.1 * n) for n, name in enumerate(marks)]
    for found in matches:
        found.tags[wire.SORT] = marks[found.id]
    doc = Document(matches=DocumentArray(matches))
    merge(doc, SearchParameters(sort_by=sort_by, min_score=0))
    assert [found.id for found in doc.matches] == expected
    assert all(wire.SORT not in found.tags for found in doc.matches)


def headed(limit: int, offset: int = 0, text: str = 'a text', **parameters: object) -> list[tuple[str, bool]]:
    """Five matches with vectors on a quarter circle; a head turns the query round; ids, and whether it scored them."""
    angles = np.linspace(0.1, 1.4, 5)
    matches = [match(name, float(np.cos(angle))) for name, angle in zip('abcde', angles, strict=True)]
    for one, angle in zip(matches, angles, strict=True):
        one.embedding = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    doc = Document(text=text, embedding=np.array([1, 0], dtype=np.float32), matches=DocumentArray(matches))
    turned = Head(np.array([[1, 0]], dtype=np.float32), np.array([[-1], [1]], dtype=np.float32), 'm')
    given = {'limit': limit, 'offset': offset, wire.CANDIDATES: 3} | parameters
    merge(doc, SearchParameters.parse(given), turned)
    return [(one.id, 'head' in one.scores) for one in doc.matches]


def test_a_head_orders_the_candidates_and_the_rest_follows() -> None:
    order = [('c', True), ('b', True), ('a', True), ('d', False), ('e', False)]
    assert headed(5) == order
    assert [headed(2, start) for start in (0, 2, 4)] == [order[:2], order[2:4], order[4:]]


def test_a_head_leaves_queries_without_a_text_alone() -> None:
    assert headed(5, text='') == [(name, False) for name in 'abcde']


def test_results_of_a_head_can_differ_from_each_other_and_go_on_behind_it() -> None:
    assert headed(5, diversity=0.9)[:2] == [('c', True), ('a', True)]
    assert headed(5, diversity=0.9)[3:] == [('d', False), ('e', False)]

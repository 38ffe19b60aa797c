"""`/search` through plain `jina.Client`: its parameters, against cosines computed here from `/encode`."""

import json
from typing import Any

import numpy as np
import pytest
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from clipflow.errors import InvalidFilter, InvalidParameter
from service import Service, png

COUNT = 30


@pytest.fixture
def collection(fake: Service) -> dict[str, NDArray[np.float32]]:
    """Thirty texts and pictures in three albums; their vectors as `/encode` gives them, by id."""
    docs = DocumentArray(
        [Document(id=f't{i:02}', text=f'text {i}', tags={'album': i % 3, 'place': i}) for i in range(COUNT - 3)]
    )
    for i, colour in enumerate(('red', 'green', 'blue')):
        docs.append(Document(id=colour, blob=png(colour), uri=f'http://there/{colour}', tags={'album': i, 'place': -i}))
    fake.post('/index', docs)
    return {doc.id: doc.embedding for doc in fake.post('/encode', docs)}


def _vector(service: Service, doc: Document) -> NDArray[np.float64]:
    return np.asarray(service.one('/encode', doc).embedding, dtype=np.float64)


def _ranking(collection: dict[str, NDArray[np.float32]], query: NDArray[np.float64]) -> list[tuple[str, float]]:
    scores = {name: float(vector.astype(np.float64) @ query) for name, vector in collection.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


def _found(matches: DocumentArray) -> list[tuple[str, float]]:
    return [(match.id, match.scores['cosine'].value) for match in matches]


def _assert_equal(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)


@pytest.mark.parametrize('query', [Document(text='text 5'), Document(text='other'), Document(blob=png('blue'))])
def test_matches_come_best_first_with_their_cosine(
    fake: Service, collection: dict[str, NDArray[np.float32]], query: Document
) -> None:
    expected = _ranking(collection, _vector(fake, query))
    _assert_equal(_found(fake.matches(query, limit=COUNT)), expected)


def test_ten_matches_come_without_a_limit_and_never_fewer_than_asked_for(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    assert len(fake.matches('x')) == 10
    assert [len(fake.matches('x', limit=limit)) for limit in (1.0, 7.0, 30.0, 10_000.0)] == [1, 7, 30, 30]


def test_pages_by_offset_are_pieces_of_one_order(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    whole = _found(fake.matches('x', limit=COUNT))
    for size in (1, 4, 11):
        pages = [_found(fake.matches('x', limit=size, offset=start)) for start in range(0, COUNT + size, size)]
        assert [match for page in pages for match in page] == whole


def test_fewer_matches_are_a_prefix_of_more(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    whole = _found(fake.matches('x', limit=COUNT))
    assert all(_found(fake.matches('x', limit=limit)) == whole[:limit] for limit in range(1, COUNT + 1))


def test_equal_scores_are_ordered_by_id(fake: Service) -> None:
    ids = [f'{i * 7919 % 50:02}' for i in range(50)]
    fake.post('/index', DocumentArray([Document(id=name, text='the same') for name in ids]))
    assert [match.id for match in fake.matches('the same', limit=50)] == sorted(ids)
    assert [match.id for match in fake.matches('the same', limit=3, offset=2)] == sorted(ids)[2:5]


def test_every_query_of_a_request_gets_its_own_matches_under_its_id(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    names = list(collection)[:20]
    reply = fake.post('/search', [Document(id='q ' + name, embedding=collection[name]) for name in names])
    assert [(doc.id, doc.matches[0].id) for doc in reply] == [('q ' + name, name) for name in names]


def test_matches_that_a_query_brings_are_replaced(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    query = Document(text='x', matches=DocumentArray([Document(id='old', text='old')]))
    found = fake.matches(query, limit=COUNT)
    assert {match.id for match in found} == set(collection)


@pytest.mark.parametrize(
    ('condition', 'passes'),
    [
        ({'album': 1}, lambda tags: tags['album'] == 1),
        ({'place': {'$lt': 5}}, lambda tags: tags['place'] < 5),
        ({'$or': [{'place': {'$gte': 20}}, {'album': {'$in': [0]}}]}, lambda t: t['place'] >= 20 or t['album'] == 0),
        ({'$not': {'album': {'$neq': 2}}, 'place': {'$gt': 3}}, lambda t: t['album'] == 2 and t['place'] > 3),
        ({'nothing': {'$exists': False}}, lambda tags: True),
        ({'nothing': 1}, lambda tags: False),
    ],
)
def test_a_filter_leaves_the_order_of_what_passes_it(
    fake: Service, collection: dict[str, NDArray[np.float32]], condition: dict[str, Any], passes: Any
) -> None:
    tags = {doc.id: doc.tags for doc in fake.post('/get', None, {'limit': COUNT})}
    expected = [item for item in _ranking(collection, _vector(fake, Document(text='x'))) if passes(tags[item[0]])]
    _assert_equal(_found(fake.matches('x', limit=COUNT, filter=condition)), expected)


def test_min_score_cuts_the_list_where_the_score_falls_below_it(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    whole = _found(fake.matches('x', limit=COUNT))
    floor = (whole[6][1] + whole[7][1]) / 2
    assert _found(fake.matches('x', limit=COUNT, min_score=floor)) == whole[:7]
    assert _found(fake.matches('x', min_score=1.0)) == []


def test_group_by_gives_the_best_of_each_group(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    tags = {doc.id: doc.tags for doc in fake.post('/get', None, {'limit': COUNT})}
    best: dict[float, tuple[str, float]] = {}
    for item in _ranking(collection, _vector(fake, Document(text='x'))):
        best.setdefault(tags[item[0]]['album'], item)
    found = fake.matches('x', limit=COUNT, group_by='album')
    _assert_equal(_found(found), sorted(best.values(), key=lambda item: -item[1]))
    assert not any(name.startswith('__') for match in found for name in match.tags)
    assert _found(fake.matches('x', limit=1, offset=1, group_by='album')) == _found(found)[1:2]


def test_templates_are_averaged_into_one_query(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    filled = ['a photo of x', 'x, drawn']
    mean = np.sum([_vector(fake, Document(text=text)) for text in filled], axis=0)
    expected = _ranking(collection, mean / np.linalg.norm(mean))
    found = fake.matches('x', limit=COUNT, templates=['a photo of {}', '{}, drawn'])
    _assert_equal(_found(found), expected)


def test_a_composed_query_is_the_weighted_sum_of_its_parts(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    parts = [Document(text='text 3'), Document(blob=png('green'), weight=0.5), Document(text='text 4', weight=-0.7)]
    total = sum(
        weight * _vector(fake, Document(part, copy=True)) for part, weight in zip(parts, (1.0, 0.5, -0.7), strict=True)
    )
    found = fake.matches(Document(chunks=DocumentArray(parts)), limit=COUNT)
    _assert_equal(_found(found), _ranking(collection, total / np.linalg.norm(total)))
    assert found[0].id != 't04'


def test_a_ready_embedding_is_used_as_it_is_at_any_length(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    vector = np.random.default_rng(7).normal(size=32)
    expected = _ranking(collection, vector / np.linalg.norm(vector))
    for scale in (1.0, 1e-3, 1e6):
        _assert_equal(_found(fake.matches(Document(embedding=scale * vector), limit=COUNT)), expected)


def test_an_indexed_embedding_is_found_and_stored_at_unit_length(fake: Service) -> None:
    vector = np.random.default_rng(8).normal(size=32) * 100
    fake.post('/index', Document(id='v', embedding=vector, tags={'kind': 'vector'}))
    stored = fake.one('/get', Document(id='v'), {'include': ['embedding', 'tags']})
    assert stored.embedding == pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)
    assert [(m.id, dict(m.tags)) for m in fake.matches(Document(embedding=vector))] == [('v', {'kind': 'vector'})]


@pytest.mark.parametrize('name', ['access_paths', 'traversal_paths'])
def test_access_paths_search_with_the_chunks_of_a_document(
    fake: Service, collection: dict[str, NDArray[np.float32]], name: str
) -> None:
    chunks = DocumentArray([Document(id='c1', text='text 1'), Document(id='c2', blob=png('red'))])
    reply = fake.one('/search', Document(id='root', chunks=chunks), {name: '@c', 'limit': 1})
    assert reply.id == 'root'
    assert len(reply.matches) == 0
    assert [(chunk.id, chunk.matches[0].id) for chunk in reply.chunks] == [('c1', 't01'), ('c2', 'red')]


@pytest.mark.parametrize(
    ('include', 'expected'),
    [
        (None, {'tags', 'uri'}),
        ([], set()),
        (['tags'], {'tags'}),
        (['thumbnail'], {'thumbnail'}),
        (['embedding', 'uri'], {'embedding', 'uri'}),
        (['tags', 'uri', 'thumbnail', 'embedding'], {'tags', 'uri', 'thumbnail', 'embedding'}),
    ],
)
def test_include_says_what_comes_with_a_match(
    fake: Service, collection: dict[str, NDArray[np.float32]], include: list[str] | None, expected: set[str]
) -> None:
    given = {} if include is None else {'include': include}
    match = fake.matches(Document(blob=png('green')), limit=1, **given)[0]
    assert match.id == 'green'
    present = {'tags': match.tags, 'uri': match.uri, 'thumbnail': match.blob, 'embedding': match.embedding is not None}
    assert {name for name, value in present.items() if value} == expected
    if 'embedding' in expected:
        assert np.array_equal(match.embedding, collection['green'])


def test_the_text_of_a_match_always_comes_with_it(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    assert fake.matches('text 9', limit=1, include=[])[0].text == 'text 9'


def test_the_query_comes_back_without_embedding_unless_asked_for(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    query = Document(id='q', blob=png('red'), tags={'mine': 1}, uri='http://mine')
    plain = fake.one('/search', query)
    assert (plain.id, plain.blob, plain.tensor, plain.embedding) == ('q', b'', None, None)
    assert (dict(plain.tags), plain.uri) == ({'mine': 1}, 'http://mine')
    assert fake.one('/search', query, {'include': ['embedding']}).embedding is not None
    assert fake.one('/search', query, {'drop_image_content': False}).blob == query.blob


def test_an_empty_index_answers_with_no_matches(fake: Service) -> None:
    for parameters in ({}, {'filter': {'a': 1}}, {'group_by': 'a'}, {'offset': 5}, {'min_score': 0.0}):
        assert len(fake.matches('anything', **parameters)) == 0


@pytest.mark.parametrize(
    ('parameters', 'name'),
    [
        ({'offset': -1}, 'offset'),
        ({'min_score': 1.5}, 'min_score'),
        ({'min_score': 'high'}, 'min_score'),
        ({'include': ['tag']}, 'include'),
        ({'include': 'tags'}, 'include'),
        ({'group_by': ''}, 'group_by'),
        ({'group_by': 3}, 'group_by'),
        ({'templates': ['no place']}, 'templates'),
        ({'templates': ['{} and {}']}, 'templates'),
        ({'access_paths': 'c'}, 'access_paths'),
        ({'access_paths': '@x'}, 'access_paths'),
        ({'nprobe': 0}, 'nprobe'),
    ],
)
def test_a_bad_value_of_a_parameter_fails_the_request_and_names_the_parameter(
    fake: Service, parameters: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidParameter, match=name):
        fake.post('/search', Document(text='x'), parameters)


def test_a_bad_filter_fails_the_whole_request_before_any_work(fake: Service) -> None:
    with pytest.raises(InvalidFilter, match=r'\$near'):
        fake.post('/search', [Document(text='x'), Document(text='y')], {'filter': {'place': {'$near': 1}}})


def test_parameters_of_approximate_indexes_are_accepted_by_an_exact_one(
    fake: Service, collection: dict[str, NDArray[np.float32]]
) -> None:
    plain = _found(fake.matches('x'))
    assert _found(fake.matches('x', nprobe=8.0, ef_search=64.0, rerank=False)) == plain


def test_a_search_reply_is_all_json(fake: Service, collection: dict[str, NDArray[np.float32]]) -> None:
    found = fake.matches('x', include=['tags', 'uri'])
    told = [{'id': match.id, 'tags': match.tags, 'score': match.scores['cosine'].value} for match in found]
    json.dumps(told, allow_nan=False, default=dict)

"""flows/sharded.yml: three shards answer as one index does, and say so when one of them is away."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from docarray import Document, DocumentArray

from clipflow import ROOT, wire
from clipflow.errors import InvalidParameter, Unavailable
from clipflow.sharding import shard_of
from clipflow_client import Client
from service import Service, error_codes, until

SHARDS = 3
COUNT = 60
DIMENSION = 32
"""Of the vectors that the session `fake` makes."""


@pytest.fixture(scope='module')
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(
        tmp_path_factory.mktemp('sharded'),
        {'RUNTIME': 'fake', 'SHARD_TIMEOUT': '2'},
        flow=ROOT / 'flows' / 'sharded.yml',
    ) as running:
        yield running


def documents() -> DocumentArray:
    """Texts with tags, in groups, some of them nearly the same."""
    rng = np.random.default_rng(1)
    docs = DocumentArray()
    for n in range(COUNT):
        row = rng.normal(0.3, size=DIMENSION) if n % 5 else rng.normal(1, 0.001, size=DIMENSION)
        docs.append(Document(id=f'd{n}', embedding=row.astype(np.float32), tags={'n': n, 'group': f'g{n % 7}'}))
    return docs


QUERY = Document(embedding=np.ones(DIMENSION, dtype=np.float32))
SEARCHES: list[dict[str, Any]] = [
    {},
    {'limit': 7, 'offset': 5},
    {'limit': 200},
    {'filter': {'n': {'$lt': 20}}},
    {'min_score': 0.28, 'limit': 50},
    {'group_by': 'group'},
    {'dedup': 0.9},
    {'sort_by': '-n', 'min_score': 0.28},
    {'include': ['embedding']},
    {'diversity': 0.3},
    {'diversity': 0.3, 'limit': 7, 'offset': 5},
    {'diversity': 0.5, 'dedup': 0.9, 'filter': {'n': {'$gt': 10}}, 'limit': 20},
    {'diversity': 0.2, 'group_by': 'group'},
    {'relevance': 0.8, 'limit': 50},
]


@pytest.fixture
def filled(sharded: Service) -> Service:
    sharded.post('/clear')
    assert set(error_codes(sharded.post('/index', documents())).values()) == {None}
    return sharded


def found(service: Service, **parameters: Any) -> list[tuple[str, float, dict[str, Any]]]:
    matches = service.one('/search', QUERY, parameters).matches
    return [(match.id, match.scores['cosine'].value, dict(match.tags)) for match in matches]


@pytest.mark.parametrize('parameters', SEARCHES, ids=str)
def test_a_search_over_shards_gives_what_one_index_gives(
    filled: Service, fake: Service, parameters: dict[str, Any]
) -> None:
    fake.post('/index', documents())
    expected = found(fake, **parameters)
    assert expected
    assert found(filled, **parameters) == expected


def percentiles(service: Service, **parameters: Any) -> dict[str, float]:
    asked = {'include': ['percentile'], 'limit': 1000, **parameters}
    return {match.id: match.scores['percentile'].value for match in service.one('/search', QUERY, asked).matches}


def test_a_percentile_is_that_of_the_whole_collection(filled: Service, fake: Service) -> None:
    fake.post('/index', documents())
    alone = percentiles(fake)
    assert len(alone) == COUNT
    # Each shard's sample is all that it has, so the samples together are the collection.
    assert percentiles(filled) == alone
    scores = {name: score for name, score, _ in found(filled, limit=COUNT)}
    lower = {name: sum(other < score for other in scores.values()) / COUNT for name, score in scores.items()}
    assert alone == pytest.approx(lower, abs=1e-6)
    assert len(set(alone.values())) > COUNT / 2
    assert 'percentile' not in filled.one('/search', QUERY).matches[0].scores


def test_each_shard_keeps_the_ids_that_hash_to_it(filled: Service) -> None:
    counts = [0] * SHARDS
    for doc in documents():
        counts[shard_of(doc.id, SHARDS)] += 1
    assert min(counts) > 10
    told = {doc.id: doc.tags for doc in filled.post('/status')}
    assert [told[f'indexer_{n}']['documents'] for n in range(SHARDS)] == counts
    assert [told[f'indexer_{n}']['shard'] for n in range(SHARDS)] == list(range(SHARDS))
    assert {'preprocessor', 'encoder', 'ranker'} <= set(told)


def test_documents_are_changed_read_and_deleted_wherever_they_are(filled: Service) -> None:
    codes = error_codes(
        filled.post(
            '/update', [Document(id=f'd{n}', tags={'new': n}) for n in (1, 2, 3)] + [Document(id='no', tags={'a': 1})]
        )
    )
    assert codes == {'d1': None, 'd2': None, 'd3': None, 'no': 'not-found'}
    asked = ['d3', 'no', 'd1', 'd2', 'd1']
    reply = filled.post('/get', None, {'ids': asked})
    assert [doc.id for doc in reply] == ['d3', 'no', 'd1', 'd2']
    assert error_codes(reply) == {'d3': None, 'no': 'not-found', 'd1': None, 'd2': None}
    assert reply[0].tags['new'] == 3
    pages = [[doc.id for doc in filled.post('/get', None, {'limit': 25, 'offset': offset})] for offset in (0, 25, 50)]
    assert [len(page) for page in pages] == [25, 25, 10]
    assert len({name for page in pages for name in page}) == COUNT
    assert filled.post('/delete', None, {'ids': ['d1', 'd2', 'no']})[0].tags['deleted'] == 2
    assert filled.post('/delete', None, {'filter': {'n': {'$lt': 10}}})[0].tags['deleted'] == 8
    snapshot = filled.post('/snapshot')[0].tags
    assert (set(snapshot), snapshot['documents']) == ({'documents', 'bytes'}, COUNT - 10)
    assert filled.post('/clear')[0].tags['deleted'] == COUNT - 10
    assert found(filled) == []


def test_values_are_counted_over_all_shards_and_numbers_are_good_for_all(filled: Service) -> None:
    told = filled.post('/facets', None, {'limit': 3})[0].tags
    groups = next(facet for facet in told['facets'] if facet['tag'] == 'group')['values']
    assert [(item['value'], item['count']) for item in groups] == [('g0', 9), ('g1', 9), ('g2', 9)]
    some = filled.post('/facets', None, {'filter': {'n': {'$lt': 7}}})[0].tags['facets']
    assert next(facet for facet in some if facet['tag'] == 'group')['values'] == [
        {'value': f'g{n}', 'count': 1} for n in range(7)
    ]
    keys = {doc.id: doc.tags[wire.KEY] for doc in filled.post('/get', None, {'limit': COUNT, 'include': ['key']})}
    assert len(set(keys.values())) == COUNT
    asked = [keys[f'd{n}'] for n in range(5)]
    reply = filled.post('/get', None, {'keys': [*asked, 10**9], 'include': ['key', 'tags']})
    assert {(doc.id, doc.tags[wire.KEY]) for doc in reply} == {(f'd{n}', keys[f'd{n}']) for n in range(5)}
    for match in filled.one('/search', QUERY, {'limit': 5, 'include': ['key']}).matches:
        assert match.tags[wire.KEY] == keys[match.id]


def test_feedback_is_kept_by_one_shard(filled: Service) -> None:
    told = filled.post('/feedback', Document(text='x'), {'shown': ['d1', 'd2'], 'clicked': ['d2']})
    assert told[0].tags['stored'] == 1
    assert len(list((filled.workspace / 'feedback').glob('*.db'))) == 1


def test_a_bad_document_and_a_bad_request_fail_as_with_one_index(filled: Service) -> None:
    docs = [Document(id=f'x{n}', text='a') for n in range(6)] + [Document(id='bad')]
    codes = error_codes(filled.post('/index', docs))
    assert codes == {f'x{n}': None for n in range(6)} | {'bad': 'invalid-document'}
    with pytest.raises(InvalidParameter, match='limit'):
        filled.matches('x', limit=0)
    assert filled.one('/encode', Document(text='a')).embedding is not None


def test_chunks_by_themselves_are_for_one_shard(filled: Service, fake: Service) -> None:
    book = Document(id='book', chunks=[Document(id=f'p{n}', text=f'page {n}') for n in range(6)])
    asked = Document(id='asked', chunks=[Document(id='q', text='page 3')])
    fake.post('/index', book, {'access_paths': '@c'})
    (query,) = fake.one('/search', asked, {'access_paths': '@c'}).chunks
    assert {match.id for match in query.matches} == {f'p{n}' for n in range(6)}
    for endpoint, doc in (('/index', book), ('/search', asked)):
        with pytest.raises(InvalidParameter, match='several shards'):
            filled.post(endpoint, doc, {'access_paths': '@c'})
    assert filled.stored_ids() == {f'd{n}' for n in range(COUNT)}


def test_while_a_shard_is_away_the_rest_answer_and_say_that_something_is_missing(filled: Service) -> None:
    everything = found(filled, limit=COUNT)
    at_one = {doc.id for doc in documents() if shard_of(doc.id, SHARDS) == 1}
    # Nobody starts it again, so that the gateway's repetitions do not reach it.
    filled.process.send_signal(signal.SIGSTOP)
    try:
        filled.kill('indexer_1')
        until(lambda: wire.PARTIAL in filled.one('/search', QUERY).tags, 60, 'the shard is away')
        partial = filled.one('/search', QUERY, {'limit': COUNT})
        assert partial.tags[wire.PARTIAL] is True
        assert {match.id for match in partial.matches} == {name for name, _, _ in everything} - at_one
        with httpx.Client(base_url=filled.http, timeout=60, trust_env=False) as http:
            assert http.post('/v1/search', json={'embedding': [1.0] * DIMENSION, 'limit': 3}).json()['partial'] is True
            assert http.get('/readyz').json() == {'status': 'ready'}
        with Client(filled.grpc) as client:
            assert client.search(QUERY, limit=3).partial is True
        here, there = (next(doc.id for doc in documents() if shard_of(doc.id, SHARDS) == n) for n in (0, 1))
        codes = error_codes(filled.post('/update', [Document(id=name, tags={'a': 1}) for name in (here, there)]))
        assert codes == {here: None, there: 'unavailable'}
        assert error_codes(filled.post('/get', None, {'ids': [here, there]})) == {here: None, there: 'unavailable'}
        told = {doc.id: doc.tags['ready'] for doc in filled.post('/status')}
        assert (told['indexer_0'], told['indexer_1']) == (True, False)
        with pytest.raises(Unavailable, match='indexer_1'):
            filled.post('/delete', None, {'ids': [there]})
    finally:
        filled.process.send_signal(signal.SIGCONT)
    filled.wait_until_ready_again('indexer_1')
    until(lambda: wire.PARTIAL not in filled.one('/search', QUERY).tags, 60, 'the shard is found again')
    assert [name for name, _, _ in found(filled, limit=COUNT)] == [name for name, _, _ in everything]
    with Client(filled.grpc) as client:
        assert client.search(QUERY, limit=3).partial is False


def test_a_shard_that_hangs_is_waited_for_a_little_and_found_again(filled: Service) -> None:
    everything = found(filled, limit=COUNT)
    there = [name for name, _, _ in everything if shard_of(name, SHARDS) != 1]
    os.kill(filled.pids['indexer_1'], signal.SIGSTOP)
    try:
        begun = time.monotonic()
        partial = filled.one('/search', QUERY, {'limit': COUNT})
        spent = time.monotonic() - begun
        assert partial.tags[wire.PARTIAL] is True
        assert [match.id for match in partial.matches] == there
        assert 1.9 < spent < 30, 'neither at once nor at the deadline'
        with httpx.Client(base_url=filled.http, timeout=60, trust_env=False) as http:
            assert http.post('/v1/search', json={'embedding': [1.0] * DIMENSION}).json()['partial'] is True
    finally:
        os.kill(filled.pids['indexer_1'], signal.SIGCONT)
    until(lambda: wire.PARTIAL not in filled.one('/search', QUERY).tags, 60, 'the shard is found again')
    assert found(filled, limit=COUNT) == everything

"""What a search may ask of the index, through the whole service; and the index on disk."""

from typing import Any

import httpx
import numpy as np
import pytest
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from clipflow.errors import InvalidParameter
from clipflow_client import Client
from service import Service, until

DIMENSION = 32
COSINES = (0.9, 0.899, 0.7, 0.5, 0.3, 0.1, -0.2)


def at(cosine: float, axis: int) -> NDArray[np.float32]:
    """A unit vector at this cosine from the first axis."""
    row = np.zeros(DIMENSION, dtype=np.float32)
    row[0], row[axis] = cosine, np.sqrt(1 - cosine**2)
    return row


QUERY = Document(embedding=at(1.0, 1))


@pytest.fixture
def filled(fake: Service) -> Service:
    """Seven documents, each less near than the one before; the first two nearly the same; with prices."""
    prices = [5, 1, None, 3, 'cheap', 9, 2]
    docs = DocumentArray()
    for n, (cosine, price) in enumerate(zip(COSINES, prices, strict=True)):
        tags = {} if price is None else {'price': price}
        docs.append(Document(id=str(n), embedding=at(cosine, max(1, n)), tags=tags))
    fake.post('/index', docs)
    return fake


def found(service: Service, **parameters: Any) -> list[str]:
    return [match.id for match in service.one('/search', QUERY, parameters).matches]


def test_the_order_of_a_tag_among_what_is_relevant(filled: Service) -> None:
    assert found(filled, sort_by='price', min_score=0.2) == ['1', '3', '0', '4', '2']
    assert found(filled, sort_by='-price', min_score=0.2, limit=2, offset=1) == ['3', '1']
    match = filled.one('/search', QUERY, {'sort_by': 'price', 'min_score': 0.2}).matches[0]
    assert dict(match.tags) == {'price': 1}
    with pytest.raises(InvalidParameter, match='relevance'):
        found(filled, sort_by='price')


def test_near_duplicates_and_their_vectors_stay_behind(filled: Service) -> None:
    assert found(filled, dedup=0.95, limit=3) == ['0', '2', '3']
    assert all(m.embedding is None for m in filled.one('/search', QUERY, {'dedup': 0.95}).matches)
    with_vectors = filled.one('/search', QUERY, {'dedup': 0.95, 'include': ['embedding']}).matches
    assert with_vectors[0].embedding == pytest.approx(at(COSINES[0], 1), abs=1e-6)


def test_percentiles_and_the_relevance_that_they_mean(filled: Service) -> None:
    # The whole collection is the sample: of the seven, six score less than the best.
    matches = filled.one('/search', QUERY, {'include': ['percentile']}).matches
    assert [m.scores['percentile'].value for m in matches] == pytest.approx([(6 - n) / 7 for n in range(7)])
    assert found(filled, relevance=0.5) == ['0', '1', '2', '3']
    with Client(filled.grpc) as client:
        first = client.search(QUERY, include=['percentile'])[0]
    assert first.percentile == pytest.approx(6 / 7, abs=1e-4)
    assert filled.matches(QUERY)[0].scores.keys() == {'cosine'}


def test_all_of_it_by_http_too(filled: Service, http: httpx.Client) -> None:
    def search(**body: Any) -> list[str]:
        reply = http.post('/v1/search', json={'embedding': at(1.0, 1).tolist(), **body})
        assert reply.status_code == 200, reply.text
        return [match['id'] for match in reply.json()['matches']]

    assert search(sort_by='price', relevance=0.5) == ['1', '3', '0', '2']
    assert search(dedup=0.95, limit=2) == ['0', '2']
    assert search(nprobe=4, ef_search=50) == [str(n) for n in range(7)]
    refused = http.post('/v1/search', json={'text': 'x', 'sort_by': 'price'})
    assert (refused.status_code, refused.json()['code']) == (400, 'invalid-parameter')


@pytest.mark.parametrize(
    'parameters',
    [
        {'relevance': 1},
        {'relevance': -0.1},
        {'dedup': 0},
        {'dedup': 1.5},
        {'sort_by': ''},
        {'sort_by': '-'},
        {'nprobe': 0},
        {'ef_search': 0.5},
        {'include': ['percentiles']},
    ],
    ids=str,
)
def test_what_is_out_of_range_is_named(filled: Service, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=next(iter(parameters))):
        found(filled, **parameters)


def test_a_snapshot_serves_the_next_start_of_the_indexer(furnished: Service) -> None:
    docs = [Document(id=f'{n}', text=f'text {n}', tags={'n': n}) for n in range(20)]
    before = furnished.post('/snapshot')[0].tags['sequence']
    furnished.post('/index', docs)
    told = furnished.post('/snapshot')[0].tags
    assert (told['documents'], told['sequence']) == (20, before + 20)
    furnished.post('/delete', None, {'ids': ['3']})
    furnished.post('/index', Document(id='new', text='text new'))
    furnished.kill('indexer')
    furnished.wait_until_ready_again('indexer')
    until(
        lambda: httpx.get(f'{furnished.http}/readyz', timeout=60, trust_env=False).status_code == 200,
        60,
        'readyz says yes',
    )
    status = next(doc.tags for doc in furnished.post('/status') if doc.tags['stage'] == 'indexer')
    assert status['start'].startswith('20 documents from a snapshot, 2 later changes')
    assert furnished.stored_ids() == {f'{n}' for n in range(20) if n != 3} | {'new'}
    assert furnished.matches('text new', limit=1)[0].id == 'new'
    assert '3' not in {match.id for match in furnished.matches('text 3', limit=30)}
    assert [match.id for match in furnished.matches('text 5', filter={'n': 7})] == ['7']

"""The published clip_client package, unchanged, over gRPC."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_client import Client as ClipClient
from docarray import Document, DocumentArray

from clipflow_client import Client
from service import Service


@pytest.fixture
def theirs(model_service: Service) -> ClipClient:
    """clip_client, connected to an empty service with the bundled model."""
    model_service.post('/clear')
    return ClipClient(f'grpc://{model_service.grpc}')


def test_encode_gives_the_vectors_of_our_own_client(
    theirs: ClipClient, model_service: Service, photographs: Path
) -> None:
    cat = photographs / 'chelsea.png'
    found = theirs.encode(['a cat', str(cat), 'a dog'], batch_size=2)
    with Client(model_service.grpc) as ours:
        expected = ours.encode(['a cat', cat, 'a dog'])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_encode_takes_documents_generators_and_the_name_of_the_model(theirs: ClipClient, photographs: Path) -> None:
    docs = [Document(text='a cat'), Document(uri=str(photographs / 'coffee.png')), Document(text='a dog')]
    found = theirs.encode(DocumentArray(docs), show_progress=True)
    assert [doc.id for doc in found] == [doc.id for doc in docs]
    assert all(abs(float(np.linalg.norm(doc.embedding)) - 1) < 1e-5 for doc in found)
    generated = theirs.encode((Document(text=str(i)) for i in range(20)), batch_size=4)
    assert generated.embeddings.shape[0] == 20
    named = theirs.encode(['a cat'], parameters={'model_name': 'clip-mini'})
    np.testing.assert_allclose(named[0], found[0].embedding, atol=1e-5)


def test_index_and_search_find_the_right_photograph(theirs: ClipClient, photographs: Path) -> None:
    names = ('chelsea.png', 'coffee.png', 'rocket.jpg')
    theirs.index([Document(id=name, uri=str(photographs / name)) for name in names])
    found = theirs.search(['a cup of coffee', 'a cat'], limit=2)
    assert [doc.matches[0].id for doc in found] == ['coffee.png', 'chelsea.png']
    assert [len(doc.matches) for doc in found] == [2, 2]
    assert found[0].matches[0].scores['cosine'].value > found[0].matches[1].scores['cosine'].value


def test_rank_orders_the_matches(theirs: ClipClient, photographs: Path) -> None:
    sentences = ['a dog on a beach', 'a cat', 'a rocket']
    query = Document(uri=str(photographs / 'chelsea.png'), matches=[Document(text=text) for text in sentences])
    matches = theirs.rank([query])[0].matches
    assert matches[0].text == 'a cat'
    assert sum(match.scores['clip_score'].value for match in matches) == pytest.approx(1, abs=1e-4)
    assert matches[0].scores['clip_score_cosine'].value <= 1


def test_profile_tells_five_times(theirs: ClipClient) -> None:
    told = theirs.profile('a cat')
    assert len(told) == 5
    assert told['Roundtrip'] > 0


def test_callbacks_are_called_once_a_request(theirs: ClipClient) -> None:
    seen: list[Any] = []
    assert theirs.encode(['one', 'two', 'three'], batch_size=1, on_done=seen.append) is None
    assert sorted(len(reply.docs) for reply in seen) == [1, 1, 1]


def test_the_asynchronous_forms_work(theirs: ClipClient, photographs: Path) -> None:
    async def drive() -> tuple[Any, Any, Any]:
        encoded = await theirs.aencode(['a cat', 'a dog'])
        await theirs.aindex([Document(id='cat', uri=str(photographs / 'chelsea.png'))])
        found = await theirs.asearch(['a cat'])
        query = Document(text='a cat', matches=[Document(text='a kitten'), Document(text='a truck')])
        return encoded, found, await theirs.arank([query])

    encoded, found, ranked = asyncio.run(drive())
    assert encoded.shape[0] == 2
    assert found[0].matches[0].id == 'cat'
    assert ranked[0].matches[0].text == 'a kitten'

"""The bundled model finds photographs by what they show, and a stopped service comes back as it was."""

from pathlib import Path
from typing import Any

import pytest
from docarray import Document, DocumentArray

from clipflow_client import Client
from forms import long
from service import Service

EXPECTED = {
    'a cat': 'chelsea.png',
    'a cup of coffee': 'coffee.png',
    'a rocket launch': 'rocket.jpg',
    'a man with a camera': 'camera.png',
    'a clock': 'clock_motion.png',
    'a motorcycle': 'motorcycle_left.png',
}
OTHERS = ('astronaut.png', 'brick.png', 'coins.png', 'grass.png', 'hubble_deep_field.jpg', 'moon.png', 'page.png')


@pytest.fixture
def album(model_service: Service, photographs: Path) -> DocumentArray:
    """Thirteen photographs, stored in a service of which nothing else is stored."""
    names = [*EXPECTED.values(), *OTHERS]
    docs = DocumentArray([Document(id=name, blob=(photographs / name).read_bytes()) for name in names])
    model_service.post('/clear')
    model_service.post('/index', docs)
    return docs


@pytest.mark.parametrize(('query', 'expected'), EXPECTED.items())
def test_a_sentence_finds_the_photograph_that_shows_it(
    model_service: Service, album: DocumentArray, query: str, expected: str
) -> None:
    assert model_service.matches(query)[0].id == expected


def test_a_photograph_finds_itself(model_service: Service, album: DocumentArray) -> None:
    reply = model_service.post('/search', [Document(id=doc.id, blob=doc.blob) for doc in album], {'limit': 1})
    assert [doc.matches[0].id for doc in reply] == [doc.id for doc in reply]
    assert all(doc.matches[0].scores['cosine'].value > 0.999 for doc in reply)


def test_classify_names_what_a_photograph_shows(model_service: Service, album: DocumentArray) -> None:
    chosen = [Document(id=doc.id, blob=doc.blob) for doc in album if doc.id in ('chelsea.png', 'rocket.jpg')]
    parameters = {'labels': ['cat', 'dog', 'rocket', 'motorcycle'], 'templates': ['a photo of a {}']}
    reply = model_service.post('/classify', chosen, parameters)
    assert {doc.id: doc.tags['label'] for doc in reply} == {'chelsea.png': 'cat', 'rocket.jpg': 'rocket'}


def test_what_leads_away_from_a_cat_is_no_cat(model_service: Service, album: DocumentArray) -> None:
    parts = DocumentArray([Document(text='an animal'), Document(text='a cat', weight=-1)])
    found = [match.id for match in model_service.matches(Document(chunks=parts), limit=20)]
    assert found.index('chelsea.png') > found.index('astronaut.png')


Matches = list[tuple[str, float, str, bytes, dict[str, Any], list[float]]]


def changed(service: Service, photographs: Path) -> Matches:
    """Documents that were stored, deleted and updated; what a search finds of them."""
    names = list(EXPECTED.values())
    docs = [Document(id=n, blob=(photographs / n).read_bytes(), uri=f'file:///{n}', tags={'n': n}) for n in names]
    service.post('/index', [*docs, Document(id='gone', text='gone')])
    service.post('/delete', Document(id='gone'))
    service.post('/update', Document(id='coffee.png', tags={'cup': True}))
    return remembered(service)


def remembered(service: Service) -> Matches:
    """All there is to know of what a search finds."""
    found = service.matches('a cat', limit=20, include=['tags', 'uri', 'thumbnail', 'embedding'])
    assert {doc.tags['documents'] for doc in service.post('/status') if doc.id == 'indexer'} == {len(EXPECTED)}
    assert service.one('/get', Document(id='coffee.png')).tags == {'n': 'coffee.png', 'cup': True}
    return [
        (match.id, match.scores['cosine'].value, match.uri, match.blob, dict(match.tags), match.embedding.tolist())
        for match in found
    ]


def test_a_killed_indexer_comes_back_with_everything_and_the_same_scores(furnished: Service, photographs: Path) -> None:
    before = changed(furnished, photographs)
    assert len(before) == len(EXPECTED)
    furnished.kill('indexer')
    furnished.wait_until_ready_again('indexer')
    with Client(furnished.grpc) as client:  # which asks again until the gateway has found it
        client.search('a cat')
    assert remembered(furnished) == before


@long
def test_a_stopped_service_comes_back_with_everything_and_the_same_scores(tmp_path: Path, photographs: Path) -> None:
    with Service(tmp_path, {'RUNTIME': 'fake'}) as service:
        before = changed(service, photographs)
        assert service.terminate() == 0
    with Service(tmp_path, {'RUNTIME': 'fake'}) as service:
        assert remembered(service) == before

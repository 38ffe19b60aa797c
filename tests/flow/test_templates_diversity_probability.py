"""What a search may ask beyond the nearest, through the whole service: templates, a mix of results, probabilities."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from clipflow.cli import main
from clipflow.errors import InvalidParameter
from clipflow.rank.calibration import Calibration
from clipflow_client import Client
from forms import long
from service import Service, png

DIMENSION = 32
COUNT = 60


def encoded(service: Service, text: str) -> NDArray[np.float64]:
    return service.one('/encode', Document(text=text)).embedding.astype(np.float64)


def asked_with(service: Service, text: str, **parameters: Any) -> NDArray[np.float64]:
    """The vector that a search is made with."""
    return service.one('/search', Document(text=text), {'include': ['embedding'], **parameters}).embedding


def mean(*rows: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.sum(rows, axis=0)
    return total / np.linalg.norm(total)


def test_a_query_is_put_into_the_templates_of_the_model_or_into_its_own(calibrated: Service) -> None:
    bare, photo = encoded(calibrated, 'cat'), encoded(calibrated, 'a photo of cat')
    assert abs(bare @ photo) < 0.99, 'the session tells them apart'
    for _ in range(2):  # the second time from the cache
        assert asked_with(calibrated, 'cat') == pytest.approx(photo, abs=1e-6)
        assert asked_with(calibrated, 'cat', templates=[]) == pytest.approx(bare, abs=1e-6)
        own = mean(encoded(calibrated, 'x cat'), encoded(calibrated, 'cat, y'))
        assert asked_with(calibrated, 'cat', templates=['x {}', '{}, y']) == pytest.approx(own, abs=1e-6)
        assert encoded(calibrated, 'cat') == pytest.approx(bare, abs=1e-6)
    told = {doc.id: doc.tags for doc in calibrated.post('/status')}['encoder']
    assert (list(told['templates']), told['templates_from']) == (['a photo of {}'], 'the model')


def test_what_is_stored_is_not_put_into_templates(calibrated: Service) -> None:
    calibrated.post('/index', Document(id='t', text='cat'))
    stored = calibrated.post('/get', None, {'ids': ['t'], 'include': ['embedding']})[0].embedding
    assert stored == pytest.approx(encoded(calibrated, 'cat'), abs=1e-6)


def test_feedback_keeps_the_query_as_it_was_searched(calibrated: Service) -> None:
    given = {'shown': ['a', 'b'], 'clicked': ['a']}
    with Client(calibrated.grpc) as client:
        client.purge_feedback(before=1e12)
        for parameters in ({}, {'templates': []}):
            calibrated.post('/feedback', Document(text='cat'), {**given, **parameters})
        kept = [entry.vector for entry in client.feedback_log()]
    assert kept[0] == pytest.approx(encoded(calibrated, 'a photo of cat'), abs=1e-6)
    assert kept[1] == pytest.approx(encoded(calibrated, 'cat'), abs=1e-6)


@pytest.mark.parametrize('templates', [['no place'], ['{} {}'], ['{}', 1]], ids=str)
def test_a_template_without_one_place_is_refused(calibrated: Service, templates: list[Any]) -> None:
    with pytest.raises(InvalidParameter, match='templates'):
        calibrated.matches('cat', templates=templates)


def documents() -> DocumentArray:
    """Pictures' vectors around the query, some of them nearly the same."""
    rng = np.random.default_rng(3)
    docs = DocumentArray()
    for n in range(COUNT):
        row = rng.normal(0.5, size=DIMENSION)
        if n % 6 == 5:
            row = docs[n - 1].embedding + rng.normal(0, 0.02, DIMENSION)
        docs.append(Document(id=f'{n:02}', embedding=(row / np.linalg.norm(row)).astype(np.float32), tags={'n': n}))
    return docs


def expected(docs: DocumentArray, query: NDArray[np.float64], dedup: float, diversity: float) -> list[str]:
    """Filter, near-duplicates, then maximal marginal relevance, one plain step after the other."""
    rows = {doc.id: doc.embedding.astype(np.float64) for doc in docs if doc.tags['n'] < 50}
    score = {name: round(float(row @ query), 6) for name, row in rows.items()}
    kept: list[str] = []
    for name in sorted(rows, key=lambda name: (-score[name], name)):
        if all(rows[name] @ rows[other] < dedup for other in kept):
            kept.append(name)
    shown: list[str] = []
    while kept:
        alike = {name: max((float(rows[name] @ rows[other]) for other in shown), default=0.0) for name in kept}
        best = max(kept, key=lambda name: (1 - diversity) * score[name] - diversity * alike[name])
        kept.remove(best)
        shown.append(best)
    return shown


def test_filter_near_duplicates_and_diversity_together(calibrated: Service) -> None:
    docs = documents()
    calibrated.post('/index', docs)
    query = np.ones(DIMENSION) / np.sqrt(DIMENSION)
    asked = {'filter': {'n': {'$lt': 50}}, 'dedup': 0.99, 'diversity': 0.3}
    doc = Document(embedding=query.astype(np.float32))

    def found(**page: int) -> list[str]:
        return [match.id for match in calibrated.one('/search', doc, {**asked, **page}).matches]

    whole = expected(docs, query, 0.99, 0.3)
    assert 30 < len(whole) < 50
    assert whole != sorted(whole, key=lambda name: -float(docs[name].embedding @ query))
    assert found(limit=COUNT) == whole
    assert found(limit=5) == whole[:5]
    assert found(limit=15) == whole[:15]
    assert found(limit=7, offset=9) == whole[9:16]
    matches = calibrated.one('/search', doc, asked).matches
    assert all(match.embedding is None and set(match.tags) == {'n'} for match in matches)


@pytest.fixture
def album(calibrated: Service) -> Service:
    """Four pictures and a text."""
    pictures = [Document(id=colour, blob=png(colour)) for colour in ('red', 'green', 'blue', 'white')]
    calibrated.post('/index', [*pictures, Document(id='note', text='cat')])
    return calibrated


def test_the_probability_of_pictures_by_every_way(album: Service, capsys: pytest.CaptureFixture[str]) -> None:
    matches = {match.id: match for match in album.matches('cat', include=['probability'])}
    made = Calibration('', '', -4.0, 6.0, 0.4, 0.0, 0, 0)
    for place, (name, match) in enumerate(matches.items()):
        if name != 'note':
            # The whole collection is the sample.
            right = made.probability(np.array(match.scores['cosine'].value), np.array(place / 5))
            assert match.scores['probability'].value == pytest.approx(float(right), abs=2e-6)
    assert 'probability' not in matches['note'].scores
    assert set(album.matches('cat', include=['probability'])['red'].scores) == {'cosine', 'probability'}
    assert set(album.matches('cat')['red'].scores) == {'cosine'}
    red = matches['red'].scores['probability'].value
    with Client(album.grpc) as client:
        told = {match.id: match.probability for match in client.search('cat', include=['probability'])}
    assert told['red'] == pytest.approx(red, abs=1e-6)
    assert told['note'] is None
    body = {'text': 'cat', 'include': ['probability'], 'diversity': 0.0}
    reply = httpx.post(f'{album.http}/v1/search', json=body, timeout=60, trust_env=False).json()['matches']
    assert {match['id']: match.get('probability') for match in reply} == pytest.approx(told, abs=1e-6)
    assert main.main(['search', 'cat', '--host', album.grpc, '--probability']) == 0
    assert f'{red:.3f}' in capsys.readouterr().out


def test_the_command_takes_templates_and_diversity(album: Service, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> list[tuple[str, float]]:
        assert main.main(['search', 'cat', '--host', album.grpc, '--json', *arguments]) == 0
        return [(match['id'], match['score']) for match in json.loads(capsys.readouterr().out)]

    bare = [
        (match.id, pytest.approx(match.scores['cosine'].value, abs=1e-6))
        for match in album.matches('a photo of cat', templates=[])
    ]
    assert printed() == bare
    assert printed('--template', '') != bare
    assert printed('--template', 'a photo of {}') == bare
    mixed = [match.id for match in album.matches('cat', diversity=0.9)]
    assert [name for name, _ in printed('--diversity', '0.9')] == mixed
    assert mixed != [name for name, _ in bare]


def test_a_query_by_picture_has_no_probability(album: Service) -> None:
    match = album.matches(Document(blob=png('red')), include=['probability'])[0]
    assert (match.id, set(match.scores)) == ('red', {'cosine'})


def test_without_a_calibration_the_probability_is_refused_and_status_tells(fake: Service, album: Service) -> None:
    with pytest.raises(InvalidParameter, match='clipflow calibrate'):
        fake.matches('cat', include=['probability'])
    told = {doc.id: doc.tags for service in (fake,) for doc in service.post('/status')}['ranker']
    assert told['calibration'] is None
    told = {doc.id: doc.tags for doc in album.post('/status')}['ranker']
    assert told['calibration'] == {'error': 0.01, 'pictures': 100, 'captions': 500}


@long
def test_a_calibration_of_another_model_stops_the_start(tmp_path: Path) -> None:
    Calibration('0123', 'another', -4.0, 6.0, 0.4, 0.01, 100, 500).write(tmp_path / 'calibration.json')
    settings = {'RUNTIME': 'fake', 'CALIBRATION': str(tmp_path / 'calibration.json')}
    service = Service(tmp_path / 'workspace', settings)
    assert service.wait_until_ended() != 0
    assert "the ranker cannot start: model-mismatch: the calibration is for the model 'another'" in service.log

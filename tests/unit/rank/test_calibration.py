"""What a score means as a probability: the formula, its file, and where matches get it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document, DocumentArray
from docarray.score import NamedScore

from clipflow import wire
from clipflow.errors import InvalidParameter, ModelMismatch, NotFound
from clipflow.rank.calibration import Calibration
from clipflow.rank.scores import merge
from clipflow.wire import SearchParameters

MADE = Calibration('0123', 'clip-x', -8.0, 10.0, 0.5, 0.01, 100, 500)


def test_the_probability_is_logistic_in_the_cosine_and_the_rarity() -> None:
    for cosine, above in ((0.3, 0.01), (0.1, 1.0), (0.9, 0.0)):
        logit = -8 + 10 * cosine + 0.5 * -math.log(above + 0.001)
        expected = 1 / (1 + math.exp(-logit))
        assert MADE.probability(np.array(cosine), np.array(above)) == pytest.approx(expected, abs=1e-12)
    extreme = Calibration('0', 'x', 1e5, 0.0, 0.0, 0.0, 1, 1)
    assert extreme.probability(np.array(0.0), np.array(0.0)) == 1.0


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    MADE.write(tmp_path / 'deep' / 'calibration.json')
    assert Calibration.read(tmp_path / 'deep' / 'calibration.json') == MADE


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{}',
        '{"format": "clipflow-head-1"}',
        {'cosine': 'much'},
        {'cosine': None},
        {'cosine': float('nan')},
        {'cosine': True},
        {'captions': 1.5},
        {'constant': 10**400},
        '[' * 100_000,
        {'more': 1},
        {'format': 'clipflow-calibration-2'},
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_file_that_is_none_is_refused_with_its_name(tmp_path: Path, content: Any) -> None:
    path = tmp_path / 'calibration.json'
    MADE.write(path)
    whole = json.dumps(json.loads(path.read_text()) | content) if isinstance(content, dict) else content
    path.write_text(whole)
    with pytest.raises(InvalidParameter, match=r'calibration\.json'):
        Calibration.read(path)


def test_what_is_not_there_and_what_is_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='there is no calibration'):
        Calibration.read(tmp_path / 'none.json')
    MADE.check('0123')
    with pytest.raises(ModelMismatch, match=r"for the model 'clip-x' .*here runs 4567"):
        MADE.check('4567')


def match(name: str, score: float, **content: Any) -> Document:
    doc = Document(id=name, **content)
    doc.scores['cosine'] = NamedScore(value=score)
    return doc


def answered(matches: list[Document], *samples: list[float], **content: Any) -> Document:
    """As it comes from the indexer, or from several."""
    doc = Document(matches=DocumentArray(matches), **content)
    for sample in samples:
        wire.attach(doc, wire.BACKGROUND, tensor=np.array(sample))
    return doc


def test_pictures_get_it_and_texts_do_not() -> None:
    matches = [match('a', 0.5), match('b', 0.4, text='cat')]
    doc = answered(matches, [0.1, 0.2, 0.5, 0.6], text='a cat')
    merge(doc, SearchParameters(include=('probability',)), None, MADE)
    expected = MADE.probability(np.array(0.5), np.array(0.25))
    assert doc.matches[0].scores['probability'].value == pytest.approx(float(expected), abs=1e-6)
    assert [sorted(found.scores) for found in doc.matches] == [['cosine', 'probability'], ['cosine']]


def test_a_query_that_is_no_text_gives_none() -> None:
    doc = answered([match('a', 0.5)], [0.1, 0.2])
    merge(doc, SearchParameters(include=('probability', 'percentile')), None, MADE)
    assert sorted(doc.matches[0].scores) == ['cosine', 'percentile']


def test_percentiles_and_the_floor_come_from_the_samples_of_all_shards() -> None:
    samples = [0.1, 0.2, 0.5], [0.3, 0.4, 0.6, 0.7, 0.8]

    def made(**parameters: Any) -> Document:
        doc = answered([match('a', 0.75), match('b', 0.5), match('c', 0.05)], *samples, text='q')
        merge(doc, SearchParameters(**parameters), None, MADE)
        assert not doc.chunks
        return doc

    doc = made(include=('percentile', 'probability'))
    assert [found.scores['percentile'].value for found in doc.matches] == [7 / 8, 4 / 8, 0]
    expected = MADE.probability(np.array([0.75, 0.5, 0.05]), np.array([1 / 8, 3 / 8, 1]))
    assert [found.scores['probability'].value for found in doc.matches] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [found.id for found in made(relevance=0.5).matches] == ['a', 'b']  # the median is 0.45
    assert [found.id for found in made(relevance=0.6).matches] == ['a']

"""Whole evaluations against a slow one that reads the same vectors, and what stands beside what."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from docarray import Document
from numpy.typing import NDArray

from clipflow import ROOT
from clipflow.bulk.encoding import LocalEncoder
from clipflow.errors import ModelMismatch, NotFound
from clipflow.rank.head import Head
from clipflow.relevance import evaluate
from clipflow.relevance.captions import read_captions, read_labelled, read_pictures
from clipflow.relevance.systems import System
from clipflow.weights import ModelSpec

from .conftest import paint

MINI = System(str(ROOT / 'models' / 'clip-mini'))


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def vectors(mini: ModelSpec, docs: list[Document]) -> NDArray[np.float32]:
    with LocalEncoder(mini) as encoder:
        encoder.encode(docs)
    return np.stack([doc.embedding for doc in docs])


def slow_rank(scores: NDArray[np.floating], right: list[int]) -> int:
    """Of the first right item, with no ties."""
    return next(rank for rank, place in enumerate(np.argsort(-scores).tolist(), 1) if place in right)


def test_both_directions_are_those_of_a_slow_evaluation(mini: ModelSpec, album: Path, tmp_path: Path) -> None:
    paint(tmp_path / 'more', [f'{number}.png' for number in range(30)], seed=1)
    chosen = read_captions(album)
    # All pictures of the set again, under another name: they are no distractors.
    others = [*read_pictures(tmp_path / 'more'), *read_pictures(tmp_path / 'images')]
    found = evaluate.captions([MINI], chosen, others, 'album', silent)

    sound = [number for number in range(80) if number != 78]
    blobs = [chosen.pictures[number].read() for number in sound]
    gallery = vectors(mini, [Document(blob=blob) for blob in blobs + [one.read() for one in others[:30]]])
    texts = [(sound.index(place), text) for place, text in chosen.captions if place != 78]
    said = vectors(mini, [Document(text=text) for _, text in texts])
    forward = np.array([slow_rank(row @ gallery.T, [place]) for (place, _), row in zip(texts, said, strict=True)])
    owners = [place for place, _ in texts]
    back = np.array(
        [
            slow_rank(row @ said.T, [line for line, owner in enumerate(owners) if owner == place])
            for place, row in enumerate(gallery[: len(sound)])
        ]
    )
    to_image, to_text = found.measured
    assert (to_image.queries, to_image.items, to_text.queries, to_text.items) == (158, 109, 79, 158)
    for measured, slow in ((to_image, forward), (to_text, back)):
        values = {name: estimate.value for name, estimate in measured.estimates[0].items()}
        for k in (1, 5, 10):
            assert values[f'R@{k}'] == pytest.approx((slow <= k).mean())
        assert values['median rank'] == np.median(slow)
        assert values['MRR'] == pytest.approx((1 / slow).mean())
    assert [fault.name for fault in found.faults] == ['78.png']
    assert found.systems[0]['runtime'] == 'fake'


def test_equal_pictures_are_one_with_the_captions_of_all(tmp_path: Path) -> None:
    names = [f'{number:02}.png' for number in range(24)]
    paint(tmp_path / 'images', names)
    twins = [f'again/{name}' for name in names]
    shutil.copytree(tmp_path / 'images', tmp_path / 'images' / 'again')
    said = {name: [f'picture {name}', 'some picture'] for name in names}
    more = {name: [f'twin {name}', 'some picture'] for name in names}

    def measured(captions: dict[str, list[str]]) -> tuple[evaluate.Measured, ...]:
        rows = [{'file': name, 'captions': texts} for name, texts in captions.items()]
        (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
        return evaluate.captions([MINI], read_captions(tmp_path / 't.jsonl'), (), 'twins', silent).measured

    one = measured({name: [*said[name], more[name][0]] for name in names})
    two = measured(said | {twin: more[name] for twin, name in zip(twins, names, strict=True)})
    for of_one, of_two in zip(one, two, strict=True):
        assert (of_two.queries, of_two.items) == (of_one.queries, of_one.items)
        for name, estimate in of_one.estimates[0].items():
            assert of_two.estimates[0][name].value == pytest.approx(estimate.value)
    assert one[0].items == 24
    assert one[0].estimates[0]['MRR'].value > 0.1


def test_two_systems_are_measured_on_the_same_queries(album: Path) -> None:
    other = System(MINI.model, templates=('a photo of {}',))
    found = evaluate.captions([MINI, other, MINI], read_captions(album), (), 'album', silent)
    for measured in found.measured:
        first, second, same = measured.estimates
        changed, nothing = measured.differences
        assert first == same
        assert first != second
        for name, estimate in changed.items():
            assert estimate.value == pytest.approx(second[name].value - first[name].value)
            assert estimate.low <= estimate.value <= estimate.high
        assert {(one.value, one.low, one.high) for one in nothing.values()} == {(0.0, 0.0, 0.0)}
    assert [told['templates'] for told in found.systems] == ['{}', 'a photo of {}', '{}']


def test_labels_are_those_of_a_slow_classification(mini: ModelSpec, tmp_path: Path) -> None:
    classes = [f'{letter} thing' for letter in 'abcdefg']
    for number, name in enumerate(classes):
        paint(tmp_path / 'set' / name.replace(' ', '_'), [f'{n}.png' for n in range(6)], seed=number)
    chosen = read_labelled(tmp_path / 'set')
    found = evaluate.labelled([System(MINI.model, templates=('see {}',))], chosen, 'set', silent)
    shown = vectors(mini, [Document(blob=picture.read()) for picture in chosen.pictures])
    said = vectors(mini, [Document(text=f'see {name}') for name in classes])
    ranks = np.array([slow_rank(row @ said.T, [label]) for row, label in zip(shown, chosen.labels, strict=True)])
    (measured,) = found.measured
    values = {name: estimate.value for name, estimate in measured.estimates[0].items()}
    assert values == pytest.approx({'top-1': (ranks <= 1).mean(), 'top-5': (ranks <= 5).mean()})
    assert (measured.queries, measured.items) == (42, 7)


def test_a_head_stands_beside_the_plain_scores(mini: ModelSpec, album: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nothing = Head(np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32), mini.fingerprint)
    moving = Head(*(rng.normal(size=shape).astype(np.float32) for shape in ((2, 32), (32, 2))), mini.fingerprint)
    systems = [MINI]
    for name, head in (('nothing', nothing), ('moving', moving)):
        head.write(tmp_path / name)
        systems.append(System(MINI.model, head=tmp_path / name))
    found = evaluate.captions(systems, read_captions(album), (), 'album', silent)
    for measured in found.measured:
        plain, same, moved = ({name: one.value for name, one in each.items()} for each in measured.estimates)
        assert plain == same
        # As in the ranker texts move, and pictures that look for texts do not.
        assert (plain == moved) == (measured is found.measured[1])
    assert found.systems[2]['head'] == moving.version
    sound = [number for number in range(80) if number != 78]
    chosen = read_captions(album)
    shown = vectors(mini, [Document(blob=chosen.pictures[number].read()) for number in sound])
    texts = [(sound.index(place), text) for place, text in chosen.captions if place != 78]
    said = vectors(mini, [Document(text=text) for _, text in texts])
    scores = moving.scores(said, shown)
    slow = np.array([slow_rank(row, [place]) for row, (place, _) in zip(scores, texts, strict=True)])
    assert found.measured[0].estimates[2]['MRR'].value == pytest.approx((1 / slow).mean())
    foreign = Head(nothing.down, nothing.up, 'another')
    foreign.write(tmp_path / 'foreign')
    with pytest.raises(ModelMismatch, match='trained for another model'):
        evaluate.captions([System(MINI.model, head=tmp_path / 'foreign')], read_captions(album), (), 'album', silent)


@pytest.mark.parametrize(
    ('setting', 'own', 'used'),
    [('["see {}"]', None, 'see {}'), ('[]', None, '{}'), ('["see {}"]', ('a {}',), 'a {}')],
)
def test_templates_are_those_of_the_environment(
    album: Path, monkeypatch: pytest.MonkeyPatch, setting: str, own: tuple[str, ...] | None, used: str
) -> None:
    monkeypatch.setenv('CLIPFLOW_TEMPLATES', setting)
    found = evaluate.captions([System(MINI.model, templates=own)], read_captions(album), (), 'album', silent)
    assert found.systems[0]['templates'] == used


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """1,200 pictures in a zip file, of which forty have a caption."""
    paint(tmp_path / 'many', [f'{number}.png' for number in range(1200)], seed=3)
    with zipfile.ZipFile(tmp_path / 'many.zip', 'w') as archive:
        for file in sorted((tmp_path / 'many').iterdir()):
            archive.write(file, file.name)
    rows = [{'image': f'{number}.png', 'caption': f'picture {number}'} for number in range(40)]
    (tmp_path / 'few.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return tmp_path


def test_an_index_stands_beside_the_exact_search(crowd: Path) -> None:
    chosen, others = read_captions(crowd / 'few.jsonl', crowd / 'many.zip'), read_pictures(crowd / 'many.zip')
    same, coarse = (System(MINI.model, index_kind=kind) for kind in ('auto', 'IVF32,PQ4'))
    found = evaluate.captions([MINI, same, coarse], chosen, others, 'crowd', silent)
    assert [told['index'].partition(',')[0] for told in found.systems] == ['flat', 'flat', 'IVF32']
    assert 'tuned to a recall of' in found.systems[2]['index']
    exact, flat, approximate = found.measured[0].estimates
    assert {name: exact[name] for name in ('R@1', 'R@5', 'R@10', 'nDCG@10')} == {
        name: flat[name] for name in ('R@1', 'R@5', 'R@10', 'nDCG@10')
    }
    # Most pictures lie behind the hundred results that an index gives, and count as the last.
    assert exact['median rank'].value > 100
    assert approximate['median rank'].value == 1200
    assert approximate['MRR'].value < exact['MRR'].value
    assert found.measured[0].items == 1200
    # Only pictures are in an index.
    assert found.measured[1].estimates[0] == found.measured[1].estimates[2]


def test_nothing_that_the_model_takes_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').write_bytes(b'no picture')
    (tmp_path / 't.jsonl').write_text('{"image": "a.jpg", "caption": "x"}', encoding='utf-8')
    with pytest.raises(NotFound, match=r'nothing is left to measure.*a\.jpg: the content is not a picture'):
        evaluate.captions([MINI], read_captions(tmp_path / 't.jsonl'), (), 'none', silent)

"""Pairs from captions, classes and clicks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.clicks import Feedback
from clipflow.errors import InvalidParameter, NotFound
from clipflow.pictures import decode, prepare
from clipflow.relevance.album import digest
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.data import Data, read, read_old_task
from clipflow.tuning.lessons import Lessons, Loader
from clipflow.tuning.parallel import Group
from clipflow.tuning.tasks import Retrieval, ZeroShot, halves
from clipflow.tuning.views import Views
from clipflow.weights import load_spec


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding='utf-8')
    return path


def test_captions_with_splits(shapes: Path) -> None:
    data = read(TuneConfig(captions=shapes, splits=('train', 'val', 'test')))
    assert (len(data.examples), len(data.validation.pictures)) == (96, 24)
    assert data.test is not None
    assert data.examples[0].texts == ('red disc', 'a red disc')
    assert data.pictures[data.examples[0].picture].name.endswith('train-red-disc-0.png')


def test_nobody_learns_from_a_test_part_unawares(shapes: Path) -> None:
    with pytest.raises(InvalidParameter, match='names splits'):
        read(TuneConfig(captions=shapes))
    data = read(TuneConfig(captions=shapes, splits=('none',)))
    assert len(data.examples) + len(data.validation.pictures) == 144


def test_without_splits_a_part_is_held_out_and_equal_pictures_stay_together(shapes: Path, tmp_path: Path) -> None:
    images = sorted((shapes.parent / 'images').iterdir())[:60]
    (tmp_path / 'images').mkdir()
    rows = []
    for picture in images:
        for copy in ('a', 'b'):
            (tmp_path / 'images' / f'{copy}-{picture.name}').write_bytes(picture.read_bytes())
            rows.append({'file': f'{copy}-{picture.name}', 'caption': picture.stem})
    data = read(TuneConfig(captions=lines(tmp_path / 'captions.jsonl', rows), validation_share=0.3))
    held = {digest(picture.read()) for picture in data.validation.pictures}
    learned = {digest(data.pictures[example.picture].read()) for example in data.examples}
    assert len(held) + len(learned) == 60
    assert 6 <= len(held) <= 30
    assert len(set(data.kinds)) == len(learned)
    assert len(data.kinds) == 2 * len(learned)


def test_classes_become_sentences(classes: Path) -> None:
    data = read(TuneConfig(labelled=classes, templates=('a {}', 'the {}'), validation_share=0.2))
    assert isinstance(data.validation, ZeroShot)
    assert data.validation.classes == ('bar', 'box', 'disc')
    example = data.examples[0]
    shape = data.pictures[example.picture].name.partition('/')[0]
    assert example.texts == (f'a {shape}', f'the {shape}')


def feedback(shapes: Path, tmp_path: Path) -> Data:
    names = [f'train-red-{shape}-{number}' for shape in ('disc', 'box', 'bar') for number in range(4)]
    rows: list[Any] = ['no json', {'text': '', 'shown': names, 'clicked': names[:1]}, {'text': 'x', 'shown': names}]
    vector, shown = np.ones(3, np.float32), tuple(names[:6])
    for number in range(30):
        rows.append(Feedback(f'query {number}', vector, 'model', shown, (names[0],), ()).line())
    rows += 2 * [{'text': 'query 1', 'shown': [names[1], 'gone'], 'clicked': [names[1]], 'disliked': []}]
    path = lines(tmp_path / 'feedback.jsonl', rows)
    return read(TuneConfig(feedback=path, images=shapes.parent / 'images', validation_share=0.3))


def test_clicks_make_pairs_and_what_was_shown_beside_them_is_rejected(shapes: Path, tmp_path: Path) -> None:
    data = feedback(shapes, tmp_path)
    assert isinstance(data.validation, Retrieval)
    learned = {text for example in data.examples for text in example.texts}
    held = set(data.validation.texts)
    assert learned | held == {f'query {number}' for number in range(30)}
    assert not learned & held
    other = next(example for example in data.examples if example.texts != ('query 1',))
    assert data.pictures[other.picture].name == 'train-red-disc-0.png'
    assert {data.pictures[place].name for place in other.rejected} == {
        *(f'train-red-disc-{number}.png' for number in (1, 2, 3)),
        *(f'train-red-box-{number}.png' for number in (0, 1)),
    }
    assert [fault.name for fault in data.faults] == ['line 1', 'line 2', 'line 3', 'gone']


@pytest.mark.parametrize('loss', ['clip', 'ranking'])
def test_rejected_pictures_stand_in_the_batch_as_negatives(shapes: Path, tmp_path: Path, tiny: Path, loss: str) -> None:
    data = feedback(shapes, tmp_path)
    config = TuneConfig(feedback=Path('log'), images=Path('images'), loss=loss, rejected=2)  # type: ignore[arg-type]
    views = Views(data.pictures, load_spec(str(tiny)).picture, True, 1 << 30)
    assert views.load(lambda _: None) == []
    loader = Loader(config, Lessons(data.examples, np.array(data.kinds), views, ''), Group())
    batch = loader.batch(np.arange(4), 0)
    assert len(batch.texts) == 4
    assert len(batch.pixels) == len(batch.pictures) == batch.negatives.shape[1] > 4
    negatives = batch.negatives.numpy()
    for row, text in enumerate(batch.texts):
        example = next(one for one in data.examples if one.texts == (text,))
        wrong = {batch.pictures[column] for column in np.flatnonzero(negatives[row])}
        assert example.picture not in wrong
        own = wrong & set(example.rejected)
        assert len(own) >= 2
        assert (own == wrong and len(own) == 2) if loss == 'ranking' else wrong


def test_the_old_task_and_its_halves(classes: Path, shapes: Path) -> None:
    task = read_old_task(TuneConfig(captions=shapes, old_task=classes))
    assert isinstance(task, ZeroShot)
    one, other = halves(task)
    assert not {picture.name for picture in one.pictures} & {picture.name for picture in other.pictures}
    assert len(one.pictures) + len(other.pictures) == 96
    assert isinstance(read_old_task(TuneConfig(captions=shapes, old_task=shapes, old_split='val')), Retrieval)
    with pytest.raises(NotFound):
        read_old_task(TuneConfig(captions=shapes, old_task=shapes, old_split='nope'))


def test_measures_of_tasks(shapes: Path, classes: Path) -> None:
    data = read(TuneConfig(captions=shapes, splits=('train', 'val')))
    task = data.validation
    assert isinstance(task, Retrieval)
    count = len(task.pictures)
    images = np.eye(count, dtype=np.float32)
    texts = images[[place for place, _ in task.captions]]
    assert set(task.measure(images, texts).values()) == {1.0}
    # Everybody else's text: never the right one among the first, always the second.
    shifted = (0.8 * np.roll(texts, 2, axis=0) + 0.6 * texts).astype(np.float32)
    found = task.measure(images, shifted)
    assert (found['image R@1'], found['image R@5'], found['text R@1'], found['text R@5']) == (0.0, 1.0, 0.0, 1.0)
    zero = read_old_task(TuneConfig(captions=shapes, old_task=classes, old_templates=('a {}', 'b {}')))
    assert isinstance(zero, ZeroShot)
    eye = np.eye(3, dtype=np.float32)
    vectors = eye[list(zero.labels)]
    vectors[:24] = eye[[(label + 1) % 3 for label in zero.labels[:24]]]
    assert zero.measure(vectors, np.repeat(eye, 2, axis=0)) == {'top-1': 0.75}


def test_a_damaged_picture_is_left_out_and_told(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / 'images').mkdir()
    for picture in (shapes.parent / 'images').iterdir():
        (tmp_path / 'images' / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / 'images' / 'train-red-disc-0.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    from clipflow.tuning.journal import Journal
    from clipflow.tuning.run import Run, check

    config = TuneConfig(
        model=str(tiny),
        captions=lines(tmp_path / 'captions.jsonl', shapes.read_text(encoding='utf-8').split('\n')),
        splits=('train', 'val'),
        out=tmp_path / 'run',
        device='cpu',
        epochs=1,
        alphas=(1.0,),
    )
    ready = check(config)
    (tmp_path / 'run').mkdir()
    journal = Journal(tmp_path / 'run', True, False)
    work = Run(ready, Group(), journal)
    assert work.finetune()['examples'] == 95
    assert [fault.name for fault in work.faults] == ['train-red-disc-0.png']
    work.close()
    journal.close()


def test_a_view_is_the_same_for_the_same_seed_and_whole_pictures_are_as_served(
    shapes: Path, checkpoint: Callable[[str], Path]
) -> None:
    spec = load_spec(str(checkpoint('clip'))).picture
    data = read(TuneConfig(captions=shapes, splits=('train', 'val')))
    kept, fresh = (Views(data.pictures, spec, True, budget) for budget in (1 << 30, 0))
    kept.load(lambda _: None)
    seeds = [(0, 1, place) for place in range(4)]
    one = kept.draw(range(4), [True] * 4, seeds)
    assert one.shape == (4, spec.height, spec.width, 3)
    assert np.array_equal(one, fresh.draw(range(4), [True] * 4, seeds))
    assert not np.array_equal(one, kept.draw(range(4), [True] * 4, [(0, 2, place) for place in range(4)]))
    plain = Views(data.pictures, spec, False, 0)
    served = [prepare(decode(picture.read(), 10_000), spec) for picture in data.pictures[:4]]
    assert np.array_equal(plain.whole(range(4)), np.stack(served))

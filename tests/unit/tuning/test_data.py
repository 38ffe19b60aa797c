"""Pairs from captions, classes and clicks."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.clicks import Feedback
from clipflow.errors import InvalidParameter, NotFound
from clipflow.pictures import decode, prepare
from clipflow.relevance.album import Picture, digest
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.data import Data, read, read_old_task
from clipflow.tuning.lessons import Lessons, Loader
from clipflow.tuning.measuring import Exam
from clipflow.tuning.parallel import Group
from clipflow.tuning.run import check
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


@pytest.mark.parametrize('form', ['jsonl', 'captions.csv', 'labels.csv', 'folder'])
def test_splits_are_seen_whatever_their_names(shapes: Path, tmp_path: Path, form: str) -> None:
    names = [f'train-{colour}-{shape}-0.png' for colour in ('red', 'lime') for shape in ('disc', 'box')]
    splits = ('training', 'training', 'testing', 'testing')
    if form == 'jsonl':
        rows = [{'file': name, 'caption': name, 'split': split} for name, split in zip(names, splits, strict=True)]
        table = lines(tmp_path / 'table.jsonl', rows)
    elif form == 'folder':
        table = tmp_path / 'classes'
        for name, split in zip(names, splits, strict=True):
            target = table / split / name.split('-')[2]
            target.mkdir(parents=True)
            (target / name).write_bytes((shapes.parent / 'images' / name).read_bytes())
    else:
        table = tmp_path / form
        what = 'caption' if form == 'captions.csv' else 'label'
        rows = [f'{name},{name.split("-")[2]},{split}' for name, split in zip(names, splits, strict=True)]
        table.write_text('\n'.join([f'file,{what},split', *rows]), encoding='utf-8')
    given = {'captions' if 'captions' in form or form == 'jsonl' else 'labelled': table}
    images = None if form == 'folder' else shapes.parent / 'images'
    with pytest.raises(InvalidParameter, match=r'names splits \(testing, training\)'):
        read(TuneConfig(**given, images=images, validation_share=0.5))  # type: ignore[arg-type]
    data = read(TuneConfig(**given, images=images, validation_share=0.5, splits=('none',)))  # type: ignore[arg-type]
    assert len(data.examples) + len(data.validation.pictures) == 4


@pytest.fixture
def copied(shapes: Path, tmp_path: Path) -> Path:
    """The captions, with pictures that a test may change."""
    (tmp_path / 'images').mkdir()
    for picture in (shapes.parent / 'images').iterdir():
        (tmp_path / 'images' / picture.name).write_bytes(picture.read_bytes())
    return lines(tmp_path / 'captions.jsonl', shapes.read_text(encoding='utf-8').split('\n'))


def test_what_is_measured_on_is_not_learned_whatever_the_splits_say(copied: Path) -> None:
    images = copied.parent / 'images'
    # In all three splits: it stays in the one that is reported on. Another is in the first two.
    for name in ('train-red-box-2.png', 'val-blue-bar-0.png'):
        (images / name).write_bytes((images / 'test-red-disc-0.png').read_bytes())
    (images / 'train-red-box-3.png').write_bytes((images / 'val-red-disc-0.png').read_bytes())
    data = read(TuneConfig(captions=copied, splits=('train', 'val', 'test')))
    assert data.test is not None
    assert (len(data.examples), len(data.validation.pictures), len(data.test.pictures)) == (94, 23, 24)
    learned = {digest(data.pictures[example.picture].read()) for example in data.examples}
    held = [digest(picture.read()) for task in (data.validation, data.test) for picture in task.pictures]
    assert not learned & set(held)
    assert len(held) == len(set(held))
    assert sorted(fault.name for fault in data.faults) == [
        'train-red-box-2.png',
        'train-red-box-3.png',
        'val-blue-bar-0.png',
    ]


@pytest.mark.parametrize('splits', [('train', 'val'), ('none',)])
def test_a_picture_that_is_damaged_inside_its_zip_file_is_left_out(
    copied: Path, splits: tuple[str, ...], tmp_path: Path
) -> None:
    images = sorted((copied.parent / 'images').iterdir())
    archive = tmp_path / 'pictures.zip'
    with zipfile.ZipFile(archive, 'w') as target:
        for picture in images:
            target.write(picture, picture.name)
        start = target.getinfo('train-red-disc-0.png').header_offset
    content = bytearray(archive.read_bytes())
    content[start + 30 + len('train-red-disc-0.png') + 40] ^= 255
    archive.write_bytes(content)
    data = read(TuneConfig(captions=copied, images=archive, splits=splits, validation_share=0.2))
    assert len(data.examples) + len(data.validation.pictures) == {1: 143, 2: 119}[len(splits)]
    (fault,) = data.faults
    assert fault.name == 'train-red-disc-0.png'
    assert 'CRC' in fault.reason


def test_the_digest_is_of_what_the_pictures_hold_and_of_what_chooses(copied: Path) -> None:
    def now() -> str:
        return read(TuneConfig(captions=copied, splits=('train', 'val', 'test'))).digest

    images, seen = copied.parent / 'images', [now()]
    assert now() == seen[0]
    for name in ('train-red-disc-0.png', 'val-red-disc-0.png'):
        (images / name).write_bytes((images / name).read_bytes() + b' ')
        seen.append(now())
    copied.write_text(copied.read_text(encoding='utf-8').replace('a blue bar', 'the blue bar'), encoding='utf-8')
    assert len({*seen, now()}) == 4


def test_a_part_to_choose_on_of_one_picture_is_refused(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in shapes.read_text(encoding='utf-8').split('\n')]
    kept = [row for row in rows if row['split'] == 'train' or row['file'].endswith('-red-disc-0.png')]
    config = TuneConfig(
        model=str(tiny),
        captions=lines(tmp_path / 'captions.jsonl', kept),
        images=shapes.parent / 'images',
        splits=('train', 'val', 'test'),
        out=tmp_path / 'run',
    )
    with pytest.raises(InvalidParameter) as error:
        check(config)
    assert 'the validation data need at least two pictures' in error.value.message
    assert 'the test data need at least two pictures' in error.value.message


def test_an_exam_whose_texts_have_no_picture_left_is_one_sentence(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    good = read(TuneConfig(captions=shapes, splits=('train', 'val'))).validation.pictures[:3]
    (tmp_path / 'bad.png').write_bytes(b'no')
    bad = Picture('bad.png', tmp_path / 'bad.png')
    task = Retrieval((*good, bad), ((3, 'a query'),))
    views = Views(task.pictures, load_spec(str(tiny)).picture, False, 1 << 30)
    with pytest.raises(InvalidParameter, match=r'validation.*bad\.png'):
        Exam('validation', task, views, lambda _: None)
    views.close()


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
    vector, shown = np.ones(3, np.float32), tuple(names[:6])
    by_picture = Feedback('', vector, 'model', shown, shown[:1], ()).line()
    rows: list[Any] = ['no json', by_picture, {'text': 'x', 'shown': names}]
    for number in range(30):
        rows.append(Feedback(f'query {number}', vector, 'model', shown, (names[0],), ()).line())
    rows += 2 * [Feedback('query 1', vector, 'model', (names[1], 'gone'), (names[1],), ()).line()]
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
    assert sorted(fault.name for fault in data.faults) == ['gone', 'line 1', 'line 2', 'line 3']


def test_equal_pictures_are_looked_for_as_one(copied: Path) -> None:
    images = copied.parent / 'images'
    plain = read(TuneConfig(captions=copied, splits=('train', 'val', 'test')))
    for split in ('val', 'test'):
        (images / f'{split}-red-box-0.png').write_bytes((images / f'{split}-red-disc-0.png').read_bytes())
    data = read(TuneConfig(captions=copied, splits=('train', 'val', 'test'), old_task=copied, old_split='val'))
    old = read_old_task(TuneConfig(captions=copied, old_task=copied, old_split='val'))
    for task, before in ((data.validation, plain.validation), (data.test, plain.test), (old, plain.validation)):
        assert isinstance(task, Retrieval)
        assert isinstance(before, Retrieval)
        assert len(task.pictures) == len(before.pictures) - 1
        assert task.texts == before.texts
        contents = [picture.read() for picture in task.pictures]
        assert len(set(contents)) == len(contents)


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


def test_an_old_task_may_be_a_table_of_captions_or_of_labels(shapes: Path, tmp_path: Path) -> None:
    names = [f'train-{colour}-{shape}-0.png' for colour in ('red', 'lime') for shape in ('disc', 'box')]
    for what, kind in (('caption', Retrieval), ('label', ZeroShot)):
        table = tmp_path / f'{what}.csv'
        rows = [f'{name},{name.split("-")[2]}' for name in names]
        table.write_text('\n'.join([f'file,{what}', *rows]), encoding='utf-8')
        config = TuneConfig(captions=shapes, old_task=table, old_images=shapes.parent / 'images')
        assert isinstance(read_old_task(config), kind)


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

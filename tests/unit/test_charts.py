"""What `clipflow classify` writes and draws, and what it refuses before it asks a service anything."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipflow.cli import charts, classify
from clipflow.cli.sheet import Sheet
from clipflow.errors import ClipflowError, InvalidParameter, ReadOnly, Unavailable


def parsed(*arguments: object) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    classify.add_commands(top.add_subparsers())
    return top.parse_args(['classify', *map(str, arguments)])


# -- the arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'name at least two labels'),
        (['--labels', ' , '], 'name at least two labels'),
        (['--labels', 'dawn'], "'dawn' is one"),
        (['--labels', '"dawn,day"'], "'dawn,day' is one"),
        (['--labels', 'dawn,day,dawn'], "'dawn' is there twice"),
        (['--labels', 'dawn,day', '--template', 'at night'], "'at night' has not"),
        (['--labels', 'dawn,day', '--template', '{} and {}'], "'{} and {}' has not"),
        (['--labels', 'dawn,day'], 'name the CSV file'),
        (['--labels', 'dawn,day', '--csv', 'x.csv', '--plot', 'x.movie'], 'take .png'),
        (['--labels', 'dawn,day', '--csv', 'x.csv', '--plot', '/nowhere/x.png'], 'there is no folder'),
        (['--labels', 'dawn,day', '--csv', 'x.csv'], 'holds no pictures'),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    given = parsed(tmp_path, *arguments)
    with pytest.raises(ClipflowError) as caught:
        given.run(given)
    assert sentence in caught.value.message
    assert '\n' not in caught.value.message


def test_a_picture_has_neither_csv_nor_plot(tmp_path: Path) -> None:
    given = parsed(__file__, '--labels', 'a,b', '--csv', tmp_path / 'x.csv')
    with pytest.raises(InvalidParameter, match='for a folder'):
        given.run(given)


def test_labels_may_hold_commas_and_come_on_lines_and_several_times() -> None:
    given = parsed('x', '--labels', '"salt, pepper", sugar', '--labels', 'tea\ncoffee')
    assert classify._question(given)['labels'] == ['salt, pepper', 'sugar', 'tea', 'coffee']


def test_a_label_may_not_take_the_column_of_the_probability(tmp_path: Path) -> None:
    given = parsed('x', '--labels', 'probability,certainty')
    with pytest.raises(InvalidParameter, match='label_probability'):
        classify.Work(given, classify._question(given), {}, Sheet(tmp_path / 'x.csv', 'file'))


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib.backends.backend_agg', None)
    with pytest.raises(Unavailable, match=re.escape('pip install "clipflow[plot]"')):
        charts.check(Path('x.png'))


# -- the CSV ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('file\nGrün'.encode('latin-1'), 'not UTF-8'),
        (b'', 'no header'),
        (b'\nfile\n', 'no header'),
        (b'file;label\nx;y\n', 'no header with commas'),
        (b'file,a\nx,"y\nz,1\n', 'record 2 is not closed'),
        (b'file,a\nx,y,z\n', 'record 2 has more cells'),
    ],
)
def test_what_is_no_csv_is_refused_and_left_alone(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / 'x.csv'
    path.write_bytes(content)
    with pytest.raises(InvalidParameter, match=sentence):
        Sheet(path, 'file')
    assert path.read_bytes() == content
    assert [left.name for left in tmp_path.iterdir()] == ['x.csv']


@pytest.mark.parametrize('path', ['nowhere/x.csv', '.'])
def test_a_csv_that_cannot_be_written_is_one_sentence(path: str, tmp_path: Path) -> None:
    with pytest.raises(ReadOnly, match='cannot be written'):
        Sheet(tmp_path / path, 'file')


def test_a_key_that_is_no_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / 'x.csv').write_text('photo_id,note\n')
    with pytest.raises(InvalidParameter, match=r"no column 'file'.*photo_id, note"):
        Sheet(tmp_path / 'x.csv', 'file').rows_of(['a.jpg'], 'file')


def test_two_pictures_of_one_stem_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'x.csv').write_text('photo_id,note\n')
    with pytest.raises(InvalidParameter, match="2 pictures have the name 'a'"):
        Sheet(tmp_path / 'x.csv', 'photo_id').rows_of(['one/a.jpg', 'two/a.jpg'], 'photo_id')


def test_a_key_with_suffixes_is_of_paths(tmp_path: Path) -> None:
    (tmp_path / 'x.csv').write_text('path\none/a.jpg\ntwo/a.jpg\n')
    rows = Sheet(tmp_path / 'x.csv', 'path').rows_of(['one/a.jpg', 'two/a.jpg', 'b.jpg'], 'path')
    assert rows == {'one/a.jpg': [['one/a.jpg']], 'two/a.jpg': [['two/a.jpg']], 'b.jpg': [['b.jpg']]}


def test_what_another_program_wrote_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / 'x.csv'
    path.write_text('file\na.jpg\n')
    sheet = Sheet(path, 'file')
    sheet.save()
    path.write_text('file,note\na.jpg,new\n')
    with pytest.raises(ClipflowError, match='another program') as caught:
        sheet.save()
    assert path.read_text() == 'file,note\na.jpg,new\n'
    assert Path(caught.value.message.rpartition(' ')[2]).read_text() == 'file\na.jpg\n'


# -- the picture ------------------------------------------------------------------------------------------------------


def bars(path: Path) -> list[int]:
    """Lengths in pixels of the accent-coloured bars, from the top."""
    with Image.open(path) as plot:
        pixels = np.asarray(plot.convert('RGB')).astype(int)
    accent = np.array([int(charts._ACCENT[place : place + 2], 16) for place in (1, 3, 5)])
    lengths = (np.abs(pixels - accent).max(axis=2) < 3).sum(axis=1)
    starts = np.flatnonzero((lengths[1:] > 0) & (lengths[:-1] == 0)) + 2
    return [int(lengths[start + 5]) for start in starts]


def test_bars_are_as_long_as_the_numbers(tmp_path: Path) -> None:
    charts.draw(tmp_path / 'x.png', 'x', {'a': 300, 'b': 100, 'c': 200}, [])
    first, second, third = bars(tmp_path / 'x.png')
    assert abs(first / second - 3) < 0.03
    assert abs(first / third - 1.5) < 0.03


@pytest.mark.parametrize('count', [2, 4, 10, 40])
def test_any_number_of_classes_is_drawn(count: int, tmp_path: Path) -> None:
    picture = tmp_path / 'p.png'
    Image.new('RGB', (50, 80), 'green').save(picture)
    labels = [f'a long $label$ {number}' for number in range(count)]
    shares = dict.fromkeys(labels, 1 / count)
    samples = [charts.Sample(picture, 'p.png', label, shares) for label in labels]
    charts.draw(tmp_path / 'x.png', 'x', dict.fromkeys(labels, 5), samples)
    with Image.open(tmp_path / 'x.png') as plot:
        assert plot.width == 1800
        green = (np.asarray(plot.convert('RGB')) == (0, 128, 0)).all(axis=2).sum()
    # Each tile is 2.3 inches high at 150 points, and as wide as its column, but not wider than 4:3.
    columns = min(count, 5)
    width = min((12 - 0.8 - (columns - 1) * 0.35) / columns, 2.3 * 4 / 3)
    assert abs(green / (150 * 150 * 2.3 * width) - min(count, 10)) < 0.15


def test_samples_are_of_their_class_and_the_seed_chooses(tmp_path: Path) -> None:
    files = {}
    for number in range(20):
        files[f'{number}'] = tmp_path / f'{number}.png'
        Image.new('RGB', (4, 4)).save(files[f'{number}'])
    files['0'].write_bytes(b'broken')
    classes = {name: 'even' if int(name) % 2 == 0 else 'odd' for name in files}
    choices = [charts.choose({'odd': 10, 'even': 10, 'none': 0}, classes, files, seed) for seed in range(30)]
    assert choices[3] == charts.choose({'odd': 10, 'even': 10, 'none': 0}, classes, files, 3)
    assert {name for choice in choices for name in choice} == {'odd', 'even'}
    assert all(classes[name] == label for choice in choices for label, name in choice.items())
    assert len({choice['even'] for choice in choices}) > 1
    assert '0' not in {choice['even'] for choice in choices}

"""Tables and folders of pictures: every form that is read, and every fault with its reason."""

import json
import os
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from clipflow import ROOT
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound
from clipflow.relevance.captions import CaptionSet, Fault, read_captions, read_labelled, read_pictures, splits_of
from clipflow.relevance.tables import holds_labels

DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data'))
data = pytest.mark.skipif(not DATA.exists(), reason=f'{DATA} is not there; CLIPFLOW_TEST_DATA names the test data')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files with the suffix of pictures, one of them in a folder below, and things that are none."""
    images = tmp_path / 'images'
    (images / 'more').mkdir(parents=True)
    for name in ('a.jpg', 'b.jpg', 'c.png', 'more/d.JPG', 'notes.txt', '.hidden.jpg'):
        (images / name).write_bytes(name.encode())
    return tmp_path


def texts(found: CaptionSet) -> dict[str, list[str]]:
    names = [picture.name for picture in found.pictures]
    return {name: [text for place, text in found.captions if names[place] == name] for name in names}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text(''.join(row if isinstance(row, str) else json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return path


def test_lines_of_both_shapes(folder: Path) -> None:
    table = write(
        folder / 't.jsonl',
        [
            {'file': 'a.jpg', 'split': 'test', 'image': True, 'captions': ['one', ' two ']},
            {'image': 'b.jpg', 'caption': 'three'},
            {'image': 'd.JPG', 'captions': ['four']},
            {'image': 'b.jpg', 'caption': 'five'},
            {'file': 'gone.jpg', 'image': False, 'captions': ['known to be away']},
        ],
    )
    found = read_captions(table)
    assert texts(found) == {'a.jpg': ['one', 'two'], 'b.jpg': ['three', 'five'], 'more/d.JPG': ['four']}
    assert found.faults == ()
    assert [picture.read() for picture in found.pictures] == [b'a.jpg', b'b.jpg', b'more/d.JPG']


def test_every_fault_is_listed_and_the_rest_is_read(folder: Path) -> None:
    table = write(
        folder / 't.jsonl',
        [
            {'file': 'a.jpg', 'captions': ['one', '  ', 'one', 'half \ud800']},
            '{"file": "b.jpg", \n',
            {'captions': ['of what?']},
            {'file': 'nowhere.jpg', 'captions': ['missing']},
            {'file': 'a.jpg', 'captions': ['again']},
            {'file': 'c.png', 'captions': []},
            {'file': 'b.jpg', 'captions': 7},
            '[1]\n',
        ],
    )
    found = read_captions(table)
    assert texts(found) == {'a.jpg': ['one']}
    reasons = [f'{fault.name}: {fault.reason}' for fault in found.faults]
    for expected in (
        'a.jpg: line 1: an empty caption',
        'a.jpg: line 1: the same caption twice',
        'a.jpg: line 1: a caption that holds half a surrogate pair',
        'line 3: does not name its picture in `file` or `image`',
        'nowhere.jpg: is not in images',
        'a.jpg: line 5: is there twice; the first counts',
        'c.png: line 6: has no caption',
        'b.jpg: line 7: `captions` is no list of texts, and `caption` no text',
        'line 8: is no JSON object',
    ):
        assert expected in reasons
    assert any(reason.startswith('line 2: is not JSON: ') for reason in reasons)
    assert len(reasons) == 10


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('t.csv', 'image,caption\na.jpg,"one, or so"\na.jpg,two\nb.jpg,three\n'),
        ('t.csv', '\ufeffphoto_id;ai_description\na;"one, or so"\na;two\nb;three\n'),
        ('t.csv', 'image_name| comment_number| comment\na.jpg|0|one, or so\na.jpg|1|two\nb.jpg|0|three\n'),
        ('t.tsv', 'filepath\ttitle\nimages/a.jpg\tone, or so\nimages/a.jpg\ttwo\nimages/b.jpg\tthree\n'),
    ],
)
def test_tables_of_several_makers(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding='utf-8')
    found = read_captions(folder / name)
    assert texts(found) == {'a.jpg': ['one, or so', 'two'], 'b.jpg': ['three']}
    assert found.faults == ()


def test_rows_that_are_too_short_are_faults_with_their_line(folder: Path) -> None:
    (folder / 't.csv').write_text('image,caption\na.jpg,"two\nlines"\nb.jpg\n,no name\n', encoding='utf-8')
    found = read_captions(folder / 't.csv')
    assert texts(found) == {'a.jpg': ['two\nlines']}
    assert [fault.name for fault in found.faults] == ['line 4', 'line 5']


@pytest.mark.parametrize(
    ('rows', 'line'),
    [
        ('a.jpg,one\nb.jpg,"tis the season\nc.png,three\n', 3),
        ('a.jpg,"two\nlines"\nb.jpg,"tis the season\nc.png,"three"\n', 4),
        ('a.jpg,"tis" the season\nb.jpg,two\n', 2),
        ('a.jpg,"tis the season\n' + 'x' * 200_000 + '\n', 2),
    ],
)
def test_a_quotation_mark_swallows_no_rows(folder: Path, rows: str, line: int) -> None:
    for delimiter in ',\t|;':
        table = folder / ('t.tsv' if delimiter == '\t' else 't.csv')
        table.write_text(f'image,caption\n{rows}'.replace(',', delimiter), encoding='utf-8')
        with pytest.raises(InvalidParameter, match=rf'{table.name}, line {line}: .* quotation mark'):
            read_captions(table)


def test_names_of_columns_may_stand_in_quotation_marks(folder: Path) -> None:
    (folder / 't.csv').write_text('"image";"caption"\n"a.jpg";"one; so ""to"" speak"\n', encoding='utf-8')
    assert texts(read_captions(folder / 't.csv')) == {'a.jpg': ['one; so "to" speak']}


def test_a_row_that_ends_before_its_picture_is_a_fault(folder: Path) -> None:
    (folder / 't.csv').write_text('caption,image\none,a.jpg\nlonely\n', encoding='utf-8')
    found = read_captions(folder / 't.csv')
    assert texts(found) == {'a.jpg': ['one']}
    assert [fault.name for fault in found.faults] == ['line 3']


def test_json_that_is_too_deep_is_no_json(folder: Path) -> None:
    deep = '[' * 100_000
    table = write(folder / 't.jsonl', [{'file': 'a.jpg', 'caption': 'one'}, deep])
    found = read_captions(table)
    assert texts(found) == {'a.jpg': ['one']}
    assert [fault.name for fault in found.faults] == ['line 2']
    (folder / 't.json').write_text(deep, encoding='utf-8')
    with pytest.raises(InvalidParameter, match='Karpathy'):
        read_captions(folder / 't.json')


def test_karpathy(folder: Path) -> None:
    rows = [
        {'filename': 'a.jpg', 'split': 'test', 'sentences': [{'raw': 'one'}, {'raw': 'two'}]},
        {'filename': 'b.jpg', 'split': 'train', 'sentences': [{'raw': 'three'}]},
        {'split': 'test', 'sentences': [{'raw': 'of nothing'}]},
    ]
    write(folder / 't.json', [{'images': rows, 'dataset': 'x'}])
    found = read_captions(folder / 't.json', split='test')
    assert texts(found) == {'a.jpg': ['one', 'two']}
    assert [fault.name for fault in read_captions(folder / 't.json').faults] == ['image 3']
    (folder / 'bad.json').write_text('{"images": [{"filename": "a.jpg"}]}', encoding='utf-8')
    with pytest.raises(InvalidParameter, match='Karpathy'):
        read_captions(folder / 'bad.json')


def test_a_split_that_is_not_there_names_those_that_are(folder: Path) -> None:
    rows: list[object] = [{'file': name, 'split': 'train', 'captions': ['x']} for name in ('a.jpg', 'b.jpg')]
    table = write(folder / 't.jsonl', [*rows, {'file': 'c.png', 'split': 'val', 'captions': ['x']}])
    assert list(texts(read_captions(table, split='val'))) == ['c.png']
    with pytest.raises(NotFound, match=r"no split 'test'; there is: train \(2\), val \(1\)"):
        read_captions(table, split='test')


def test_nothing_that_can_be_used_is_an_error_with_the_first_reason(folder: Path) -> None:
    table = write(folder / 't.jsonl', [{'file': 'x.jpg', 'captions': ['a']}, {'file': 'y.jpg', 'captions': ['b']}])
    with pytest.raises(NotFound, match=r'left out: 2, the first x\.jpg: is not in images'):
        read_captions(table)


@pytest.mark.parametrize(
    ('name', 'content', 'error', 'sentence'),
    [
        ('t.txt', b'x', InvalidParameter, 'captions come as'),
        ('t.csv', b'a,b\n1,2\n', InvalidParameter, 'the first line names no column'),
        ('t.csv', b'', InvalidParameter, 'the first line names no column'),
        ('t.jsonl', b'{"file": "\xff"}', InvalidParameter, 'is not UTF-8'),
    ],
)
def test_files_that_are_no_table(
    folder: Path, name: str, content: bytes, error: type[Exception], sentence: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(error, match=sentence):
        read_captions(folder / name)


def test_there_has_to_be_a_file_and_pictures(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='no such file'):
        read_captions(folder / 'none.jsonl')
    with pytest.raises(InvalidParameter, match='images is a folder; name a table'):
        read_captions(folder / 'images')
    table = write(folder / 't.jsonl', [{'file': 'a.jpg', 'captions': ['x']}])
    with pytest.raises(NotFound, match='no such folder or zip file'):
        read_captions(table, folder / 'elsewhere')
    with pytest.raises(InvalidParameter, match='neither a folder nor a zip file'):
        read_captions(table, table)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(NotFound, match='holds no pictures'):
        read_pictures(tmp_path / 'empty')


def test_a_name_in_two_folders_needs_its_path(folder: Path) -> None:
    (folder / 'images' / 'more' / 'a.jpg').write_bytes(b'another')
    table = write(
        folder / 't.jsonl', [{'file': 'x/a.jpg', 'captions': ['x']}, {'file': 'more/a.jpg', 'captions': ['y']}]
    )
    found = read_captions(table)
    assert texts(found) == {'more/a.jpg': ['y']}
    assert found.faults == (Fault('x/a.jpg', '2 pictures in images have this name'),)


@pytest.mark.parametrize(('stored', 'named'), [('NFD', 'NFC'), ('NFC', 'NFD')])
def test_a_name_may_be_written_with_other_code_points(
    folder: Path, stored: Literal['NFC', 'NFD'], named: Literal['NFC', 'NFD']
) -> None:
    names = [unicodedata.normalize(stored, name) for name in ('Zoë.jpg', 'é/Zoë.jpg')]
    for name in names:
        (folder / 'images' / name).parent.mkdir(exist_ok=True)
        (folder / 'images' / name).write_bytes(name.encode())
    asked = ('Zoë.jpg', 'é/Zoë.jpg', '/elsewhere/é/Zoë.jpg')
    rows = [{'file': unicodedata.normalize(named, name), 'caption': str(number)} for number, name in enumerate(asked)]
    assert texts(read_captions(write(folder / 't.jsonl', rows))) == {names[0]: ['0'], names[1]: ['1', '2']}


def test_a_path_that_ends_as_one_in_the_folder_or_is_that_file_is_found(folder: Path) -> None:
    (folder / 'images' / 'more' / 'a.jpg').write_bytes(b'another')
    names = (str(folder / 'images' / 'a.jpg'), '/elsewhere/more/a.jpg', '/elsewhere/a.jpg')
    rows = [{'file': name, 'captions': [str(number)]} for number, name in enumerate(names)]
    found = read_captions(write(folder / 't.jsonl', rows))
    assert texts(found) == {'a.jpg': ['0'], 'more/a.jpg': ['1']}
    assert found.faults == (Fault('/elsewhere/a.jpg', '2 pictures in images have this name'),)


def test_a_name_leads_nowhere_outside_of_its_folder(folder: Path) -> None:
    (folder / 'secret.jpg').write_bytes(b'secret')
    table = write(folder / 't.jsonl', [{'file': '../secret.jpg', 'captions': ['x']}])
    with pytest.raises(NotFound, match='is not in images'):
        read_captions(table)


def test_zip_files_are_read_where_they_are_by_many_threads(folder: Path) -> None:
    with zipfile.ZipFile(folder / 'images.zip', 'w') as archive:
        for number in range(50):
            archive.writestr(f'sub/{number}.jpg', bytes([number]) * 5000)
        archive.writestr('__MACOSX/sub/1.jpg', b'')
    pictures = read_pictures(folder / 'images.zip')
    with ThreadPoolExecutor(8) as pool:
        contents = dict(
            zip([picture.name for picture in pictures], pool.map(lambda one: one.read(), pictures), strict=True)
        )
    assert contents == {f'sub/{number}.jpg': bytes([number]) * 5000 for number in range(50)}


def test_a_picture_that_is_damaged_in_its_zip_file_or_gone_says_so(folder: Path) -> None:
    with zipfile.ZipFile(folder / 'bad.zip', 'w') as archive:
        archive.writestr('a.jpg', b'0123456789')
    content = (folder / 'bad.zip').read_bytes()
    (folder / 'bad.zip').write_bytes(content.replace(b'0123456789', b'0123456780'))
    with pytest.raises(InvalidDocument, match=r'a\.jpg cannot be read: Bad CRC-32'):
        read_pictures(folder / 'bad.zip')[0].read()
    picture = read_pictures(folder / 'images')[0]
    (folder / 'images' / 'a.jpg').unlink()
    with pytest.raises(InvalidDocument, match=r'a\.jpg cannot be read: No such file'):
        picture.read()
    os.mkfifo(folder / 'images' / 'a.jpg')
    with pytest.raises(InvalidDocument, match=r'a\.jpg cannot be read: it is a pipe'):
        picture.read()


def test_folders_of_classes(tmp_path: Path) -> None:
    for name in ('train/red_wine/1.jpg', 'train/tea/2.jpg', 'test/tea/3.jpg', 'test/tea/more/4.jpg', 'test/cup/5.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    found = read_labelled(tmp_path, split='test')
    named = {picture.name: found.classes[label] for picture, label in zip(found.pictures, found.labels, strict=True)}
    assert named == {'test/tea/3.jpg': 'tea', 'test/tea/more/4.jpg': 'tea', 'test/cup/5.jpg': 'cup'}
    assert read_labelled(tmp_path / 'train').classes == ('red wine', 'tea')
    with pytest.raises(NotFound, match="no folder 'val'"):
        read_labelled(tmp_path, split='val')
    with pytest.raises(InvalidParameter, match='the one class'):
        read_labelled(tmp_path / 'test', split='tea')


def test_the_splits_of_folders_and_tables(folder: Path, tmp_path: Path) -> None:
    # Classes with the name of a split, or with folders in them, are classes.
    for name in ('dev/1.jpg', 'val/steam/2.jpg', 'car/old/3.jpg', 'car/new/3.jpg', '4.jpg'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set' / name).write_bytes(b'')
    assert splits_of(tmp_path / 'set') == ()
    for name in ('Train/cat/1.jpg', 'Train/dog/2.jpg', 'test/cat/more/3.jpg', 'test/dog/3.jpg'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set' / name).write_bytes(b'')
    assert splits_of(tmp_path / 'set') == ('Train', 'test')
    (folder / 'labels.csv').write_text('file,label,split\na.jpg,cat,val\nb.jpg,cat,\nc.png,dog,fold 1\n')
    assert splits_of(folder / 'labels.csv') == ('fold 1', 'val')
    assert splits_of(write(folder / 't.jsonl', [{'file': 'a.jpg', 'split': 'x', 'caption': 'a'}])) == ('x',)
    with pytest.raises(NotFound, match='no such file'):
        splits_of(folder / 'none.csv')


def test_a_split_is_told_apart_among_the_classes_of_all(folder: Path, tmp_path: Path) -> None:
    rows = 'a.jpg,eating,val\nb.jpg,sleeping,train\ngone.jpg,riding,\nc.png,,val\n'
    (folder / 'labels.csv').write_text(f'file,label,split\n{rows}', encoding='utf-8')
    found = read_labelled(folder / 'labels.csv', split='val')
    assert (found.classes, found.labels) == (('eating', 'riding', 'sleeping'), (0,))
    for name in ('test/cat/1.jpg', 'train/dog/2.jpg', 'train/cat/3.jpg', 'train/4.jpg'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set' / name).write_bytes(b'')
    for path, split in ((tmp_path / 'set', 'test'), (tmp_path, 'set/test')):
        found = read_labelled(path, split=split)
        assert (found.classes, found.labels) == (('cat', 'dog'), (0,))


def test_labels_in_a_table(folder: Path) -> None:
    rows = (
        'file,label,split\na.jpg,using_laptop,val\nb.jpg,eating,val\nb.jpg,eating,val\nx.jpg,eating,val\nc.png,,val\n'
    )
    (folder / 'labels.csv').write_text(rows + 'more/d.JPG,eating,train\n', encoding='utf-8')
    found = read_labelled(folder / 'labels.csv', split='val')
    assert (found.classes, found.labels) == (('eating', 'using laptop'), (1, 0))
    assert [fault.name for fault in found.faults] == ['b.jpg', 'x.jpg', 'c.png']


def test_what_holds_labels(folder: Path) -> None:
    (folder / 'labels.csv').write_text('file,"label"\n', encoding='utf-8')
    (folder / 'captions.csv').write_text('file,label,caption\n', encoding='utf-8')
    write(folder / 't.jsonl', [{}])
    assert [holds_labels(folder / name) for name in ('images', 'labels.csv')] == [True, True]
    assert [holds_labels(folder / name) for name in ('captions.csv', 't.jsonl')] == [False, False]
    with pytest.raises(NotFound):
        holds_labels(folder / 'none.csv')


@data
def test_the_shared_sets_have_the_numbers_that_they_state() -> None:
    flickr = read_captions(DATA / 'flickr8k' / 'captions.jsonl', split='test')
    assert (len(flickr.pictures), len(flickr.captions), flickr.faults) == (132, 660, ())
    assert all(picture.read().startswith(b'\xff\xd8') for picture in flickr.pictures)
    action = read_labelled(DATA / 'human-action' / 'labels.csv', split='val')
    assert (len(action.pictures), len(action.classes), action.faults) == (900, 15, ())
    tiny = read_labelled(DATA / 'tiny-imagenet' / 'labels.csv', split='val')
    assert (len(tiny.pictures), len(tiny.classes), tiny.faults) == (2000, 200, ())

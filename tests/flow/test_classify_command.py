"""`clipflow classify` against a real service: the right answers, and a CSV that no kill and no mistake damages."""

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from docarray import Document
from PIL import Image

from service import Service, png

LABELS = ['cat', 'rocket', 'cup of coffee', 'motorcycle']
ASK = ['--labels', ','.join(LABELS), '--template', 'a photo of a {}', '--column', 'shows']
QUESTION = {'labels': LABELS, 'templates': ['a photo of a {}']}
PHOTOGRAPHS = ('chelsea.png', 'rocket.jpg', 'coffee.png', 'motorcycle_left.png')

# The command in a process of its own. STRIKE "number:signal:when" saves after every reply, and sends the process a
# signal at that save: before the new file is in its place (and only half of it is written), or after it.
PROGRAM = """
import os, signal, sys
from clipflow.cli import classify, main

main._COMMANDS = (classify,)
if 'STRIKE' in os.environ:
    number, name, when = os.environ['STRIKE'].split(':')
    classify.SAVE_SECONDS = classify.SAVE_PAUSE = 0
    replace, calls = os.replace, []

    def struck(source, target):
        calls.append(target)
        now = len(calls) == int(number)
        if now and when == 'before':
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.Signals[name])
        replace(source, target)
        if now:
            os.kill(os.getpid(), signal.Signals[name])

    os.replace = struck
sys.exit(main.main())
"""


def classify(service: Service | str, *arguments: object, strike: str = '') -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    host = service if isinstance(service, str) else service.grpc
    command = [sys.executable, '-c', PROGRAM, 'classify', *map(str, arguments), '--host', host]
    environment = {**os.environ, **({'STRIKE': strike} if strike else {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def rows_of(file: Path, key: str = 'file') -> dict[str, dict[str, str]]:
    with file.open(encoding='utf-8', newline='') as lines:
        return {row[key]: row for row in csv.DictReader(lines)}


def asked(service: Service, folder: Path, names: list[str], question: dict[str, list[str]]) -> dict[str, Document]:
    """What the service says by itself, one picture a request."""
    return {name: service.one('/classify', Document(blob=(folder / name).read_bytes()), question) for name in names}


def assert_right(row: dict[str, str], answer: Document) -> None:
    shares = answer.tags['probabilities']
    first, second = sorted(shares.values(), reverse=True)[:2]
    assert row['shows'] == answer.tags['label'] or first - second < 0.0005, (row, shares)
    assert abs(float(row['shows_probability']) - first) < 0.0002
    assert len(row['shows_probability'].partition('.')[2]) == 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """48 pictures: crops of four photographs, some in a folder whose name a CSV has to quote."""
    folder = tmp_path_factory.mktemp('classify') / 'pictures'
    (folder / 'a, "b" é').mkdir(parents=True)
    for name in PHOTOGRAPHS:
        with Image.open(photographs / name) as opened:
            whole = opened.convert('RGB')
        for number in range(12):
            width, height = whole.width - 8 * number, whole.height - 8 * number
            place = folder / 'a, "b" é' if number == 11 else folder
            stem = name.partition('.')[0]
            whole.crop((0, 0, width, height)).resize((160, 120)).save(place / f'{stem}-{number:02}.jpg')
    return folder


@pytest.fixture(scope='module')
def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.jpg'))


# -- the answers ------------------------------------------------------------------------------------------------------


def test_the_columns_are_what_the_service_says(
    model_service: Service, folder: Path, names: list[str], tmp_path: Path
) -> None:
    more = ['--template', 'a painting of {}', '--probabilities']
    run = classify(model_service, folder, *ASK, *more, '--csv', tmp_path / 'out.csv')
    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path / 'out.csv')
    assert sorted(rows) == names
    question = {'labels': LABELS, 'templates': ['a photo of a {}', 'a painting of {}']}
    for name, answer in asked(model_service, folder, names, question).items():
        assert_right(rows[name], answer)
        for label in LABELS:
            assert abs(float(rows[name][f'shows_{label}']) - answer.tags['probabilities'][label]) < 0.0002
    for label in LABELS:
        count = sum(row['shows'] == label for row in rows.values())
        assert [line.split()[0] for line in run.stdout.splitlines() if line.endswith(f'  {label}')] == [str(count)]
    assert '48 classified, 0 skipped' in run.stdout


def test_the_first_photographs_are_what_they_show(model_service: Service, folder: Path, tmp_path: Path) -> None:
    assert classify(model_service, folder, *ASK, '--csv', tmp_path / 'out.csv').returncode == 0
    rows = rows_of(tmp_path / 'out.csv')
    assert (rows['chelsea-00.jpg']['shows'], rows['rocket-00.jpg']['shows']) == ('cat', 'rocket')


def test_one_photograph_is_a_table_and_a_sentence(model_service: Service, folder: Path) -> None:
    run = classify(model_service, folder / 'rocket-00.jpg', *ASK)
    assert run.returncode == 0, run.stderr
    answer = asked(model_service, folder, ['rocket-00.jpg'], QUESTION)['rocket-00.jpg']
    label, shares = answer.tags['label'], answer.tags['probabilities']
    assert run.stdout.splitlines()[-1] == f'This photo is classified as {label}.'
    lines = [line.strip() for line in run.stdout.splitlines()]
    assert [line.split()[-1] for line in lines if line.startswith('> ')] == [f'{shares[label]:.2f}']
    table = {name: line.split()[-1] for name in LABELS for line in lines if line.lstrip('> ').startswith(f'{name} ')}
    assert table == {name: f'{shares[name]:.2f}' for name in LABELS}


def test_the_plot_has_its_size_and_shows_samples(model_service: Service, folder: Path, tmp_path: Path) -> None:
    arguments = [folder, *ASK, '--csv', tmp_path / 'out.csv', '--plot', tmp_path / 'out.png']
    assert classify(model_service, *arguments).returncode == 0
    found = {row['shows'] for row in rows_of(tmp_path / 'out.csv').values()}
    with Image.open(tmp_path / 'out.png') as plot:
        assert plot.format == 'PNG'
        # 12 inches at 150 points; 4 bars and one line of samples, as docs/classify.md tells.
        assert plot.size == (1800, 1165)
        colours = len(plot.convert('RGB').getcolors(1 << 24))
    assert found
    assert colours > 5000, 'no photographs are in the plot'


# -- kill, interrupt, resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_killed_run_goes_on_where_it_was(
    model_service: Service, folder: Path, names: list[str], tmp_path: Path, when: str
) -> None:
    out = tmp_path / 'out.csv'
    # The first save makes the columns, the second and third follow replies.
    killed = classify(model_service, folder, *ASK, '--csv', out, strike=f'3:SIGKILL:{when}')
    assert killed.returncode == -signal.SIGKILL
    rows = rows_of(out)
    assert sorted(rows) == names
    done = sorted(name for name, row in rows.items() if row['shows'])
    assert 0 < len(done) < len(names)
    # What is there is marked by a value that the service would not give: it has to stay.
    marked = out.read_text(encoding='utf-8')
    for name in done:
        marked = marked.replace(f',{rows[name]["shows_probability"]}\n', ',9.9999\n')
    out.write_text(marked, encoding='utf-8')
    again = classify(model_service, folder, *ASK, '--csv', out)
    assert again.returncode == 0, again.stderr
    assert f'{len(names) - len(done)} classified, {len(done)} skipped' in again.stdout
    rows = rows_of(out)
    assert sorted(name for name, row in rows.items() if row['shows_probability'] == '9.9999') == done
    rest = [name for name in names if name not in done]
    for name, answer in asked(model_service, folder, rest, QUESTION).items():
        assert_right(rows[name], answer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.csv', 'out.csv.clipflow.json']


def test_ctrl_c_keeps_what_is_classified(
    model_service: Service, folder: Path, names: list[str], tmp_path: Path
) -> None:
    out = tmp_path / 'out.csv'
    stopped = classify(model_service, folder, *ASK, '--csv', out, strike='2:SIGINT:after')
    assert stopped.returncode == 130, stopped.stderr
    assert 'Traceback' not in stopped.stderr
    assert 'goes on' in stopped.stderr
    done = [name for name, row in rows_of(out).items() if row['shows']]
    assert 0 < len(done) < len(names)
    assert f'{len(done)} classified' in stopped.stdout
    again = classify(model_service, folder, *ASK, '--csv', out)
    assert f'{len(names) - len(done)} classified, {len(done)} skipped' in again.stdout
    assert all(row['shows'] for row in rows_of(out).values())


def test_two_runs_do_not_write_one_file(model_service: Service, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out.csv'
    with (tmp_path / 'out.csv.clipflow.json').open('w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = classify(model_service, folder, *ASK, '--csv', out)
    assert run.returncode == 1
    assert run.stderr.startswith('clipflow: conflict: ')
    assert not out.exists()


# -- pictures that fail -----------------------------------------------------------------------------------------------


def test_a_broken_picture_is_reported_and_the_rest_succeeds(
    model_service: Service, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'pictures'
    folder.mkdir()
    (folder / 'a.png').write_bytes((photographs / 'chelsea.png').read_bytes()[:5000])
    (folder / 'b.png').write_bytes(b'')
    (folder / 'c.png').write_bytes((photographs / 'chelsea.png').read_bytes())
    (folder / 'd.png').symlink_to(tmp_path / 'nowhere')
    run = classify(model_service, folder, *ASK, '--csv', tmp_path / 'out.csv')
    assert run.returncode == 1
    reasons = dict(line.split(': ', 1) for line in run.stderr.splitlines() if line[:2] in ('a.', 'b.', 'c.', 'd.'))
    assert sorted(reasons) == ['a.png', 'b.png', 'd.png']
    assert reasons['b.png'] == 'is empty'
    assert '1 classified, 0 skipped (done before), 3 failed' in run.stdout
    shown = {name: row['shows'] for name, row in rows_of(tmp_path / 'out.csv').items()}
    assert shown == {'a.png': '', 'b.png': '', 'c.png': 'cat', 'd.png': ''}
    # They are tried again.
    for name in ('a.png', 'b.png'):
        (folder / name).write_bytes((photographs / 'chelsea.png').read_bytes())
    (folder / 'd.png').unlink()
    again = classify(model_service, folder, *ASK, '--csv', tmp_path / 'out.csv')
    assert again.returncode == 0
    assert '2 classified, 1 skipped' in again.stdout


def test_a_service_that_is_away_is_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    run = classify('127.0.0.1:1', folder, *ASK, '--csv', tmp_path / 'out.csv')
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith('clipflow: unavailable: ')
    assert list(tmp_path.iterdir()) == []


# -- a CSV that is there already --------------------------------------------------------------------------------------

ALBUM = (
    b'\xef\xbb\xbfphoto_id,"a ""title""",note\r\n'
    b'chelsea-00,"a, b","two\r\nlines"\r\n'
    b'  gone  , spaces ,"quoted"\r\n'
    b'\r\n'
    b'rocket-00,5" pipe,"say ""hi"""'
)


def test_what_is_in_the_csv_stays_byte_for_byte(model_service: Service, folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for name in ('chelsea-00.jpg', 'rocket-00.jpg', 'coffee-00.jpg'):
        (pictures / name).write_bytes((folder / name).read_bytes())
    out = tmp_path / 'album.csv'
    out.write_bytes(ALBUM)
    out.chmod(0o640)
    for _ in range(2):  # the second time nothing is to do, and the columns are there
        run = classify(model_service, pictures, *ASK, '--csv', out, '--key', 'photo_id')
        assert run.returncode == 0, run.stderr
        cat, rocket, coffee = (
            (answer.tags['label'], f'{answer.tags["probabilities"][answer.tags["label"]]:.4f}')
            for answer in asked(
                model_service, pictures, ['chelsea-00.jpg', 'rocket-00.jpg', 'coffee-00.jpg'], QUESTION
            ).values()
        )
        expected = (
            b'\xef\xbb\xbfphoto_id,"a ""title""",note,shows,shows_probability\r\n'
            b'chelsea-00,"a, b","two\r\nlines",%s,%s\r\n'
            b'  gone  , spaces ,"quoted",,\r\n'
            b'\r\n'
            b'rocket-00,5" pipe,"say ""hi""",%s,%s\r\n'
            b'coffee-00,,,%s,%s\r\n'
        )
        # The last digit depends on what is computed together.
        got = out.read_bytes()
        values = [value.encode() for pair in (cat, rocket, coffee) for value in pair]
        assert _without_last_digits(got) == _without_last_digits(expected % tuple(values))
    assert out.stat().st_mode & 0o777 == 0o640


def _without_last_digits(text: bytes) -> bytes:
    return re.sub(rb'(0\.\d\d)\d\d', rb'\1', text)


def test_answers_to_another_question_are_not_taken_for_answers(
    model_service: Service, folder: Path, names: list[str], tmp_path: Path
) -> None:
    out = tmp_path / 'out.csv'
    assert classify(model_service, folder, *ASK, '--probabilities', '--csv', out).returncode == 0
    before = out.read_bytes()
    other = ['--labels', 'animal,machine,drink', '--template', 'a photo of a {}', '--column', 'shows']
    template = ['--labels', ','.join(LABELS), '--template', 'a {} seen from afar', '--column', 'shows']
    for question, what in ((other, 'labels'), (template, 'templates')):
        refused = classify(model_service, folder, *question, '--csv', out)
        assert refused.returncode == 1
        assert refused.stderr.startswith("clipflow: conflict: 'shows' in ")
        assert f'is from other {what};' in refused.stderr
        assert out.read_bytes() == before
    # The same labels in another order ask the same.
    same = ['--labels', ','.join(reversed(LABELS)), *ASK[2:]]
    assert f'0 classified, {len(names)} skipped' in classify(model_service, folder, *same, '--csv', out).stdout
    forced = classify(model_service, folder, *other, '--csv', out, '--force')
    assert forced.returncode == 0, forced.stderr
    rows = rows_of(out)
    assert list(next(iter(rows.values()))) == ['file', 'shows', 'shows_probability']
    assert {row['shows'] for row in rows.values()} <= {'animal', 'machine', 'drink'}
    assert list(json.loads((tmp_path / 'out.csv.clipflow.json').read_text())) == ['shows']


def test_another_model_is_another_question(model_service: Service, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out.csv'
    assert classify(model_service, folder, *ASK, '--csv', out).returncode == 0
    notes = tmp_path / 'out.csv.clipflow.json'
    told = json.loads(notes.read_text())
    told['shows']['model'] = 'another'
    notes.write_text(json.dumps(told))
    refused = classify(model_service, folder, *ASK, '--csv', out)
    assert (refused.returncode, 'is from other model;' in refused.stderr) == (1, True)


def test_two_questions_have_two_columns(model_service: Service, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out.csv'
    assert classify(model_service, folder, *ASK, '--csv', out).returncode == 0
    first = rows_of(out)
    assert classify(model_service, folder, '--labels', 'red,blue', '--column', 'colour', '--csv', out).returncode == 0
    for name, row in rows_of(out).items():
        assert row.pop('colour') in ('red', 'blue')
        assert float(row.pop('colour_probability')) >= 0.5
        assert row == first[name]


def test_a_column_of_somebody_else_is_not_overwritten(model_service: Service, tmp_path: Path) -> None:
    (tmp_path / 'red.png').write_bytes(png('red'))
    out = tmp_path / 'out.csv'
    out.write_text('shows,file\nmine,red.png\nmine,gone.png\n')
    refused = classify(model_service, tmp_path, *ASK, '--csv', out)
    assert refused.returncode == 1
    assert "'shows' in" in refused.stderr
    assert out.read_text() == 'shows,file\nmine,red.png\nmine,gone.png\n'
    assert classify(model_service, tmp_path, *ASK, '--csv', out, '--force').returncode == 0
    assert rows_of(out)['red.png']['shows'] in LABELS
    assert rows_of(out)['gone.png']['shows'] == ''
    assert out.read_text().startswith('shows,file,shows_probability\n')

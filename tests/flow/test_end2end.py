"""`clipflow end2end`: from pictures or URLs to a service that finds the right one, in one go or in several."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from docarray import Document

from clipflow import ROOT
from clipflow.bulk.fetch import runner, urls
from clipflow.cli import end2end, main
from environments import img2dataset
from forms import long
from service import Service, until
from unit.bulk import embed_inputs as inputs
from unit.bulk.embed_inputs import COUNT, caption, jpeg
from unit.bulk.fetching import Site, serving


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a command in this process changes is undone."""
    monkeypatch.setenv('CLIPFLOW_WORKSPACE', str(tmp_path / 'unused'))


def command(given: Path, out: Path, *options: str) -> list[str]:
    return ['end2end', str(given), '--out', str(out), *options]


def failed(out: Path) -> dict[str, tuple[str, str]]:
    rows = pyarrow.parquet.read_table(out / 'failures.parquet').to_pylist()
    return {row['key']: (row['step'], row['reason']) for row in rows}


@pytest.fixture(scope='module')
def album(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures, a damaged one among them, and what was made of it, without a service."""
    place = tmp_path_factory.mktemp('an album')
    folder = inputs.folder(place / 'folder', inputs.files() | {'005.jpg': b'damaged'})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {'RUNTIME': 'fake', 'API_KEYS': 'secret:write', 'WORKSPACE': str(place / 'unused')}.items():
            patch.setenv(f'CLIPFLOW_{name}', value)
        assert main.main(command(folder, place / 'out', '--no-serve')) == 0
    return folder, place / 'out'


def test_from_a_folder_to_a_service_that_finds_the_right_picture(album: tuple[Path, Path], tmp_path: Path) -> None:
    folder, out = album
    expected = ['CLIPFLOW_RUNTIME=fake', f"CLIPFLOW_WORKSPACE='{out}/workspace'"]
    assert (out / 'service.env').read_text().splitlines() == expected
    assert [(Path(key).name, step) for key, (step, _) in failed(out).items()] == [('005.jpg', 'embed')]
    with Service(tmp_path / 'unused', {'RUNTIME': 'fake'}, command=command(folder, out)) as service:
        (match,) = service.matches(Document(blob=jpeg(17)), limit=1)
        assert (match.uri, match.text) == (str(folder / '017.jpg'), caption(17))
        assert match.scores['cosine'].value == pytest.approx(1, abs=1e-3)
        assert len(service.stored_ids()) == COUNT - 1
    # Nothing is done twice.
    assert re.findall(r'\$ clipflow (\w+)', service.log) == ['embed', 'serve']
    assert f'{COUNT - 1} documents are in {out / "workspace"} already' in service.log
    assert not (tmp_path / 'unused').exists()


def test_the_service_finds_its_model_from_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = inputs.folder(tmp_path / 'folder', inputs.files(2)), tmp_path / 'out'
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    monkeypatch.setenv('CLIPFLOW_MODEL', 'unused')
    monkeypatch.chdir(ROOT)
    assert main.main(command(folder, out, '--no-serve', '--model', 'models/clip-mini')) == 0
    assert f'CLIPFLOW_MODEL={ROOT}/models/clip-mini' in (out / 'service.env').read_text().splitlines()


def test_pictures_that_come_later_are_told_and_left_out_if_that_is_wanted(tmp_path: Path, capsys: Any) -> None:
    folder, out = inputs.folder(tmp_path / 'folder', inputs.files(3)), tmp_path / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CLIPFLOW_RUNTIME', 'fake')
        assert main.main(command(folder, out, '--no-serve')) == 0
        (folder / 'new.jpg').write_bytes(jpeg(9))
        assert main.main(command(folder, out, '--no-serve')) == 1
        assert 'has changed since' in capsys.readouterr().err
        assert main.main(command(folder, out, '--no-serve', '--keep-plan')) == 0


@pytest.mark.parametrize(
    ('names', 'sentence'),
    [
        (('second', 'out'), 'was begun with the input'),
        (('absent', 'new'), 'there is no such file or folder'),
        (('folder', 'folder/001.jpg'), 'is a file; name a folder'),
        (('empty', 'new'), 'holds no pictures'),
        (('folder', 'folder/album'), 'lies in the input'),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    album: tuple[Path, Path], tmp_path: Path, capsys: Any, names: tuple[str, str], sentence: str
) -> None:
    (folder, made), (given, out) = album, names
    (tmp_path / 'empty').mkdir()
    inputs.folder(tmp_path / 'second', inputs.files(1))
    given_path = folder if given == 'folder' else tmp_path / given
    out_path = tmp_path / out if out == 'new' else made.parent / out
    assert main.main(command(given_path, out_path, '--no-serve')) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith('clipflow: ')
    assert sentence in said[-1]


# -- from URLs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """img2dataset is found, and no proxy is asked."""
    monkeypatch.setenv('PATH', str(img2dataset()), prepend=':')
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture
def site(photographs: Path) -> Iterator[Site]:
    files = {f'/{n}.jpg': jpeg(n) for n in range(30)}
    files |= {f'/{file}': (photographs / file).read_bytes() for file in ('chelsea.png', 'coffee.png', 'rocket.jpg')}
    files |= {'/half.jpg': files['/rocket.jpg'][:5000], '/text.txt': b'no picture'}
    with serving(files) as running:
        yield running


@long
def test_from_urls_to_a_service_that_finds_what_is_described(on_path: None, site: Site, tmp_path: Path) -> None:
    paths = ('chelsea.png', 'half.jpg', 'coffee.png', 'gone.jpg', 'text.txt', 'rocket.jpg', 'drip', 'endless')
    lines = [f'{site.url}/{path},picture {n},n{n}' for n, path in enumerate(paths)]
    given, out = tmp_path / 'list.csv', tmp_path / 'out'
    given.write_text('\n'.join(['URL,TEXT,status', *lines, 'file:///etc/passwd,x,y']))
    settings = {'HTTP_TIMEOUT': '2', 'MAX_BYTES': '5000000'}
    with Service(tmp_path / 'unused', settings, command=command(given, out, '--allow-private')) as service:
        (match,) = service.matches('a cup of coffee', limit=1)
        assert (match.uri, match.text) == (f'{site.url}/coffee.png', 'picture 2')
        assert match.tags['list_status'] == 'n2'
        (match,) = service.matches(Document(blob=site.files['/rocket.jpg']), limit=1)
        # The very file has been embedded, not a smaller copy.
        assert match.scores['cosine'].value == pytest.approx(1, abs=1e-3)
        assert len(service.stored_ids()) == 3
    found = {key.rpartition('/')[2]: told for key, told in failed(out).items()}
    expected = {
        'gone.jpg': ('fetch', '404'),
        'drip': ('fetch', 'took longer than 2'),
        'endless': ('fetch', 'larger than 5000000 bytes'),
        'passwd': ('fetch', 'unknown url type: file'),
        'half.jpg': ('embed', 'damaged'),
        'text.txt': ('embed', 'not a picture'),
    }
    assert found.keys() == expected.keys()
    for key, (step, word) in expected.items():
        assert found[key][0] == step
        assert word in found[key][1]


@long
def test_what_is_not_public_is_not_fetched_and_can_be_allowed(
    on_path: None, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    (tmp_path / 'list.txt').write_text(f'{site.url}/1.jpg\n{site.url}/2.jpg\n')
    call = command(tmp_path / 'list.txt', tmp_path / 'out', '--no-serve')
    assert main.main(call) == 1
    assert re.search('none of the URLs could be fetched: .* has no public address', capsys.readouterr().err)
    assert sum(site.asked.values()) == 0
    assert set(failed(tmp_path / 'out')) == {f'{site.url}/{n}.jpg' for n in (1, 2)}
    assert main.main([*call, '--allow-private', '--image-size', '20']) == 0
    assert failed(tmp_path / 'out') == {}
    assert '2 documents are in' in capsys.readouterr().out


@long
def test_interrupted_while_it_fetches_it_goes_on_where_it_stopped(
    on_path: None, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    for module in (urls, runner):
        monkeypatch.setattr(module, 'PER_SHARD', 10)
    given, out = tmp_path / 'list.txt', tmp_path / 'out'
    given.write_text('\n'.join(f'{site.url}/{n}.jpg' for n in range(30)))
    call = command(given, out, '--no-serve', '--allow-private', '--threads', '1')
    # One after the other: the first shard is complete, and the second has begun, when the fifteenth is asked for.
    site.waits['/14.jpg'] = threading.Event()
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> None:
            if site.asked['/14.jpg']:
                raise KeyboardInterrupt

        patch.setattr(end2end, 'progress', lambda *_: nullcontext(interrupted))
        assert main.main(call) == 130
    assert 'the same command goes on' in capsys.readouterr().err
    until(lambda: not guarded(out), 60, 'img2dataset has ended')
    assert runner.complete(out / 'pictures') == ['00000']
    site.waits.pop('/14.jpg').set()
    assert main.main(call) == 0
    assert failed(out) == {}
    assert [site.asked[f'/{n}.jpg'] for n in (0, 9, 10, 14, 29)] == [1, 1, 2, 2, 1]
    assert '30 documents are in' in capsys.readouterr().out


def guarded(out: Path) -> list[Path]:
    """Processes that fetch into a folder."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):
            said = (process / 'cmdline').read_bytes()
            found += [process] if str(out).encode() in said and b'guarded.py' in said else []
    return found


@long
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_behind_a_command_that_has_ended(
    on_path: None, site: Site, tmp_path: Path, number: signal.Signals
) -> None:
    site.waits['/1.jpg'] = threading.Event()
    given, out = tmp_path / 'list.txt', tmp_path / 'out'
    given.write_text(f'{site.url}/1.jpg\n')
    call = [sys.executable, '-W', 'ignore', '-m', 'clipflow.cli.main', *command(given, out, '--allow-private')]
    with subprocess.Popen(call, cwd=ROOT, env=os.environ | {'CLIPFLOW_RUNTIME': 'fake'}) as running:
        until(lambda: site.asked['/1.jpg'], 120, 'it is fetched')
        assert guarded(out)
        running.send_signal(number)
        assert running.wait(60) == (130 if number == signal.SIGINT else -number)
    until(lambda: not guarded(out), 60, 'img2dataset has ended')

"""Lists of URLs are read whatever their form, and nothing is fetched beyond the limits. img2dataset is not needed."""

import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from clipflow import ROOT
from clipflow.bulk.embed.tables import Columns
from clipflow.bulk.fetch import failures, runner, urls
from clipflow.bulk.fetch.runner import Limits
from clipflow.bulk.fetch.urls import Listed
from clipflow.cli import main
from clipflow.errors import Conflict, NotFound, StorageFull, Unavailable
from unit.bulk import embed_inputs as inputs
from unit.bulk.fetching import Site, serving

GUARDED = ROOT / 'clipflow' / 'bulk' / 'fetch' / 'guarded.py'
# The guard in a process of its own, and what becomes of some URLs there.
FETCH = """
import json, runpy, sys, urllib.request
place, limits, *urls = sys.argv[1:]
sys.argv[1:] = [limits]
runpy.run_path(place)['guard']()
found = {}
for url in urls:
    try:
        with urllib.request.urlopen(urllib.request.Request(url), timeout=30) as reply:
            found[url] = len(reply.read())
    except Exception as error:
        found[url] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def site() -> Iterator[Site]:
    with serving({'/a.jpg': b'x' * 5000, '/large.jpg': b'x' * 20_000}) as running:
        yield running


# A name has many addresses, all that of a server that takes no connection.
MANY = """
import socket
one = (socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', {port}))
socket.getaddrinfo = lambda host, *_, **__: [one] * (60 if host == 'many.example' else 1)
"""


def fetched(*asked: str, private: bool = True, seconds: float = 30.0, before: str = '') -> dict[str, Any]:
    limits = json.dumps({'seconds': seconds, 'bytes': 10_000, 'private': private, 'ticks': ''})
    call = [sys.executable, '-c', before + FETCH, str(GUARDED), limits, *asked]
    environment = {'no_proxy': '*'}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_fetch_has_an_end_in_time_and_in_bytes(site: Site) -> None:
    paths = ('/a.jpg', '/redirect?/a.jpg', '/large.jpg', '/endless', '/huge', '/gone')
    found = fetched(*(f'{site.url}{path}' for path in paths))
    too_large = 'larger than 10000 bytes'
    assert list(found.values()) == [5000, 5000, too_large, too_large, too_large, 'HTTP Error 404: Not Found']
    assert list(fetched(f'{site.url}/drip', seconds=1.0).values()) == ['took longer than 1.0 s']


def test_all_addresses_of_a_host_have_the_time_of_one_fetch() -> None:
    with socket.create_server(('127.0.0.1', 0), backlog=0) as deaf, ExitStack() as waiting:
        port = deaf.getsockname()[1]
        with suppress(TimeoutError):
            for _ in range(10):  # until its queue is full
                waiting.enter_context(socket.create_connection(('127.0.0.1', port), 1))
        begun = time.monotonic()
        (reason,) = fetched('http://many.example/a.jpg', seconds=1.0, before=MANY.format(port=port)).values()
    assert 'timed out' in reason
    assert time.monotonic() - begun < 30


def test_redirects_count_for_one_fetch(site: Site) -> None:
    once = '/around?/a.jpg'
    found = fetched(f'{site.url}{once}', f'{site.url}/around?{once}', f'{site.url}/a.jpg')
    assert list(found.values()) == [5000, 'larger than 10000 bytes', 5000]


def test_only_http_is_fetched_also_behind_a_redirect(site: Site, tmp_path: Path) -> None:
    (tmp_path / 'secret').write_text('secret')
    file = (tmp_path / 'secret').as_uri()
    found = fetched(file, 'data:,secret', 'ftp://127.0.0.1/x', f'{site.url}/redirect?{file}', '')
    for reason, word in zip(found.values(), ('type: file', 'type: data', 'type: ftp', 'not allowed', ''), strict=True):
        assert isinstance(reason, str)
        assert word in reason


@pytest.mark.parametrize(
    'host',
    [
        '127.0.0.1',
        'localhost',
        '[::1]',
        '169.254.169.254',
        '10.0.0.1',
        '0',
        '224.0.0.1',
        '[::ffff:127.0.0.1]',
        '[64:ff9b::a9fe:a9fe]',
        '[2002:7f00:1::1]',
        '[fec0::1]',
    ],
)
def test_addresses_that_are_not_public_are_refused(site: Site, host: str) -> None:
    url = f'http://{host}:{site.url.rpartition(":")[2]}/a.jpg'
    asked = site.asked['/a.jpg']
    (reason,) = fetched(url, private=False).values()
    assert 'has no public address' in reason
    assert site.asked['/a.jpg'] == asked


# -- lists ------------------------------------------------------------------------------------------------------------


def prepared(folder: Path, file: Path, options: dict[str, str] | None = None) -> Listed:
    source = urls.opened(str(file), Columns())
    assert source is not None
    return urls.prepared(folder / 'urls', str(file), source, options or {})


def rows(folder: Path) -> list[dict[str, Any]]:
    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob('urls/urls_*.parquet'))]
    return [row for table in tables for row in table.to_pylist()]


def test_a_text_file_has_a_url_a_line(tmp_path: Path) -> None:
    file = tmp_path / 'list.txt'
    file.write_text('\ufeffhttp://e/a,b.jpg\r\n\n  http://e/ä ö.jpg?x=%20&y=é  \nnonsense', encoding='utf-8')
    assert prepared(tmp_path / 'out', file).count == 3
    assert [row['url'] for row in rows(tmp_path / 'out')] == [
        'http://e/a,b.jpg',
        'http://e/%C3%A4%20%C3%B6.jpg?x=%20&y=%C3%A9',
        'nonsense',
    ]


def test_of_a_table_the_columns_stay_and_have_no_name_of_img2dataset(tmp_path: Path) -> None:
    file = tmp_path / 'list.tsv'
    file.write_text('TEXT\tURL\twidth\tnote\na cat\thttp://e/1\t7\tx\n\t\t8\t\na dog\thttps://e/2\t9\ty\n')
    listed = prepared(tmp_path / 'out', file)
    assert (listed.count, listed.captions, listed.columns) == (3, True, ('list_width', 'note'))
    assert rows(tmp_path / 'out') == [
        {'url': 'http://e/1', 'caption': 'a cat', 'list_width': '7', 'note': 'x'},
        {'url': '', 'caption': '', 'list_width': '8', 'note': None},
        {'url': 'https://e/2', 'caption': 'a dog', 'list_width': '9', 'note': 'y'},
    ]


def test_a_long_list_is_cut_into_files_of_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, 'PER_SHARD', 3)
    monkeypatch.setattr(urls, '_PER_FILE', 6)
    for count, shards, files in ((1, 1, 1), (6, 2, 1), (7, 3, 2), (12, 4, 2), (16, 6, 3)):
        folder, file = tmp_path / str(count), tmp_path / f'{count}.txt'
        file.write_text('\n'.join(f'http://e/{n}' for n in range(count)))
        assert prepared(folder, file).shards == shards
        assert len(list(folder.glob('urls/*.parquet'))) == files
        assert [row['url'] for row in rows(folder)] == [f'http://e/{n}' for n in range(count)]


def test_a_list_that_has_changed_and_another_one_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / 'one.txt', tmp_path / 'two.txt'
    for file in (one, two):
        file.write_text('http://e/1\n')
    before = prepared(tmp_path / 'out', one)
    assert prepared(tmp_path / 'out', one) == before
    with pytest.raises(Conflict, match='begun with none of these options; give the same'):
        prepared(tmp_path / 'out', one, {'--image-size': '256'})
    with pytest.raises(Conflict, match='another folder'):
        prepared(tmp_path / 'out', two)
    one.write_text('http://e/1\nhttp://e/2\n')
    with pytest.raises(Conflict, match='has changed since'):
        prepared(tmp_path / 'out', one)


def test_an_empty_list_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(NotFound, match='holds no URLs'):
        prepared(tmp_path / 'out', tmp_path / 'empty.txt')
    assert list((tmp_path / 'out').iterdir()) == []
    with pytest.raises(NotFound, match='no such file'):
        urls.opened(str(tmp_path / 'absent.txt'), Columns())


def test_pictures_and_tables_of_files_are_no_lists(tmp_path: Path) -> None:
    folder = inputs.folder(tmp_path / 'folder', inputs.files())
    others = (folder, inputs.uris(tmp_path / 'files.csv', folder), inputs.parquet(tmp_path / 'pictures.parquet'))
    assert [urls.opened(str(place), Columns()) for place in others] == [None, None, None]


# -- what img2dataset leaves ------------------------------------------------------------------------------------------


def shard(folder: Path, name: str, count: int, found: list[dict[str, Any]]) -> None:
    (folder / 'pictures').mkdir(exist_ok=True, parents=True)
    columns = {key: [row.get(key) for row in found] for key in ('url', 'key', 'status', 'error_message')}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / 'pictures' / f'{name}.parquet')
    (folder / 'pictures' / f'{name}.tar').touch()
    (folder / 'pictures' / f'{name}_stats.json').write_text(json.dumps({'count': count}))


def test_a_shard_counts_when_every_item_of_it_is_there(tmp_path: Path) -> None:
    for name, count in (('00000', 2), ('00001', 3), ('00002', 2)):
        shard(tmp_path, name, count, [{'status': 'success'}] * 2)
    (tmp_path / 'pictures' / '00002_stats.json').write_text('')
    assert runner.complete(tmp_path / 'pictures') == ['00000']


def fake_program(folder: Path, text: str) -> Path:
    """A `python` with the name of an interpreter, beside an `img2dataset`: says something, and fails."""
    folder.mkdir()
    for name in ('python', 'img2dataset'):
        (folder / name).write_text(f'#!/bin/sh\necho "{text}"\nexit 3\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ('said', 'error', 'sentence'),
    [
        ('No space left on device', StorageFull, 'what is done stays'),
        ('anything else', Unavailable, r'exit code 3\) before 1 of 2 shards were complete; .*pictures.log says why'),
    ],
)
def test_a_fetch_that_fails_leaves_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], sentence: str
) -> None:
    monkeypatch.setattr(runner, 'find_spec', lambda name: None)
    monkeypatch.setenv('PATH', str(fake_program(tmp_path / 'bin', said)), prepend=':')
    shard(tmp_path, '00000', 1, [{'status': 'success'}])
    half = tmp_path / 'pictures' / '00001.tar'
    half.write_bytes(b'half')
    told: list[int] = []
    with pytest.raises(error, match=sentence):
        runner.fetch(tmp_path, Listed('x', 'y', urls.PER_SHARD + 5), Limits(1, 1), told.append)
    assert not half.exists()
    assert sum(told) == urls.PER_SHARD
    assert runner.complete(tmp_path / 'pictures') == ['00000']


def test_two_at_once_are_one_too_many(tmp_path: Path) -> None:
    with (tmp_path / '.fetching').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match='another process fetches into'):
            runner.fetch(tmp_path, Listed('x', 'y', 1), Limits(1, 1), lambda count: None)


def test_without_img2dataset_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(runner, 'find_spec', lambda name: None)
    monkeypatch.setenv('PATH', str(tmp_path))
    (tmp_path / 'list.txt').write_text('http://e/1\n')
    assert main.main(['end2end', str(tmp_path / 'list.txt'), '--out', str(tmp_path / 'out'), '--no-serve']) == 1
    assert "pip install 'clipflow[fetch]'" in capsys.readouterr().err


def test_failures_of_all_steps_are_one_list_with_urls(tmp_path: Path) -> None:
    names = {'000000': 'success', '000001': 'failed_to_download', '000002': 'success'}
    found = [
        {'url': f'http://e/{key[-1]}', 'key': f'000{key}', 'status': status, 'error_message': 'gone'}
        for key, status in names.items()
    ]
    shard(tmp_path, '00000', 3, found)
    (tmp_path / 'embeddings').mkdir()
    left_out = {
        'key': ['000000002', '000000000', 'elsewhere.jpg'],
        'reason': ['damaged', 'no caption', 'x'],
        'embedded': [False, True, False],
    }
    pyarrow.parquet.write_table(pyarrow.table(left_out), tmp_path / 'embeddings' / 'failures.parquet')
    failures.gather(tmp_path)
    assert pyarrow.parquet.read_table(tmp_path / 'failures.parquet').to_pylist() == [
        {'key': 'http://e/1', 'reason': 'gone', 'step': 'fetch'},
        {'key': 'http://e/2', 'reason': 'damaged', 'step': 'embed'},
        {'key': 'elsewhere.jpg', 'reason': 'x', 'step': 'embed'},
    ]

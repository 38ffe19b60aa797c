"""Our client library and the command line, against real services."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow.errors import InvalidFilter, Unavailable, UnsupportedMedia
from clipflow_client import AsyncClient, Client
from service import Service, free_port, picture, png, until

# `clipflow index` that takes its time after the first hundred files, so that it is not through when it is interrupted.
_SLOWLY = """
import sys, time
from clipflow.cli import index, main
read = index._documents
def slowly(*given):
    for number, doc in enumerate(read(*given)):
        time.sleep(0.1 if number >= 100 else 0)
        yield doc
index._documents = slowly
sys.exit(main.main(sys.argv[1:]))
"""


def _run(service: Service, *arguments: str) -> 'subprocess.CompletedProcess[str]':
    command = [sys.executable, '-W', 'ignore', '-m', 'clipflow.cli.main', arguments[0], '--host', service.grpc]
    return subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=False, timeout=120)


def test_text_bytes_path_and_vector_are_queries(fake: Service, tmp_path: Path) -> None:
    path = tmp_path / 'red.png'
    path.write_bytes(png('red'))
    with Client(fake.grpc) as client:
        outcomes = client.index([path, Document(id='blue', blob=png('blue')), Document(id='words', text='a cat')])
        assert [outcome.error for outcome in outcomes] == [None, None, None]
        vector = client.encode([png('blue')])[0]
        assert client.search('a cat', limit=1)[0].id == 'words'
        assert client.search(path, limit=1)[0].id == str(path)
        assert client.search(png('blue'), limit=1)[0].id == 'blue'
        assert client.search(vector, limit=1)[0].id == 'blue'
        assert client.search(np.asarray(picture('red')), limit=1)[0].uri == path.as_uri()


def test_a_stream_of_any_length_is_stored_and_bad_items_do_not_stop_it(fake: Service, tmp_path: Path) -> None:
    items = (tmp_path / 'missing.png' if i == 500 else Document(id=str(i), text=f'text {i}') for i in range(2000))
    with Client(fake.grpc) as client:
        outcomes = client.index(items)
        assert sum(outcome.error is None for outcome in outcomes) == 1999
        assert [outcome.id for outcome in outcomes if outcome.error] == [str(tmp_path / 'missing.png')]
        assert client.status()['indexer']['documents'] == 1999
        assert client.delete(['0', '1', 'unknown']) == 2
        assert set(client.get(['1', '2'])) == {'2'}


def test_a_stream_holds_a_few_items_at_once_however_many_there_are(fake: Service) -> None:
    blob = b'no picture' * 30_000  # 300 kB, refused at once
    made = done = most = 0

    def items() -> Iterator[Document]:
        nonlocal made, most
        for number in range(400):
            made += 1
            most = max(most, made - done)
            yield Document(id=str(number), blob=blob)

    with Client(fake.grpc) as client:
        for outcome in client.index_iter(items()):
            done += 1
            assert isinstance(outcome.error, UnsupportedMedia)
    assert done == 400
    # Four requests of 2 MB are under way, and one is being filled.
    assert most <= 5 * 7


def test_an_interrupted_index_goes_on_where_it_stopped(fake: Service, tmp_path: Path) -> None:
    folder = tmp_path / 'photos'
    folder.mkdir()
    for number in range(400):
        (folder / f'{number}.png').write_bytes(png((number % 256, number // 256, 7), (300, 200)))
    command = [sys.executable, '-W', 'ignore', '-c', _SLOWLY, 'index', '--host', fake.grpc, '--quiet']
    with subprocess.Popen(
        [*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            until(fake.stored_ids, 120, 'something is stored')
            os.killpg(process.pid, signal.SIGINT)
            out, told = process.communicate(timeout=120)
        finally:
            process.kill()  # else it would go on while other tests use the service
    assert process.returncode == 130
    assert 'the same command goes on where this one stopped' in told
    assert 'Traceback' not in told
    before = len(fake.stored_ids())
    assert int(out.split()[0]) <= before < 400
    again = _run(fake, 'index', '--quiet', str(folder))
    assert again.returncode == 0
    stored = int(again.stdout.split()[0])
    assert stored <= 400 - before, 'what was on its way may have been stored after the command had ended'
    assert again.stdout == f'{stored} stored, {400 - stored} unchanged, 0 failed\n'


def test_errors_are_typed(fake: Service) -> None:
    with Client(fake.grpc) as client, pytest.raises(InvalidFilter):
        client.search('a cat', filter={'a': {'$foo': 1}})
    with Client(f'127.0.0.1:{free_port()}', retries=1) as nobody, pytest.raises(Unavailable, match='clipflow serve'):
        nobody.search('a cat')


def test_it_works_inside_a_running_loop_and_from_many_threads(fake: Service) -> None:
    with Client(fake.grpc) as client:
        client.index([Document(id=str(i), text=f'text {i}') for i in range(32)])

        async def inside() -> str:
            async with AsyncClient(fake.grpc) as other:
                return client.search('text 3')[0].id + (await other.search('text 4'))[0].id

        assert asyncio.run(inside()) == '34'
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: client.search(f'text {i}')[0].id, range(32)))
        assert found == [str(i) for i in range(32)]


def test_the_command_line_indexes_skips_searches_and_deletes(fake: Service, tmp_path: Path) -> None:
    folder = tmp_path / 'photos'
    (folder / 'deep').mkdir(parents=True)
    for name, colour in (('red.png', 'red'), ('deep/green.jpg', 'green'), ('blue.webp', 'blue')):
        picture(colour).save(folder / name)
    (folder / 'broken.jpg').write_text('no picture')
    (folder / 'empty.png').touch()
    (folder / 'notes.txt').write_text('left out')
    first = _run(fake, 'index', '--quiet', str(folder))
    assert first.returncode == 1
    assert '3 stored, 0 unchanged, 2 failed' in first.stdout
    assert f'{folder}/broken.jpg: the content is not a picture' in first.stderr
    picture('yellow').save(folder / 'red.png')
    os.utime(folder / 'red.png', (1, 1))
    assert '1 stored, 2 unchanged, 2 failed' in _run(fake, 'index', '--quiet', str(folder)).stdout
    grid = tmp_path / 'grid.png'
    shown = _run(fake, 'search', '--image', str(folder / 'blue.webp'), '--grid', str(grid))
    assert shown.returncode == 0
    assert 'blue.webp' in shown.stdout
    with Image.open(grid) as image:
        assert image.width > 5 * 256
    told = json.loads(_run(fake, 'search', 'a cat', '--json', '--limit', '2').stdout)
    assert [set(match) for match in told] == [{'id', 'score', 'uri', 'text', 'tags'}] * 2
    assert 'documents: 3' in _run(fake, 'status').stdout
    assert '1 deleted' in _run(fake, 'delete', str(folder / 'blue.webp')).stdout


def test_wrong_calls_and_a_missing_service_are_one_sentence(fake: Service) -> None:
    command = [sys.executable, '-m', 'clipflow.cli.main', 'serch']
    wrong = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert wrong.returncode == 2
    refused = _run(fake, 'search', 'a cat', '--filter', 'no json')
    assert refused.returncode == 1
    assert refused.stderr.startswith('clipflow: invalid-filter: ')
    assert 'Traceback' not in refused.stderr

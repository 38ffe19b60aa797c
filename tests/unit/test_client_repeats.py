"""What our client sends again, against a server whose answers the test chooses."""

import datetime
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from docarray import Document, DocumentArray

from clipflow.cli.main import main
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, TooLarge, Unavailable
from clipflow_client import Client, Item
from service import png, until
from unit.answering import Server, failing


def test_only_documents_whose_error_may_pass_are_sent_again(server: Server) -> None:
    server.answers = [
        failing(b=Unavailable('away'), c=InvalidDocument('bad')),
        failing(b=Unavailable('away')),
        failing(),
    ]
    with Client(server.address) as client:
        outcomes = client.index([Document(id=name, text=name) for name in 'abc'])
    assert server.asked == [['a', 'b', 'c'], ['b'], ['b']]
    assert [(one.id, type(one.error)) for one in outcomes] == [
        ('a', type(None)),
        ('b', type(None)),
        ('c', InvalidDocument),
    ]


def test_what_no_message_can_hold_is_refused_alone_and_the_rest_is_sent(server: Server) -> None:
    server.answers = [failing()]
    bad = [
        Document(id='text', text='half \ud800'),
        Document(id='tag', text='x', tags={'a': ['\udcff']}),
        Document(id='part', chunks=[Document(text='\udfff')]),
        Document(id='\ud800', text='x'),
    ]
    with Client(server.address) as client:
        outcomes = client.index([Document(id='a', text='a'), *bad, 'half \ud800', Document(id='b', text='b')])
    assert server.asked == [['a', 'b']]
    failed = {one.id: one.error for one in outcomes if one.error is not None}
    assert list(failed) == ['text', 'tag', 'part', '\ud800', 'half \ud800']
    for error in failed.values():
        assert isinstance(error, InvalidDocument)
        assert 'half a surrogate pair' in error.message


def test_a_request_that_no_message_can_hold_is_an_error_of_ours(server: Server) -> None:
    docs = DocumentArray([Document(text='x', matches=[Document(text='\ud800')])])
    with Client(server.address) as client:
        for ask in (
            lambda: client.search('half \ud800'),
            lambda: client.encode(['whole', 'half \ud800']),
            lambda: client.search('a', filter={'tag': '\ud800'}),
            lambda: client.update({'a': {'tag': '\ud800'}}),
            lambda: client.get(['\ud800']),
            lambda: client.post('/rank', docs),
        ):
            with pytest.raises((InvalidDocument, InvalidParameter), match='half a surrogate pair'):
                ask()
    assert server.asked == []


def test_the_command_line_takes_bytes_that_are_no_text_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['search', os.fsdecode(b'half \xff'), '--host', '127.0.0.1:1']) == 1
    said = capsys.readouterr().err
    assert said.startswith('clipflow: invalid-document: ')
    assert 'half a surrogate pair' in said


def test_a_file_whose_name_is_no_text_has_its_uri_for_an_id(server: Server, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b'\xe9.png')
    path.write_bytes(png('red'))
    server.answers = [failing()]
    with Client(server.address) as client:
        assert [(one.id, one.error) for one in client.index([path])] == [(f'file://{tmp_path}/%E9.png', None)]


def test_files_whose_names_are_no_text_are_stored_under_names_that_are(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b'f\xff')
    folder.mkdir()
    (folder / os.fsdecode(b'\xe9.png')).write_bytes(png('red'))
    (folder / 'b.png').write_bytes(png('red'))
    stored: list[Document] = []

    def store(docs: DocumentArray) -> DocumentArray:
        stored.extend(docs)
        return docs

    server.answers = [store]
    assert main(['index', str(folder), '--force', '--quiet', '--host', server.address]) == 0
    assert [(doc.tags['filename'], Path(doc.tags['folder']).name) for doc in stored] == [
        ('b.png', 'f\ufffd'),
        ('\ufffd.png', 'f\ufffd'),
    ]
    assert [Path(unquote_to_bytes(doc.uri)[7:].decode('utf-8', 'surrogateescape')).exists() for doc in stored] == [
        True,
        True,
    ]


def test_a_document_that_stays_away_comes_back_with_its_error(server: Server) -> None:
    server.answers = [failing(b=Unavailable('away'))] * 3
    with Client(server.address, retries=2) as client:
        outcomes = client.index([Document(id=name, text=name) for name in 'ab'])
    assert server.asked == [['a', 'b'], ['b'], ['b']]
    assert [type(one.error) for one in outcomes] == [type(None), Unavailable]


def test_what_came_back_stands_when_the_rest_cannot_be_asked_for_again(server: Server) -> None:
    server.answers = [failing(b=Unavailable('away')), Unavailable('all is away'), Unavailable('all is away')]
    with Client(server.address, retries=2) as client:
        outcomes = client.index([Document(id=name, text=name) for name in 'ab'])
    assert server.asked == [['a', 'b'], ['b'], ['b']]
    assert [type(one.error) for one in outcomes] == [type(None), Unavailable]


def test_a_document_is_not_taken_for_missing_when_its_shard_is_away(server: Server) -> None:
    def away(docs: DocumentArray) -> DocumentArray:
        found = DocumentArray([Document(id='a'), Document(id='b'), Document(id='c')])
        return failing(b=Unavailable('away'), c=NotFound('no such document'))(found)

    server.answers = [away]
    with Client(server.address) as client, pytest.raises(Unavailable):
        client.get(['a', 'b', 'c'])


def test_what_must_not_be_done_twice_is_sent_once(server: Server) -> None:
    server.answers = [Unavailable('away')]
    with Client(server.address) as client, pytest.raises(Unavailable):
        client.post('/feedback', DocumentArray([Document(text='a')]), {'shown': ['x'], 'clicked': ['x']})
    assert len(server.asked) == 1


def test_what_is_too_large_for_a_request_fails_alone(server: Server) -> None:
    too_large = TooLarge('the request has too many bytes')
    server.answers = [too_large, failing(), too_large, failing()]
    with Client(server.address) as client:
        outcomes = client.index([Document(id=name, text=name) for name in 'abc'])
    assert server.asked == [['a', 'b', 'c'], ['a'], ['b'], ['c']]
    assert [(one.id, type(one.error)) for one in outcomes] == [('a', type(None)), ('b', TooLarge), ('c', type(None))]


@pytest.mark.parametrize('value', [np.int64(1), np.bool_(True), b'x', datetime.date(2026, 1, 1), {1}, {1: 'x'}])
def test_what_json_does_not_know_is_refused_alone_and_named(server: Server, value: object) -> None:
    server.answers = [failing()]
    docs = [Document(id='a', text='a'), Document(id='bad', text='x', tags={'n': value}), Document(id='b', text='b')]
    with Client(server.address) as client:
        failed = {one.id: one.error for one in client.index(docs) if one.error is not None}
        for ask in (
            lambda: client.search('a', filter={'n': value}),
            lambda: client.update({'a': {'n': value}}),
            lambda: client.post('/index', DocumentArray(docs)),
        ):
            with pytest.raises((InvalidDocument, InvalidParameter)):
                ask()
    assert server.asked == [['a', 'b']]
    assert list(failed) == ['bad']
    assert isinstance(failed['bad'], InvalidDocument)


def test_items_are_taken_in_the_thread_that_waits_so_they_may_come_from_there(server: Server) -> None:
    server.answers = [failing()] * 4  # three questions, and what they lead to
    table = sqlite3.connect(':memory:')  # which refuses every other thread
    with Client(server.address) as client:
        found = (row[0] for row in table.execute("SELECT 'a' UNION SELECT 'b' UNION SELECT 'c'"))
        outcomes = client.index(Document(id=name, text=str(len(client.get([name])))) for name in found)
    assert [one.id for one in outcomes] == ['a', 'b', 'c']
    table.close()


def test_what_items_raise_comes_out_where_the_outcomes_are_asked_for(server: Server) -> None:
    def items() -> Iterator[Document]:
        yield Document(text='a')
        raise KeyError('mine')

    with Client(server.address) as client:
        with pytest.raises(KeyError, match='mine'):
            client.index(items())
        server.answers = [failing()]
        assert [one.id for one in client.index([Document(id='b', text='b')])] == ['b']


def test_embeddings_of_nothing_are_none_and_those_of_no_content_an_error(server: Server) -> None:
    server.answers = [failing()]
    with Client(server.address) as client:
        assert client.encode([]).shape == (0, 0)
        with pytest.raises(InvalidDocument, match='item 0 has no content'):
            client.encode([Document()])


def test_a_file_that_cannot_be_read_has_the_id_that_it_would_have_had(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Client(server.address) as client:
        assert [one.id for one in client.index([Path('x' * 150 + '.png')])] == [f'{tmp_path}/{"x" * 150}.png']


@pytest.mark.parametrize('single', ['a cat', b'bytes', Path('cat.jpg'), Document(text='a')])
def test_a_single_item_is_not_taken_apart(server: Server, single: Item) -> None:
    with Client(server.address) as client:
        for call in (client.index, client.encode, client.search_many, client.get, client.delete):
            with pytest.raises(InvalidParameter, match='put it into a list'):
                call(single)  # type: ignore[operator]
    assert server.asked == []


def test_who_waits_when_the_client_is_closed_or_asks_after_that_is_told(server: Server) -> None:
    client = Client(server.address)
    server.answers = [Unavailable('away')] * 9
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.search, 'a')
        until(lambda: len(server.asked) > 1, 30, 'it is asked again')
        client.close()
        with pytest.raises(RuntimeError, match='the client is closed'):
            waiting.result(timeout=30)
    client.close()
    with pytest.raises(RuntimeError, match='the client is closed'):
        client.search('a')


_FORKED = """
import os, sys
from clipflow_client import Client, Item
client = Client('127.0.0.1:1')
if os.fork() == 0:
    try:
        with client:
            client.search('a')
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_client_in_a_fork_says_so_and_does_not_wait_for_ever() -> None:
    told = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _FORKED], check=False, capture_output=True, text=True, timeout=120
    )
    assert 'before this process was forked' in told.stdout


def test_two_clients_in_one_process_complain_of_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers = [failing()] * 400
    with Client(server.address) as one, Client(server.address) as other, ThreadPoolExecutor(2) as pool:
        for client in (one, other):
            pool.submit(
                lambda client=client: [client.post('/', DocumentArray([Document(text='a')])) for _ in range(200)]
            )
    assert not server.answers
    assert not caplog.records


def test_a_key_that_cannot_be_sent_is_an_error_of_ours() -> None:
    for key in ('key\n', 'schl\u00fcssel'):
        with pytest.raises(InvalidParameter, match='API key'):
            Client('127.0.0.1:1', api_key=key)

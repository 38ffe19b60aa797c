"""What our client sends again, against a server whose answers the test chooses."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

import grpc
import pytest
from docarray import Document, DocumentArray
from jina.proto.jina_pb2 import StatusProto
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.cli.main import main
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, Unavailable
from clipflow_client import Client
from service import png

Answer = Callable[[DocumentArray], DocumentArray]


class Server:
    """Answers one request after the other as it is told; an exception is the error of the whole request."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []
        self.asked: list[list[str]] = []
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        service = grpc.method_handlers_generic_handler(
            'jina.JinaSingleDataRequestRPC', {'process_single_data': handler}
        )
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((service,))
        self.address = f'127.0.0.1:{self._server.add_insecure_port("127.0.0.1:0")}'
        self._server.start()

    def _answer(self, data: bytes, context: object) -> bytes:
        request = DataRequest(data)
        self.asked.append([doc.id for doc in request.docs])
        answer, reply = self.answers.pop(0), DataRequest()
        if isinstance(answer, Exception):
            reply.header.status.code = StatusProto.ERROR
            reply.header.status.description = repr(answer)
        else:
            reply.data.docs = answer(request.docs)
        return bytes(reply.SerializeToString())

    def stop(self) -> None:
        self._server.stop(None)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def failing(**errors: Exception) -> Answer:
    """Documents come back as they are, some of them with an error."""

    def answer(docs: DocumentArray) -> DocumentArray:
        for doc in docs:
            if doc.id in errors:
                wire.fail(doc, errors[doc.id], 'indexer')
        return docs

    return answer


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

"""Requests that cannot be served: refused as a whole, with a code and a sentence, and the service goes on."""

import os
import pickle
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from docarray import Document, DocumentArray
from jina.proto import jina_pb2

from clipflow.errors import ClipflowError, InvalidFilter, InvalidParameter, TooLarge
from clipflow_client import Client
from service import Service, error_codes, error_of, png, until

INJECTIONS = (
    "' OR 1=1 --",
    '" OR 1=1 --',
    "'; DROP TABLE documents; --",
    "')); DELETE FROM documents; --",
    '$."n" OR 1',
    'n") IS NULL OR ("',
    'tags, ?) IS NULL OR 1 --',
    '%',
    '*',
)


@pytest.fixture
def stored(fake: Service) -> set[str]:
    """Three documents."""
    fake.post('/index', [Document(id=f'd{i}', text=f'text {i}', tags={'n': i, 'name': f'name {i}'}) for i in range(3)])
    return {'d0', 'd1', 'd2'}


@pytest.mark.parametrize('limit', [0, -1, -1e9, 10_001, 1e9, 1e300, 2.5, 'ten', '', None, [1], {'a': 1}])
@pytest.mark.parametrize('endpoint', ['/search', '/get'])
def test_a_limit_that_is_none_is_refused(fake: Service, stored: set[str], endpoint: str, limit: Any) -> None:
    with pytest.raises(InvalidParameter, match='limit'):
        fake.post(endpoint, Document(id='d0', text='x'), {'limit': limit})


@pytest.mark.parametrize('name', ['limit', 'min_score', 'filter', '__deadline'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_parameter_that_is_not_finite_is_refused(fake: Service, name: str, value: float) -> None:
    given = {'n': {'$lt': value}} if name == 'filter' else value
    with pytest.raises((InvalidParameter, InvalidFilter)):
        fake.post('/search', Document(text='x'), {name: given})


@pytest.mark.parametrize(
    'condition',
    [
        'a filter',
        5,
        True,
        [],
        [{'n': 1}],
        {'$near': 1},
        {'n': {'$near': 1}},
        {'n': {}},
        {'n': {'$lt': None}},
        {'n': {'$lt': {'a': 1}}},
        {'n': [1]},
        {'n': {'$in': 5}},
        {'n': {'$exists': 'yes'}},
        {'n': {'$size': -1}},
        {'n': {'$size': 1.5}},
        {'n': {'$regex': '('}},
        {'n': {'$regex': 5}},
        {'$and': []},
        {'$or': {'n': 1}},
        {'$not': [1]},
        {'': 1},
        {'$and': [{'n': 1}] * 501},
        {'n': {'$in': list(range(10_001))}},
    ],
)
@pytest.mark.parametrize('endpoint', ['/search', '/delete', '/get'])
def test_a_filter_that_is_none_is_refused_and_deletes_nothing(
    fake: Service, stored: set[str], endpoint: str, condition: Any
) -> None:
    with pytest.raises(InvalidFilter):
        fake.post(endpoint, Document(text='x') if endpoint == '/search' else None, {'filter': condition})
    assert fake.stored_ids() == stored


@pytest.mark.parametrize('text', INJECTIONS)
def test_sql_in_a_filter_is_text(fake: Service, stored: set[str], text: str) -> None:
    conditions: list[dict[str, Any]] = [
        {'name': text},
        {'name': {'$in': [text]}},
        {text: 1},
        {'n': {'$eq': text}},
        {f'name__{text}': {'$gt': text}},
    ]
    for condition in conditions:
        try:
            assert len(fake.matches('x', filter=condition)) == 0
            assert fake.post('/delete', None, {'filter': condition})[0].tags['deleted'] == 0
        except InvalidFilter:
            assert '"' in str(condition)
    assert fake.stored_ids() == stored


def test_sql_in_tags_texts_ids_and_uris_is_kept_as_text(fake: Service, stored: set[str]) -> None:
    docs = [Document(id=text, text=text, uri=text, tags={text: text, 'n': text}) for text in INJECTIONS]
    assert set(error_codes(fake.post('/index', docs)).values()) == {None}
    assert fake.stored_ids() == stored | set(INJECTIONS)
    for text in INJECTIONS:
        found = fake.one('/get', Document(id=text))
        assert (found.text, found.uri, dict(found.tags)) == (text, text, {text: text, 'n': text})
        assert [match.id for match in fake.matches('x', filter={'n': text})] == [text]
        fake.post('/update', Document(id=text, tags={text: "'"}))
        assert fake.one('/get', Document(id=text)).tags[text] == "'"
    assert fake.post('/delete', None, {'ids': list(INJECTIONS)})[0].tags['deleted'] == len(INJECTIONS)
    assert fake.stored_ids() == stored


def test_a_nul_in_a_tag_or_a_filter_is_refused_because_sqlite_would_end_the_text_there(fake: Service) -> None:
    # Else a filter would take 'a\0b' for 'a'.
    sent = [Document(id='short', text='x', tags={'n': 'a'}), Document(id='long', text='x', tags={'n': ['a\0b']})]
    assert error_codes(fake.post('/index', sent)) == {'short': None, 'long': 'invalid-document'}
    assert [match.id for match in fake.matches('x', filter={'n': 'a'})] == ['short']
    with pytest.raises(InvalidFilter, match='NUL'):
        fake.matches('x', filter={'n': 'a\0b'})
    fake.post('/index', Document(id='escaped', text='x', tags={'n': '\\u0000'}))
    assert [match.id for match in fake.matches('x', filter={'n': '\\u0000'})] == ['escaped']


def test_a_pattern_that_never_ends_is_an_error_and_deletes_nothing(fake: Service) -> None:
    fake.post('/index', Document(id='a', text='x', tags={'s': 'a' * 5000 + '!'}))
    endless = {'s': {'$regex': '(a|aa)+$'}}
    with pytest.raises(InvalidFilter, match='too long'):
        fake.matches('x', filter=endless)
    with pytest.raises(InvalidFilter, match='too long'):
        fake.post('/delete', None, {'filter': {'$not': endless}})
    assert [match.id for match in fake.matches('x', filter={'s': {'$regex': '!$'}})] == ['a']


def test_an_empty_index_answers_every_endpoint(fake: Service) -> None:
    assert len(fake.matches('x', filter={'n': 1}, group_by='n')) == 0
    assert len(fake.post('/get')) == 0
    assert fake.post('/delete', None, {'filter': {}})[0].tags['deleted'] == 0
    assert fake.post('/delete', None, {'ids': ['nobody']})[0].tags['deleted'] == 0
    assert fake.post('/clear')[0].tags['deleted'] == 0
    assert error_codes(fake.post('/update', Document(id='nobody', tags={'a': 1}))) == {'nobody': 'not-found'}
    assert error_codes(fake.post('/get', Document(id='nobody'))) == {'nobody': 'not-found'}


def test_results_that_a_client_claims_are_dropped(fake: Service, stored: set[str]) -> None:
    claimed = {'encoder': {'a': 1}, 'indexer': {'matches': ['mine']}}
    reply = fake.request('/search', Document(text='text 1'), {'__results__': claimed, 'limit': 1})
    assert [match.id for match in reply.docs[0].matches] == ['d1']
    assert 'mine' not in str(reply.parameters)


def test_a_model_that_a_client_names_in_a_private_parameter_is_dropped(fake: Service) -> None:
    assert fake.one('/encode', Document(text='x'), {'__model_name': 'another'}).embedding is not None


@pytest.mark.parametrize('megabytes', [65, 200])
def test_a_request_above_the_limit_is_too_large_and_the_next_one_is_served(fake: Service, megabytes: int) -> None:
    with pytest.raises(TooLarge):
        fake.post('/index', Document(id='big', blob=bytes(megabytes * 2**20)))
    assert fake.one('/index', Document(id='small', text='x')).id == 'small'


def test_a_message_that_grpc_itself_refuses_is_too_large_for_our_client(fake: Service) -> None:
    with Client(fake.grpc, retries=0) as client, pytest.raises(TooLarge):
        client.post('/index', DocumentArray([Document(blob=bytes(257 * 2**20))]))
    assert fake.one('/index', Document(id='small', text='x')).id == 'small'


@pytest.mark.parametrize('kind', ['chunks', 'filter'])
def test_nesting_beyond_what_protobuf_reads_is_the_fault_of_the_client(fake: Service, kind: str) -> None:
    doc, parameters = Document(text='x'), {}
    for _ in range(100):
        if kind == 'chunks':
            doc = Document(chunks=DocumentArray([doc]))
        else:
            parameters = {'$not': parameters}
    with pytest.raises(ClipflowError) as caught:
        fake.post('/search', doc, {'filter': parameters} if parameters else {})
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize('protocol', ['grpc', 'http'])
@pytest.mark.parametrize('garbage', [b'\0' * 1000, b'GET / HTTP/9.9\r\n\r\n', bytes(range(256)) * 300, b''])
def test_garbage_on_a_port_harms_nobody(fake: Service, stored: set[str], protocol: str, garbage: bytes) -> None:
    address = fake.grpc if protocol == 'grpc' else fake.http.removeprefix('http://')
    host, _, port = address.partition(':')
    for _ in range(5):
        with (
            socket.create_connection((host, int(port)), timeout=60) as connection,
            suppress(ConnectionError),  # it may hang up before all was sent
        ):
            connection.sendall(garbage)
    assert len(fake.matches('text 1')) == 3
    ready = f'{fake.http}/readyz'  # which gives the stages a few seconds, too few on a busy machine
    until(lambda: httpx.get(ready, timeout=60, trust_env=False).status_code == 200, 60, 'it is ready')


def test_a_client_that_hangs_up_in_the_middle_harms_nobody(fake: Service, stored: set[str]) -> None:
    host, port = '127.0.0.1', int(fake.http.rpartition(':')[2])
    head = b'POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    head += b'Content-Length: 99\r\n\r\n{"do'
    for _ in range(10):
        with socket.create_connection((host, port), timeout=60) as connection:
            connection.sendall(head)
    assert fake.stored_ids() == stored


class TestFileRoots:
    """With CLIPFLOW_FILE_ROOTS set, what lies below is read and nothing else."""

    @pytest.fixture(scope='class', autouse=True)
    def _filled(self, roots: Path) -> None:
        """Pictures in the roots and ways out, a secret beside them, and another directory whose name begins alike."""
        (roots / 'open-not').mkdir()
        (roots / 'open' / 'sub dir').mkdir()
        for name in ('open/red.png', 'open/sub dir/ü 100%.png', 'open-not/near.png', 'secret.png', 'second/b.png'):
            (roots / name).write_bytes(png('red'))
        (roots / 'open' / 'out.png').symlink_to(roots / 'secret.png')
        (roots / 'open' / 'away').symlink_to(roots)
        (roots / 'open' / 'within.png').symlink_to(roots / 'open' / 'red.png')
        (roots / 'open' / 'notes.png').write_text('a text')
        os.mkfifo(roots / 'open' / 'pipe.png')

    @pytest.fixture
    def service(self, furnished: Service) -> Service:
        """A service that may read two directories."""
        return furnished

    @pytest.mark.parametrize(
        'name', ['open/red.png', 'open/sub dir/ü 100%.png', 'second/b.png', 'open/within.png', 'open/../open/red.png']
    )
    def test_a_file_below_a_root_is_read_by_path_and_by_uri(self, service: Service, roots: Path, name: str) -> None:
        expected = service.one('/encode', Document(blob=png('red'))).embedding.tolist()
        path = roots / name
        for uri in (str(path), path.as_uri(), path.as_uri().replace('file://', 'file://localhost', 1)):
            reply = service.one('/index', Document(id=uri, uri=uri))
            assert error_codes([reply]) == {uri: None}
            assert reply.embedding.tolist() == expected
            assert reply.uri == uri

    @pytest.mark.parametrize(
        'name',
        [
            'secret.png',
            'open/../secret.png',
            'open/sub dir/../../secret.png',
            'open/out.png',
            'open/away/secret.png',
            'open-not/near.png',
            'open/missing.png',
            'open',
            'open/pipe.png',
            '../../../../../../etc/passwd',
            'open/red.png\0.png',
        ],
    )
    def test_nothing_else_is_read_whatever_leads_to_it(self, service: Service, roots: Path, name: str) -> None:
        raw = f'{roots}/{name}'
        encoded = 'file://' + raw.replace('../', '%2e%2e/').replace(' ', '%20').replace('\0', '%00')
        good = Document(id='good', uri=str(roots / 'open' / 'red.png'))
        docs = [Document(id='raw', uri=raw), Document(id='file', uri=f'file://{raw}'), Document(id='%', uri=encoded)]
        reply = service.post('/index', [*docs, good])
        refused = 'forbidden-source'
        assert error_codes(reply) == {'raw': refused, 'file': refused, '%': refused, 'good': None}
        assert all(f"'{doc.id}'" in error_of(doc).message for doc in reply[:3])

    def test_what_is_hidden_and_what_does_not_exist_get_the_same_answer(self, service: Service, roots: Path) -> None:
        docs = [Document(id='x', uri=str(roots / name)) for name in ('secret.png', 'nothing.png')]
        hidden, missing = (error_of(service.one('/encode', doc)).message for doc in docs)
        assert hidden.replace('secret', 'nothing') == missing

    def test_a_file_below_a_root_that_is_no_picture_is_not_shown(self, service: Service, roots: Path) -> None:
        error = error_of(service.one('/encode', Document(id='x', uri=str(roots / 'open' / 'notes.png'))))
        assert error.code == 'unsupported-media'
        assert 'a text' not in error.message

    def test_urls_are_still_not_fetched(self, service: Service) -> None:
        assert error_of(service.one('/encode', Document(uri='http://127.0.0.1/a.png'))).code == 'forbidden-source'


class Pickled:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('endpoint', ['/encode', '/index', '/search', '/update', '/delete'])
def test_a_pickle_is_refused_and_not_run(fake: Service, tmp_path: Path, endpoint: str) -> None:
    canary = tmp_path / 'run'
    request = jina_pb2.DataRequestProto()
    request.header.request_id = 'r'
    request.header.exec_endpoint = endpoint
    request.data.docs_bytes = pickle.dumps(Pickled(canary))
    with grpc.insecure_channel(fake.grpc) as channel:
        call = channel.unary_unary('/jina.JinaSingleDataRequestRPC/process_single_data')
        reply = jina_pb2.DataRequestProto.FromString(call(request.SerializeToString(), timeout=60))
    assert reply.header.status.description.startswith('invalid-document: ')
    assert not canary.exists()

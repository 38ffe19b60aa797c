"""Documents that cannot be used: each fails alone, with its code and a sentence that names it."""

import csv
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from docarray import Document, DocumentArray
from PIL import Image

from clipflow import ROOT
from service import Service, error_codes, error_of, png

DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data')) / 'awkward-images'


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are one compressed row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b'')


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape)


BAD: dict[str, tuple[Callable[[], Document], str]] = {
    'nothing at all': (Document, 'invalid-document'),
    'zero bytes': (lambda: Document(blob=b''), 'invalid-document'),
    'an empty text': (lambda: Document(text=''), 'invalid-document'),
    'a text that is called a picture': (lambda: Document(blob=b'just a text', uri='cat.jpg'), 'unsupported-media'),
    'a picture that is cut off': (lambda: Document(blob=png()[:-30]), 'undecodable'),
    'fifty thousand pixels squared': (lambda: Document(blob=_png_header(50_000, 50_000)), 'too-large'),
    'four billion pixels squared': (lambda: Document(blob=_png_header(2**31 - 1, 2**31 - 1)), 'too-large'),
    'more bytes than a picture may have': (lambda: Document(blob=bytes(33 * 2**20)), 'too-large'),
    'a text without end': (lambda: Document(text='w' * 100_001), 'too-large'),
    'a tensor of two axes': (lambda: Document(tensor=_random(8, 8)), 'invalid-document'),
    'a tensor of four channels': (lambda: Document(tensor=np.zeros((8, 8, 4), np.uint8)), 'invalid-document'),
    'channels first': (lambda: Document(tensor=np.zeros((3, 8, 8), np.uint8)), 'invalid-document'),
    'a tensor of no rows': (lambda: Document(tensor=np.zeros((0, 8, 3), np.uint8)), 'invalid-document'),
    'a tensor with NaN': (lambda: Document(tensor=np.full((8, 8, 3), np.nan)), 'invalid-document'),
    'a tensor with infinity': (lambda: Document(tensor=np.full((8, 8, 3), np.inf)), 'invalid-document'),
    'a tensor of floats to 255': (lambda: Document(tensor=_random(8, 8, 3) * 255), 'invalid-document'),
    'a tensor of int64': (lambda: Document(tensor=np.zeros((8, 8, 3), np.int64)), 'invalid-document'),
    'a tensor of texts': (lambda: Document(tensor=np.array([[['a', 'b', 'c']]])), 'invalid-document'),
    'an embedding of another dimension': (lambda: Document(embedding=np.ones(31)), 'dimension-mismatch'),
    'an embedding of one number': (lambda: Document(embedding=np.ones(1)), 'dimension-mismatch'),
    'an embedding of two axes': (lambda: Document(embedding=np.ones((4, 8))), 'invalid-document'),
    'an embedding of zeros': (lambda: Document(embedding=np.zeros(32)), 'invalid-document'),
    'an embedding with NaN': (lambda: Document(embedding=np.full(32, np.nan)), 'invalid-document'),
    'an embedding with infinity': (lambda: Document(embedding=np.full(32, np.inf)), 'invalid-document'),
    'an embedding beyond float32 squared': (lambda: Document(embedding=np.full(32, 1e200)), 'invalid-document'),
    'an embedding of texts': (lambda: Document(embedding=np.array(['a'] * 32)), 'invalid-document'),
    'a bad part': (lambda: _parts(Document(text='a'), Document(blob=b'x')), 'unsupported-media'),
    'an empty part': (lambda: _parts(Document(text='a'), Document()), 'invalid-document'),
    'a part with parts': (lambda: _parts(_parts(Document(text='a'))), 'invalid-document'),
    'parts that cancel out': (lambda: _parts(Document(text='a'), Document(text='a', weight=-1)), 'invalid-document'),
    'a part of another dimension': (
        lambda: _parts(Document(text='a'), Document(embedding=np.ones(7))),
        'dimension-mismatch',
    ),
    'a file': (lambda: Document(uri='file:///etc/passwd'), 'forbidden-source'),
    'a path': (lambda: Document(uri='/etc/passwd'), 'forbidden-source'),
    'a relative path': (lambda: Document(uri='../../etc/passwd'), 'forbidden-source'),
    'a page on this host': (lambda: Document(uri='http://127.0.0.1/a.png'), 'forbidden-source'),
    'a page anywhere': (lambda: Document(uri='https://example.org/a.png'), 'forbidden-source'),
    'another scheme': (lambda: Document(uri='ftp://example.org/a.png'), 'forbidden-source'),
    'a scheme in capitals': (lambda: Document(uri='FILE:///etc/passwd'), 'forbidden-source'),
    'a data URI without comma': (lambda: Document(uri='data:image/png;base64'), 'invalid-document'),
    'a data URI of no base64': (lambda: Document(uri='data:image/png;base64,@@'), 'invalid-document'),
    'a data URI of text': (lambda: Document(uri='data:,just%20text'), 'unsupported-media'),
    'a data URI of nothing': (lambda: Document(uri='data:,'), 'invalid-document'),
}


def _parts(*parts: Document) -> Document:
    return Document(chunks=DocumentArray(parts))


@pytest.mark.parametrize('name', BAD)
def test_a_bad_document_fails_alone_when_it_is_indexed(fake: Service, name: str) -> None:
    make, code = BAD[name]
    bad = make()
    bad.id = 'the bad one'
    reply = fake.post('/index', [Document(id='before', text='a'), bad, Document(id='after', blob=png())])
    assert [doc.id for doc in reply] == ['before', 'the bad one', 'after']
    assert error_codes(reply) == {'before': None, 'the bad one': code, 'after': None}
    assert "'the bad one'" in error_of(reply[1]).message
    assert 'Traceback' not in error_of(reply[1]).message
    assert (reply[1].embedding, reply[1].tensor, reply[1].blob) == (None, None, b'')
    assert fake.stored_ids() == {'before', 'after'}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_query_fails_alone(fake: Service, name: str) -> None:
    make, code = BAD[name]
    bad = make()
    bad.id = 'the bad one'
    fake.post('/index', Document(id='stored', text='a'))
    reply = fake.post('/search', [Document(id='before', text='a'), bad, Document(id='after', text='a')])
    assert error_codes(reply) == {'before': None, 'the bad one': code, 'after': None}
    assert [[match.id for match in doc.matches] for doc in reply] == [['stored'], [], ['stored']]


@pytest.mark.parametrize('name', [name for name in BAD if 'embedding' not in name])
def test_a_bad_document_fails_alone_when_it_is_encoded(fake: Service, name: str) -> None:
    make, code = BAD[name]
    bad = make()
    empty = not (bad.text or bad.blob or bad.uri or bad.chunks or bad.tensor is not None)
    bad.id = 'the bad one'
    reply = fake.post('/encode', [Document(id='before', text='a'), bad, Document(id='after', text='a')])
    assert error_codes(reply) == {'before': None, 'the bad one': None if empty else code, 'after': None}
    assert [doc.embedding is None for doc in reply] == [False, True, False]


def test_a_request_of_only_bad_documents_is_answered_one_by_one(fake: Service) -> None:
    docs = DocumentArray()
    for name, (make, _) in BAD.items():
        docs.append(make())
        docs[-1].id = name
    assert error_codes(fake.post('/index', docs)) == {name: code for name, (_, code) in BAD.items()}
    assert fake.stored_ids() == set()


@pytest.mark.parametrize('weight', [float('nan'), float('inf')])
def test_a_weight_that_is_not_finite_is_the_fault_of_the_document(fake: Service, weight: float) -> None:
    query = _parts(Document(text='a', weight=weight), Document(text='b'))
    assert error_of(fake.one('/search', query)).code == 'invalid-document'


@pytest.mark.parametrize('text', ['word ' * 2000, '猫' * 10_000, '. ' * 50_000])
def test_a_long_text_is_cut_and_says_so(fake: Service, text: str) -> None:
    reply = fake.one('/index', Document(id='long', text=text))
    assert reply.tags['__truncated__'] is True
    match = fake.matches(text, limit=1)[0]
    assert (match.id, match.text, dict(match.tags)) == ('long', text, {})


TEXTS = ('😀', '猫在沙发上', 'قطة', 'e\u0301', '\0', '\u200b', ' ', '\n\t', "'; DROP TABLE", '{}')


@pytest.mark.parametrize('text', TEXTS)
def test_any_text_can_be_stored_and_found(fake: Service, text: str) -> None:
    fake.post('/index', [Document(id='it', text=text), Document(id='other', text='something else')])
    match = fake.matches(text, limit=1)[0]
    assert (match.id, match.text) == ('it', text)


ODD_IDS = (
    '😀', '猫', 'a/b', '../..', "it's", '"quoted"', '\\', ' ', '\n', 'a\0b', '%s', '{0}', '$(x)', '-1', '1.0', 'null',
    "' OR '1'='1", "'); DROP TABLE documents; --", 'x' * 512, '猫' * 170, '__error__',
)  # fmt: skip


def test_every_id_of_up_to_512_bytes_is_kept_as_it_is(fake: Service) -> None:
    reply = fake.post('/index', [Document(id=name, text=f'number {i}') for i, name in enumerate(ODD_IDS)])
    assert error_codes(reply) == dict.fromkeys(ODD_IDS)
    assert fake.stored_ids() == set(ODD_IDS)
    for i, name in enumerate(ODD_IDS):
        assert fake.one('/get', Document(id=name)).text == f'number {i}'
        assert fake.matches(f'number {i}', limit=1)[0].id == name
    for name in ODD_IDS:
        assert fake.post('/delete', Document(id=name))[0].tags['deleted'] == 1
    assert fake.stored_ids() == set()


@pytest.mark.parametrize('name', ['x' * 513, '猫' * 171, 'i' * 2**20])
def test_a_longer_id_is_refused_and_named_by_its_beginning(fake: Service, name: str) -> None:
    reply = fake.post('/index', [Document(id=name, text='x'), Document(id='good', text='y')])
    assert error_codes(reply) == {name: 'invalid-document', 'good': None}
    message = error_of(reply[0]).message
    assert repr(name[:40]) in message
    assert len(message) < 200
    assert fake.stored_ids() == {'good'}


def test_a_document_without_an_id_gets_one_that_the_reply_tells(fake: Service) -> None:
    # Jina's protocol cannot tell an empty id from none, and Jina gives a Document without one its own.
    reply = fake.one('/index', Document(id='', text='x'))
    assert reply.id
    assert fake.stored_ids() == {reply.id}


def test_of_equal_ids_in_one_request_only_the_first_is_taken(fake: Service) -> None:
    docs = [Document(id='a', text='first'), Document(id='b', text='other'), Document(id='a', text='second')]
    reply = fake.post('/index', docs)
    assert [(doc.id, '__error__' in doc.tags) for doc in reply] == [('a', False), ('b', False), ('a', True)]
    assert "'a'" in error_of(reply[2]).message
    assert fake.one('/get', Document(id='a')).text == 'first'
    assert fake.stored_ids() == {'a', 'b'}


def test_equal_ids_of_queries_are_answered_one_by_one(fake: Service) -> None:
    fake.post('/index', [Document(id='a', text='one'), Document(id='b', text='two')])
    reply = fake.post('/search', [Document(id='q', text='one'), Document(id='q', text='two')], {'limit': 1})
    assert [doc.matches[0].id for doc in reply] == ['a', 'b']


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_tags_with_nan_fail_alone(fake: Service, value: float) -> None:
    reply = fake.post('/index', [Document(id='nan', text='x', tags={'n': value}), Document(id='good', text='y')])
    assert error_codes(reply) == {'nan': 'invalid-document', 'good': None}
    assert "'nan'" in error_of(reply[0]).message


def test_tags_with_nan_are_never_stored(fake: Service) -> None:
    reply = fake.request('/index', Document(id='nan', text='x', tags={'n': float('nan')}))
    assert reply.header.status.description.startswith('invalid-document: ') or '__error__' in reply.docs[0].tags
    assert fake.stored_ids() == set()


def test_private_tags_of_a_client_are_dropped_and_mean_nothing(fake: Service) -> None:
    private = {
        '__error__': {'code': 'internal', 'message': 'mine', 'stage': 'mine'},
        '__model__': 'another model',
        '__group__': 'x',
        '__truncated__': True,
        '__mine': 1,
    }
    sent = [
        Document(id='t', text='x', tags={**private, 'kept': 1}),
        Document(id='p', blob=png(), tags=private),
        Document(id='e', embedding=np.ones(32), tags=private),
    ]
    reply = fake.post('/index', sent)
    stored = fake.post('/get', sent)
    for docs in (reply, stored):
        assert [(doc.id, dict(doc.tags)) for doc in docs] == [('t', {'kept': 1}), ('p', {}), ('e', {})]
    for query in sent:
        found = fake.one('/search', query, {'group_by': 'kept', 'limit': 1})
        assert found.matches[0].id == query.id
        assert set(found.tags) <= {'kept'}


def test_private_tags_cannot_be_given_by_an_update(fake: Service) -> None:
    fake.post('/index', Document(id='a', text='x', tags={'n': 1}))
    fake.post('/update', Document(id='a', tags={'__error__': {'code': 'internal'}, 'n': 2}))
    stored = fake.one('/get', Document(id='a'))
    assert dict(stored.tags) == {'n': 2}


def test_private_chunks_of_a_client_are_no_thumbnail(fake: Service) -> None:
    forged = Document(id='a', text='x', chunks=DocumentArray([Document(modality='__thumbnail__', blob=b'forged')]))
    fake.post('/index', forged)
    assert fake.one('/get', Document(id='a'), {'include': ['thumbnail']}).blob == b''


def _awkward() -> tuple[dict[str, bytes], dict[str, str]]:
    """The files and what should become of them: `ok`, or why not."""
    with (DATA / 'table.csv').open(encoding='utf-8', newline='') as table:
        rows = {row['file']: row for row in csv.DictReader(table)}
    with zipfile.ZipFile(DATA / 'awkward-images.zip') as archive:
        names = {Path(name).name: name for name in archive.namelist() if not name.endswith('/')}
        files = {name: archive.read(names[name]) for name in rows}
    outcome = {}
    for name, row in rows.items():
        if row['open'] == 'ok':
            outcome[name] = 'ok' if row['load'] == 'ok' else 'damaged'
        else:
            outcome[name] = 'huge' if row['open'].startswith('DecompressionBomb') else 'no picture'
    return files, outcome


@pytest.mark.skipif(not DATA.exists(), reason=f'the files of awkward-images are not in {DATA} (CLIPFLOW_TEST_DATA)')
def test_all_awkward_files_in_one_request_get_the_outcome_of_their_kind(fake: Service) -> None:
    files, expected = _awkward()
    assert len(files) == 69
    docs = DocumentArray([Document(id=name, blob=content) for name, content in files.items()])
    docs.append(Document(id='good', blob=png()))
    codes = error_codes(fake.post('/index', docs))
    allowed = {
        'ok': {None},
        'damaged': {'undecodable'},
        'huge': {'too-large'},
        'no picture': {'unsupported-media', 'undecodable'},
    }
    wrong = {name: (kind, codes[name]) for name, kind in expected.items() if codes[name] not in allowed[kind]}
    assert wrong == {}
    assert codes['good'] is None
    accepted = {name for name, kind in expected.items() if kind == 'ok'}
    assert len(accepted) == 49
    assert fake.stored_ids() == accepted | {'good'}
    thumbnails = fake.post('/get', None, {'limit': 100, 'include': ['thumbnail']})
    assert {Image.open(io.BytesIO(doc.blob)).format for doc in thumbnails} == {'WEBP'}

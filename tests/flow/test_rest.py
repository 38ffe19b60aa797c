"""`/v1` beyond search and storage: pages, facets, tags, originals, JSON lines, encode, rank, classify, feedback."""

import base64
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service import Service, png


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def noise(size: int) -> bytes:
    """A picture of at least `size` bytes, in rows of three thousand."""
    pixels = np.random.default_rng(1).integers(0, 256, (size // 3000 + 1, 1000, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'BMP')
    return out.getvalue()


@pytest.fixture
def album(http: httpx.Client) -> httpx.Client:
    """Six documents with tags."""
    documents: list[dict[str, Any]] = [
        {'id': f'd{n}', 'text': f'text {n}', 'tags': {'n': n, 'album': 'even' if n % 2 == 0 else 'odd', 'on': n > 3}}
        for n in range(5)
    ]
    documents.append({'id': 'red', 'image': b64(png('red')), 'tags': {'album': 'odd', 'deep': {'a': 1}, 'list': [1]}})
    assert http.post('/v1/documents', json={'documents': documents}).json()['stored'] == 6
    return http


def problem_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()['code']


def test_an_uploaded_picture_is_a_query(album: httpx.Client) -> None:
    asked = {'limit': 1, 'include': ['embedding', 'percentile']}
    form = album.post('/v1/search', files={'image': png('red')}, data={'request': json.dumps(asked)})
    plain = album.post('/v1/search', json={'image': b64(png('red')), **asked})
    assert form.status_code == 200, form.text
    assert form.json() == plain.json()
    (match,) = form.json()['matches']
    assert (match['id'], match['score']) == ('red', pytest.approx(1, abs=1e-5))
    assert np.linalg.norm(match['embedding']) == pytest.approx(1, abs=1e-5)
    assert match['percentile'] == pytest.approx(5 / 6)
    lean = album.post('/v1/search', json={'text': 'x', 'limit': 1}).json()['matches'][0]
    assert set(lean) == {'id', 'score', 'uri', 'text', 'tags'}


@pytest.mark.parametrize(
    ('files', 'data', 'said'),
    [
        ({'other': b'x'}, {}, "field 'image'"),
        ({'image': b'x'}, {'request': '['}, "field 'request'"),
        ({'image': b'x'}, {'request': '{"limit": 0}'}, 'limit'),
        ({'image': b'x'}, {'request': '{"text": "two"}'}, 'exactly one'),
    ],
)
def test_a_bad_form_is_refused_in_a_sentence(
    album: httpx.Client, files: dict[str, bytes], data: dict[str, str], said: str
) -> None:
    reply = album.post('/v1/search', files=files, data=data)
    assert problem_of(reply) == (400, 'invalid-parameter')
    assert said in reply.json()['detail']


def test_a_uri_is_a_query_as_far_as_the_service_allows(album: httpx.Client) -> None:
    uri = 'data:image/png;base64,' + b64(png('red'))
    assert album.post('/v1/search', json={'uri': uri}).json()['matches'][0]['id'] == 'red'
    assert problem_of(album.post('/v1/search', json={'uri': 'http://127.0.0.1/x.png'})) == (403, 'forbidden-source')


def test_documents_come_in_pages_and_by_a_condition(album: httpx.Client) -> None:
    pages = [album.get('/v1/documents', params={'limit': 4, 'offset': at}).json()['documents'] for at in (0, 4)]
    assert [[doc['id'] for doc in page] for page in pages] == [['d0', 'd1', 'd2', 'd3'], ['d4', 'red']]
    odd = album.get('/v1/documents', params={'filter': '{"album": "odd", "n": {"$gt": 1}}'}).json()['documents']
    assert [doc['id'] for doc in odd] == ['d3']
    for wrong in ('[]', '{', '{"a": {"$foo": 1}}'):
        assert problem_of(album.get('/v1/documents', params={'filter': wrong})) == (400, 'invalid-filter')


def test_what_comes_with_a_document_can_be_chosen(album: httpx.Client) -> None:
    several = [('include', 'tags'), ('include', 'embedding')]
    page = album.get('/v1/documents', params=[('limit', '1'), *several]).json()['documents']
    one = album.get('/v1/documents/d0', params=several).json()
    assert page == [one]
    assert one['tags'] == {'n': 0, 'album': 'even', 'on': False}
    assert np.linalg.norm(one['embedding']) == pytest.approx(1, abs=1e-5)
    assert album.get('/v1/documents/d0', params={'include': 'uri'}).json()['tags'] == {}
    for path in ('/v1/documents', '/v1/documents/d0'):
        assert problem_of(album.get(path, params={'include': 'colour'})) == (400, 'invalid-parameter')


def test_facets_count_values_by_their_type(album: httpx.Client) -> None:
    found = album.get('/v1/facets').json()
    assert found['sampled'] is False
    facets = {
        facet['tag']: {(type(v['value']), v['value']): v['count'] for v in facet['values']} for facet in found['facets']
    }
    assert facets['album'] == {(str, 'odd'): 3, (str, 'even'): 3}
    assert facets['on'] == {(bool, True): 1, (bool, False): 4}
    assert facets['n'] == {(int, n): 1 for n in range(5)}
    assert not {'deep', 'list'} & set(facets)
    some = album.get('/v1/facets', params={'filter': '{"album": "even"}', 'limit': 2}).json()['facets']
    assert {facet['tag']: len(facet['values']) for facet in some} == {'album': 1, 'n': 2, 'on': 2}
    assert next(f for f in some if f['tag'] == 'album')['values'] == [{'value': 'even', 'count': 3}]


def test_tags_are_merged(album: httpx.Client) -> None:
    changed = album.patch('/v1/documents/d1', json={'tags': {'n': None, 'new': 'x'}}).json()
    assert changed['tags'] == {'album': 'odd', 'on': False, 'new': 'x'}
    assert album.get('/v1/documents/d1').json() == changed
    assert problem_of(album.patch('/v1/documents/nobody', json={'tags': {}})) == (404, 'not-found')


def test_deletion_needs_a_condition_or_the_word_all(album: httpx.Client) -> None:
    assert problem_of(album.delete('/v1/documents')) == (400, 'invalid-parameter')
    assert problem_of(album.delete('/v1/documents', params={'all': 'true', 'filter': '{}'})) == (
        400,
        'invalid-parameter',
    )
    assert album.delete('/v1/documents', params={'filter': '{"album": "even"}'}).json() == {'deleted': 3}
    assert album.delete('/v1/documents', params={'all': 'true'}).json() == {'deleted': 3}
    assert album.get('/v1/documents').json() == {'documents': []}


def test_lines_are_stored_as_they_come_and_answered_line_by_line(album: httpx.Client) -> None:
    lines = [json.dumps({'id': f'l{n}', 'text': f'line {n}'}) for n in range(100)]
    lines[7] = '{"id": "l7", "image": "????"}'
    lines[9] = 'no json'
    lines[11] = '{"id": "l11", "colour": 1}'
    kind = {'Content-Type': 'application/x-ndjson'}
    reply = album.post('/v1/documents', content='\n'.join(lines).encode(), headers=kind)
    assert (reply.status_code, reply.headers['content-type']) == (200, 'application/x-ndjson')
    outcomes = [json.loads(line) for line in reply.text.splitlines()]
    assert len(outcomes) == 100
    failed = {n: outcome['error']['code'] for n, outcome in enumerate(outcomes) if outcome['error']}
    assert failed == {7: 'invalid-document', 9: 'invalid-parameter', 11: 'invalid-parameter'}
    assert [o['id'] for n, o in enumerate(outcomes) if n not in failed] == [
        f'l{n}' for n in range(100) if n not in failed
    ]
    stored = album.get('/v1/documents', params={'limit': 1000}).json()['documents']
    assert len(stored) == 6 + 97


def test_lines_that_are_large_together_are_stored_all_the_same(album: httpx.Client) -> None:
    # Thirty-two of them would be more than one request may have.
    picture = b64(noise(1_700_000))
    lines = [json.dumps({'id': f'p{n}', 'image': picture}) for n in range(40)]
    assert len(lines[0]) * 32 > 64 * 2**20
    kind = {'Content-Type': 'application/x-ndjson'}
    reply = album.post('/v1/documents', content='\n'.join(lines).encode(), headers=kind)
    assert [json.loads(line) for line in reply.text.splitlines()] == [{'id': f'p{n}', 'error': None} for n in range(40)]


def test_the_first_lines_are_answered_before_the_last_have_come(fake: Service) -> None:
    seen: list[int] = []

    def body() -> Iterator[bytes]:
        for n in range(64):
            yield json.dumps({'id': f'l{n}', 'text': f'line {n}'}).encode() + b'\n'
        # Here the client waits until half of the answers are there: without streaming it would wait for ever.
        while not fake.stored_ids() >= {f'l{n}' for n in range(32)}:
            seen.append(1)
        yield b'{"id": "last", "text": "last"}\n'

    with httpx.Client(base_url=fake.http, timeout=120, trust_env=False) as client:
        reply = client.post('/v1/documents', content=body(), headers={'Content-Type': 'application/x-ndjson'})
    assert [json.loads(line)['error'] for line in reply.text.splitlines()] == [None] * 65


def test_inputs_are_encoded_each_for_itself(album: httpx.Client) -> None:
    inputs = [{'text': 'text 1'}, {'image': b64(png('red'))}, {'image': b64(b'no picture')}, {'id': 'red'}, {'id': '?'}]
    items = album.post('/v1/encode', json={'inputs': inputs}).json()['items']
    codes = [item['error'] and item['error']['code'] for item in items]
    assert codes == [None, None, 'unsupported-media', None, 'not-found']
    assert items[2]['embedding'] is None
    np.testing.assert_allclose(items[1]['embedding'], items[3]['embedding'], atol=1e-6)
    found = album.post('/v1/search', json={'embedding': items[0]['embedding'], 'limit': 1}).json()['matches']
    assert (found[0]['id'], found[0]['score']) == ('d1', pytest.approx(1, abs=1e-5))


def test_a_text_that_cannot_be_sent_fails_alone(album: httpx.Client) -> None:
    inputs = [{'text': '\ud800'}, {'text': 'text 1'}, {'id': '\ud800'}, {'id': 'red'}]
    json_kind = {'Content-Type': 'application/json'}
    reply = album.post('/v1/encode', content=json.dumps({'inputs': inputs}), headers=json_kind)
    codes = [item['error'] and item['error']['code'] for item in reply.json()['items']]
    assert codes == ['invalid-document', None, 'not-found', None]


def test_a_file_that_is_empty_fails_alone(album: httpx.Client) -> None:
    files = [('files', ('empty.png', b'')), ('files', ('red.png', png('red')))]
    found = album.post('/v1/documents', files=files).json()
    assert found['stored'] == 1
    assert found['documents'][0]['error'] == {'code': 'invalid-document', 'detail': "'empty.png': the file is empty"}


def test_candidates_are_put_into_order(album: httpx.Client) -> None:
    candidates = [{'text': 'far'}, {'image': 'AAAA'}, {'text': 'text 1'}, {'id': 'nobody'}]
    found = album.post('/v1/rank', json={'query': {'text': 'text 1'}, 'candidates': candidates}).json()['candidates']
    assert found[0]['index'] == 2
    assert found[0]['cosine'] == pytest.approx(1, abs=1e-5)
    assert found[0]['score'] + found[1]['score'] == pytest.approx(1)
    assert {item['index']: item['error']['code'] for item in found if item['error']} == {
        1: 'unsupported-media',
        3: 'not-found',
    }


def test_inputs_are_classified(album: httpx.Client) -> None:
    body = {'inputs': [{'text': 'text 1'}, {'id': 'red'}, {'text': ''}], 'labels': ['text 1', 'other']}
    items = album.post('/v1/classify', json=body).json()['items']
    assert items[0]['label'] == 'text 1'
    assert sum(items[1]['probabilities'].values()) == pytest.approx(1, abs=1e-5)
    assert (items[2]['label'], items[2]['error']['code']) == (None, 'invalid-document')
    assert problem_of(album.post('/v1/classify', json=body | {'labels': ['one']})) == (400, 'invalid-parameter')


def test_feedback_is_on_disk_when_it_is_acknowledged(album: httpx.Client, fake: Service) -> None:
    query = {'query': [{'text': 'text 1'}, {'id': 'red', 'weight': -0.5}]}
    body = {'query': query, 'shown': ['d1', 'd2', 'red'], 'clicked': ['d2'], 'disliked': ['red'], 'user': 'u1'}
    assert album.post('/v1/feedback', json=body).json() == {'stored': 1}
    body = {'query': {'text': 'text 2'}, 'shown': ['d2'], 'clicked': ['d2']}
    assert album.post('/v1/feedback', json=body).json() == {'stored': 1}
    with sqlite3.connect(Path(fake.workspace, 'feedback', '0.db')) as db:
        rows = db.execute(
            'SELECT user, text, shown, clicked, disliked, length(vector) FROM feedback ORDER BY number DESC LIMIT 2'
        ).fetchall()
    assert rows == [
        ('', 'text 2', '["d2"]', '["d2"]', '[]', 4 * 32),
        ('u1', '', '["d1", "d2", "red"]', '["d2"]', '["red"]', 4 * 32),
    ]
    for wrong in ({'clicked': ['other']}, {'clicked': []}):
        assert problem_of(album.post('/v1/feedback', json=body | wrong)) == (400, 'invalid-parameter')


def test_originals_come_from_opened_folders_only(tmp_path: Path) -> None:
    folder = tmp_path / 'files'
    folder.mkdir()
    (folder / 'red.png').write_bytes(png('red'))
    (folder / 'page.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>')
    (tmp_path / 'secret.png').write_bytes(png('blue'))
    with (
        Service(tmp_path / 'workspace', {'RUNTIME': 'fake', 'FILE_ROOTS': str(folder)}) as running,
        httpx.Client(base_url=running.http, timeout=60, trust_env=False) as client,
    ):
        documents = [
            {'id': 'in', 'uri': (folder / 'red.png').as_uri()},
            {'id': 'svg', 'text': 'x', 'uri': (folder / 'page.svg').as_uri()},
            {'id': 'out', 'text': 'x', 'uri': (tmp_path / 'secret.png').as_uri()},
            {'id': 'up', 'text': 'x', 'uri': f'{folder}/../secret.png'},
            {'id': 'web', 'text': 'x', 'uri': 'http://127.0.0.1:1/x.png'},
            {'id': 'none', 'text': 'x'},
        ]
        assert client.post('/v1/documents', json={'documents': documents}).json()['stored'] == 6
        inside = client.get('/v1/originals/in')
        assert (inside.content, inside.headers['content-type']) == (png('red'), 'image/png')
        assert client.get('/v1/originals/svg').headers['content-type'] == 'application/octet-stream'
        refused = {name: problem_of(client.get(f'/v1/originals/{name}')) for name in ('out', 'up', 'web', 'none')}
        assert refused == {
            'out': (403, 'forbidden-source'),
            'up': (403, 'forbidden-source'),
            'web': (403, 'forbidden-source'),
            'none': (404, 'not-found'),
        }

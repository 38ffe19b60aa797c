"""clip-retrieval's API: its own published ClipClient, and what its front end sends."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from docarray import Document

from environments import clip_retrieval
from service import Lives, Service, png

# The package loads torch and FAISS when it is imported; its client is a module that needs neither.
SCRIPT = """
import importlib.util, json, sys, types
package = types.ModuleType('clip_retrieval')
package.__path__ = list(importlib.util.find_spec('clip_retrieval').submodule_search_locations)
sys.modules['clip_retrieval'] = package
from clip_retrieval.clip_client import ClipClient, Modality

url, cat, vector = sys.argv[1:]
plain = ClipClient(url=url, indice_name='laion5B')
few = ClipClient(url, 'any', use_mclip=True, modality=Modality.TEXT, num_images=2, deduplicate=False)
print(json.dumps({
    'text': plain.query(text='a cup of coffee'),
    'image': plain.query(image=cat),
    'embedding': few.query(embedding_input=json.loads(vector)),
    'refused': plain.query(image='http://127.0.0.1:9/cat.jpg'),
}))
"""


@pytest.fixture(scope='module')
def python() -> Path:
    """An interpreter with clip-retrieval 2.45.0 in it."""
    return clip_retrieval()


def knn(http: httpx.Client, **asked: Any) -> Any:
    """`/knn-service` as browsers and ClipClient send it: JSON that is not called so."""
    reply = http.post('/knn-service', content=json.dumps(asked).encode(), headers={'Content-Type': 'text/plain'})
    assert reply.status_code == 200, reply.text
    return reply.json()


def metadata(http: httpx.Client, *ids: Any) -> Any:
    reply = http.post('/metadata', content=json.dumps({'ids': ids, 'indice_name': None}).encode())
    assert reply.status_code == 200, reply.text
    return reply.json()


def problem_of(reply: httpx.Response) -> tuple[int, int, str]:
    return reply.status_code, reply.json()['status'], reply.json()['code']


def test_the_published_client_searches_by_text_picture_and_vector(
    python: Path, model_service: Service, photographs: Path
) -> None:
    names = {'cat': 'chelsea.png', 'twin': 'chelsea.png', 'coffee': 'coffee.png', 'rocket': 'rocket.jpg'}
    model_service.post('/clear')
    stored = model_service.post(
        '/index',
        [
            Document(
                id=name,
                blob=(photographs / file).read_bytes(),
                uri=f'https://example.org/{file}',
                tags={'caption': f'this is {name}', 'NSFW': 'UNLIKELY', 'id': 'theirs', 'similarity': 7},
            )
            for name, file in names.items()
        ],
    )
    vector = json.dumps([3 * float(x) for x in stored[3].embedding])
    url = f'{model_service.http}/knn-service'
    run = subprocess.run(
        [str(python), '-c', SCRIPT, url, str(photographs / 'chelsea.png'), vector],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)

    best = told['text'][0]
    assert (best['url'], best['caption']) == ('https://example.org/coffee.png', 'this is coffee')
    assert isinstance(best['id'], int)
    assert best['NSFW'] == 'UNLIKELY'
    assert base64.b64decode(best['image'])[8:12] == b'WEBP'
    by_text = model_service.matches('a cup of coffee', limit=1)[0]
    assert best['similarity'] == pytest.approx(by_text.scores['cosine'].value, abs=1e-6)
    # The client drops near-duplicates by default: of the cat and its twin one is left.
    assert len(told['text']) == len(told['image']) == 3
    assert told['image'][0]['similarity'] == pytest.approx(1, abs=1e-4)
    assert told['image'][0]['caption'] in ('this is cat', 'this is twin')
    assert told['embedding'][0]['caption'] == 'this is rocket'
    assert told['embedding'][0]['similarity'] == pytest.approx(1, abs=1e-5)
    assert len(told['embedding']) == 2
    assert told['refused']['code'] == 'forbidden-source'


@pytest.fixture
def many(http: httpx.Client) -> httpx.Client:
    """Sixty texts and a picture."""
    documents: list[dict[str, Any]] = [
        {'id': f'd{n}', 'text': f'text {n}', 'uri': f'https://example.org/{n}', 'tags': {'n': n}} for n in range(60)
    ]
    documents.append({'id': 'red', 'image': base64.b64encode(png('red')).decode(), 'uri': '/photos/red.png'})
    assert http.post('/v1/documents', json={'documents': documents}).json()['stored'] == 61
    return http


def test_what_the_front_end_sends_is_answered_and_can_be_scrolled(many: httpx.Client) -> None:
    front = many.get('/config.json').json()
    back = str(many.base_url).rstrip('/')
    assert front == {'defaultBackend': back, 'defaultIndex': 'clipflow', 'urlColumn': 'url'}
    assert many.get('/indices-list').json() == ['clipflow']
    found = knn(
        many,
        text='text 7',
        image=None,
        image_url=None,
        embedding_input=None,
        modality='image',
        num_images=40,
        indice_name=front['defaultIndex'],
        num_result_ids=3000,
        use_mclip=False,
        deduplicate=False,
        use_safety_model=True,
        use_violence_detector=True,
        aesthetic_score='',
        aesthetic_weight='0.5',
    )
    assert len(found) == 61
    scores = [item['similarity'] for item in found]
    assert scores == sorted(scores, reverse=True)
    assert (found[0]['caption'], found[0]['url'], found[0]['n']) == ('text 7', 'https://example.org/7', 7)
    assert found[0]['similarity'] == pytest.approx(1, abs=1e-5)
    assert [set(item) == {'id', 'similarity'} for item in found] == [False] * 40 + [True] * 21
    # Its JSON parser makes texts of numbers with many digits.
    rest = metadata(many, *(str(item['id']) for item in found[40:]))
    assert [item['id'] for item in rest] == [item['id'] for item in found[40:]]
    shown = [*found[:40], *(item['metadata'] for item in rest)]
    assert {item['n'] for item in shown if 'n' in item} == set(range(60))
    (red,) = [item for item in shown if 'n' not in item]
    assert red['image_path'] == '/photos/red.png'
    assert not {'url', 'caption'} & set(red)
    # A click on a picture searches by what was shown.
    again = knn(many, image=red['image'], num_images=1)
    assert [item['image_path'] for item in again] == ['/photos/red.png']


def test_what_is_absent_or_null_has_its_default(many: httpx.Client) -> None:
    names = ('image', 'image_url', 'embedding_input', 'modality', 'num_images', 'num_result_ids', 'indice_name')
    rest = ('use_mclip', 'deduplicate', 'use_safety_model', 'aesthetic_score', 'aesthetic_weight', 'unheard_of')
    nulls = knn(many, text='text 3', **dict.fromkeys((*names, *rest)))
    assert nulls == knn(many, text='text 3')
    assert len(nulls) == 40
    assert all('caption' in item or 'image' in item for item in nulls)
    assert knn(many, text='', embedding_input=[1.0] * 32, num_images=2) == knn(
        many, embedding_input=[2] * 32, num_images=2
    )


def test_numbers_of_any_size_are_taken(many: httpx.Client) -> None:
    assert len(knn(many, text='x', num_images=10**30, num_result_ids=10**25)) == 61
    assert [len(knn(many, text='x', num_images=a, num_result_ids=b)) for a, b in ((0, None), (5, 0), (5, 3))] == [
        0,
        0,
        3,
    ]
    (known,) = knn(many, text='text 1', num_images=1)
    found = metadata(many, 2**53, known['id'], str(2**70), -1, '9' * 30, f'{known["id"]}')
    assert [item['id'] for item in found] == [known['id']] * 2
    assert found[0]['metadata']['caption'] == 'text 1'
    assert metadata(many) == []


@pytest.mark.parametrize(
    ('path', 'body', 'status', 'code'),
    [
        ('/knn-service', b'{}', 400, 'invalid-parameter'),
        ('/knn-service', b'{"text": "", "image": null, "modality": "image"}', 400, 'invalid-parameter'),
        ('/knn-service', b'', 400, 'invalid-parameter'),
        ('/knn-service', b'[1]', 400, 'invalid-parameter'),
        ('/knn-service', b'{"text": "x", "num_images": -1}', 400, 'invalid-parameter'),
        ('/knn-service', b'{"text": "x", "num_images": "many"}', 400, 'invalid-parameter'),
        ('/knn-service', b'{"image": "????"}', 400, 'invalid-document'),
        ('/knn-service', b'{"image": "AAAA"}', 415, 'unsupported-media'),
        ('/knn-service', b'{"embedding_input": [1, 2]}', 409, 'dimension-mismatch'),
        ('/knn-service', b'{"embedding_input": []}', 400, 'invalid-parameter'),
        ('/knn-service', b'{"image_url": "http://127.0.0.1:9/x.png"}', 403, 'forbidden-source'),
        ('/knn-service', b'{"image_url": "file:///etc/passwd"}', 403, 'forbidden-source'),
        ('/metadata', b'{}', 400, 'invalid-parameter'),
        ('/metadata', b'{"ids": ["x"]}', 400, 'invalid-parameter'),
        ('/metadata', b'{"ids": 1}', 400, 'invalid-parameter'),
    ],
)
def test_what_cannot_be_answered_is_a_problem_document(
    http: httpx.Client, path: str, body: bytes, status: int, code: str
) -> None:
    assert problem_of(http.post(path, content=body)) == (status, status, code)


def test_near_duplicates_are_those_of_a_cosine_of_094(http: httpx.Client) -> None:
    def at(cosine: float, axis: int) -> list[float]:
        vector = np.zeros(32)
        vector[0], vector[axis] = cosine, np.sqrt(1 - cosine**2)
        return [float(x) for x in vector]

    vectors = {'first': at(1, 1), 'near': at(0.95, 2), 'far': at(0.93, 3)}
    documents = [{'id': name, 'text': name, 'embedding': vector} for name, vector in vectors.items()]
    assert http.post('/v1/documents', json={'documents': documents}).json()['stored'] == 3
    asked = {'embedding_input': vectors['first'], 'num_images': 10}
    assert [item['caption'] for item in knn(http, **asked)] == ['first', 'near', 'far']
    assert [item['caption'] for item in knn(http, **asked, deduplicate=True)] == ['first', 'far']


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    with Lives(tmp_path) as lives:
        yield lives


def test_ids_stay_those_of_their_documents(lives: Lives) -> None:
    def opened() -> httpx.Client:
        return httpx.Client(base_url=lives.service().http, timeout=60, trust_env=False)

    with opened() as http:
        assert http.get('/metrics-summary').text == 'No request yet, go do some'
        documents = [{'id': f'd{n}', 'text': f'text {n}'} for n in range(4)]
        http.post('/v1/documents', json={'documents': documents}).raise_for_status()
        ids = {item['caption']: item['id'] for item in knn(http, text='x')}
        assert len(set(ids.values())) == 4
        for name in ('d0', 'd3'):
            http.delete(f'/v1/documents/{name}').raise_for_status()
        new = [{'id': 'd2', 'text': 'replaced'}, {'id': 'new', 'text': 'new'}]
        http.post('/v1/documents', json={'documents': new}).raise_for_status()
    lives.service().stop()
    with opened() as http:
        captions = {item['id']: item['metadata']['caption'] for item in metadata(http, *ids.values())}
        assert captions == {ids['text 1']: 'text 1', ids['text 2']: 'replaced'}
        (new_id,) = {item['id'] for item in knn(http, text='new')} - set(captions)
        assert new_id not in ids.values()


def test_the_summary_tells_what_took_how_long(many: httpx.Client) -> None:
    for _ in range(2):
        knn(many, text='x')
    reply = many.get('/metrics-summary')
    assert reply.headers['content-type'].startswith('text/plain')
    first, _, header, *rows = reply.text.splitlines()
    calls = int(first.split()[1])
    assert calls >= 2
    assert header.split() == ['name', 'description', 'calls', 'average', 'proportion']
    assert {row.split()[0] for row in rows} == {'knn_index_time', 'metadata_get_time'}
    knn(many, text='x')
    assert int(many.get('/metrics-summary').text.split()[1]) == calls + 1
    for row in rows:
        *_, count, average, share = row.split()
        assert int(count) > 0
        assert float(average.rstrip('s')) > 0
        assert float(share.rstrip('%')) > 0

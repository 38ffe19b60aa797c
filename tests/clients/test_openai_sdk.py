"""OpenAI's embeddings API: as it is on the wire, and the published SDK in an environment of its own."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from environments import environment
from forms import long
from service import Service, png

REQUIREMENTS = Path(__file__).with_name('openai_requirements.txt')
SCRIPT = """
import base64, json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1] + '/v1', api_key='none', max_retries=0)
cat, coffee = (base64.b64encode(open(path, 'rb').read()).decode() for path in sys.argv[2:])

def vectors(inputs, **options):
    reply = client.embeddings.create(input=inputs, model='clip-mini', **options)
    assert [item.index for item in reply.data] == list(range(len(reply.data)))
    return [item.embedding for item in reply.data]

def raised(call):
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.message]

def embed(**asked):
    return lambda: client.embeddings.create(**{'input': 'x', 'model': 'clipflow', **asked})

inputs = ['a cat', 'a cup of coffee', 'data:image/png;base64,' + cat, {'image': coffee}]
print(json.dumps({
    'models': [[model.id, model.object] for model in client.models.list()],
    'default': vectors(inputs),
    'float': vectors(inputs, encoding_format='float'),
    'base64': vectors('a cat', encoding_format='base64'),
    'usage': client.embeddings.create(input='x', model='clipflow').usage.total_tokens,
    'errors': [
        raised(embed(input=['x', ''])),
        raised(embed(model='text-embedding-3-small')),
        raised(embed(input=[[1, 2], [3]])),
        raised(embed(input='data:image/png;base64,AAAA')),
        raised(embed(input=[{'type': 'image_url', 'image_url': {'url': 'http://127.0.0.1:9/x.png'}}])),
        raised(embed(dimensions=7)),
    ],
}))
"""


@pytest.fixture(scope='module')
def python() -> Path:
    """An interpreter with the SDK."""
    return environment('openai', REQUIREMENTS)


@long
def test_the_published_sdk_gets_embeddings_models_and_errors(
    python: Path, model_service: Service, photographs: Path
) -> None:
    pictures = [str(photographs / name) for name in ('chelsea.png', 'coffee.png')]
    run = subprocess.run(
        [str(python), '-c', SCRIPT, model_service.http, *pictures],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    assert told['models'] == [['clip-mini', 'model']]
    # The SDK asks for base64 by itself where no format is named, and decodes it.
    np.testing.assert_array_equal(np.float32(told['default']), np.float32(told['float']))
    cat, coffee, cat_picture, coffee_picture = np.array(told['default'])
    np.testing.assert_allclose([np.linalg.norm(row) for row in told['default']], 1, atol=1e-5)
    assert cat @ cat_picture > cat @ coffee_picture
    assert coffee @ coffee_picture > coffee @ cat_picture
    assert np.frombuffer(base64.b64decode(told['base64'][0]), '<f4') == pytest.approx(cat, abs=1e-6)
    assert told['usage'] == 0
    assert [error[:3] for error in told['errors']] == [
        ['BadRequestError', 400, 'invalid-parameter'],
        ['NotFoundError', 404, 'not-found'],
        ['BadRequestError', 400, 'invalid-parameter'],
        ['APIStatusError', 415, 'unsupported-media'],
        ['PermissionDeniedError', 403, 'forbidden-source'],
        ['BadRequestError', 400, 'invalid-parameter'],
    ]
    assert 'input[1]' in told['errors'][0][3]
    assert "'clip-mini', not 'text-embedding-3-small'" in told['errors'][1][3]


def embedded(http: httpx.Client, **asked: Any) -> list[Any]:
    """The embeddings of a reply, in their order."""
    reply = http.post('/v1/embeddings', json=asked)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body['object'] == 'list'
    assert body['usage'] == {'prompt_tokens': 0, 'total_tokens': 0}
    assert [item['index'] for item in body['data']] == list(range(len(body['data'])))
    return [item['embedding'] for item in body['data']]


def test_both_formats_hold_the_vectors_of_our_own_route(http: httpx.Client) -> None:
    picture = base64.b64encode(png('red')).decode()
    inputs = {'inputs': [{'text': 'a cat'}, {'image': picture}]}
    expected = [item['embedding'] for item in http.post('/v1/encode', json=inputs).json()['items']]
    asked = ['a cat', f'data:image/png;base64,{picture}']
    floats = embedded(http, input=asked, model='clipflow', encoding_format='float', dimensions=32, user='eva')
    assert floats == expected
    packed = embedded(http, input=asked, encoding_format='base64')
    found = [np.frombuffer(base64.b64decode(text), '<f4') for text in packed]
    np.testing.assert_array_equal(np.array(found), np.float32(expected))


def test_a_text_or_a_picture_may_be_given_in_many_ways(http: httpx.Client) -> None:
    picture = base64.b64encode(png('red')).decode()
    uri = f'data:image/png;base64,{picture}'
    pictures = [uri, {'image': picture}, {'image': uri}, {'image_url': uri}]
    pictures.append({'type': 'image_url', 'image_url': {'url': uri, 'detail': 'low'}})
    pictures += [
        uri.replace('png;', 'png;charset=utf-8;'),
        uri.replace('data:image/png', 'data:image/png;name=a b.png'),
    ]
    one = embedded(http, input=uri)[0]
    assert embedded(http, input=pictures) == [one] * 7
    texts = ['a cat', {'text': 'a cat'}, {'type': 'text', 'text': 'a cat'}]
    assert embedded(http, input=texts) == embedded(http, input='a cat') * 3
    assert embedded(http, input={'text': 'a cat'}) == embedded(http, input='a cat')
    # A sentence that only begins like a URI is a sentence.
    assert embedded(http, input='data: a cat') != embedded(http, input='a cat')


def test_many_inputs_keep_their_order(http: httpx.Client) -> None:
    found = embedded(http, input=[f'text {n}' for n in range(300)])
    assert len({json.dumps(vector) for vector in found}) == 300
    for n in (0, 127, 128, 299):
        assert found[n] == embedded(http, input=f'text {n}')[0]


@pytest.mark.parametrize(
    ('asked', 'status', 'code', 'said'),
    [
        ({'input': ['x', '']}, 400, 'invalid-parameter', 'input[1]'),
        ({'input': [1, 2, 3]}, 400, 'invalid-parameter', 'tokens'),
        ({'input': [[1, 2], [3]]}, 400, 'invalid-parameter', 'tokens'),
        ({'input': []}, 400, 'invalid-parameter', '1 to 2,048'),
        ({'input': ['x'] * 2049}, 400, 'invalid-parameter', '1 to 2,048'),
        ({'input': None}, 400, 'invalid-parameter', 'input[0]'),
        ({'input': [{'text': 'x', 'image': 'AAAA'}]}, 400, 'invalid-parameter', 'input[0]'),
        ({'input': [{'image_url': {'href': 'x'}}]}, 400, 'invalid-parameter', 'image_url'),
        ({'model': 'clipflow'}, 400, 'invalid-parameter', 'input'),
        ({'input': 'x', 'encoding_format': 'hex'}, 400, 'invalid-parameter', 'encoding_format'),
        ({'input': 'x', 'dimension': 32}, 400, 'invalid-parameter', 'dimension'),
        ({'input': 'x', 'dimensions': 16}, 400, 'invalid-parameter', '32 dimensions, not 16'),
        ({'input': 'x', 'model': 'text-embedding-3-small'}, 404, 'not-found', 'text-embedding-3-small'),
        ({'input': ['x', 'y', {'image': '????'}]}, 400, 'invalid-document', 'input[2]: the image'),
        ({'input': ['x', {'image': 'AAAA'}]}, 415, 'unsupported-media', 'input[1]: the content'),
        ({'input': [{'image_url': 'http://127.0.0.1:9/x.png'}]}, 403, 'forbidden-source', 'input[0]'),
        ({'input': ['x', 'half \ud800']}, 400, 'invalid-', ''),
    ],
)
def test_one_bad_input_fails_the_request_with_a_sentence(
    http: httpx.Client, asked: dict[str, Any], status: int, code: str, said: str
) -> None:
    reply = http.post('/v1/embeddings', content=json.dumps(asked).encode())
    assert reply.status_code == status, reply.text
    error = reply.json()['error']
    assert set(error) == {'message', 'type', 'param', 'code'}
    assert (error['type'], error['param']) == ('invalid_request_error', None)
    assert error['code'].startswith(code)
    assert said in error['message']


def test_the_model_is_listed_and_may_be_named(http: httpx.Client) -> None:
    listed = http.get('/v1/models').json()
    assert listed['object'] == 'list'
    (model,) = listed['data']
    assert (model['object'], type(model['created'])) == ('model', int)
    reply = http.post('/v1/embeddings', json={'input': 'x', 'model': model['id']}).json()
    assert reply['model'] == model['id']
    assert [item['embedding'] for item in reply['data']] == embedded(http, input='x', model='')


def test_an_index_that_is_asked_nothing_says_so_in_the_shape_of_openai(http: httpx.Client) -> None:
    reply = http.post('/v1/embeddings', content=b'no json')
    assert (reply.status_code, reply.json()['error']['code']) == (400, 'invalid-parameter')

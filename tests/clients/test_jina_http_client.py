"""jina.Client(protocol='http') in an environment of its own, against `POST /post`."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments import environment
from forms import long
from local_service import LocalService

pytestmark = long

REQUIREMENTS = Path(__file__).with_name('jina_http_requirements.txt')
SCRIPT = """
import json, sys, warnings
warnings.filterwarnings('ignore')
from jina import Client, Document, DocumentArray
client = Client(host=sys.argv[1])
blobs = [open(path, 'rb').read() for path in sys.argv[2:]]
pictures = [Document(id=f'p{i}', blob=blob, tags={'place': i}) for i, blob in enumerate(blobs)]
stored = client.post('/index', DocumentArray(pictures))
found = client.post('/search', DocumentArray([Document(blob=pictures[1].blob)]), parameters={'limit': 2})
encoded = client.post('/encode', DocumentArray([Document(text='a cat')]))
try:
    client.post('/serch', DocumentArray([Document(text='a cat')]))
    refused = ''
except Exception as error:
    refused = str(error)
print(json.dumps({
    'stored': [doc.id for doc in stored],
    'found': [[match.id, match.scores['cosine'].value, match.tags] for match in found[0].matches],
    'length': float((encoded[0].embedding ** 2).sum()),
    'refused': refused,
}))
"""


@pytest.fixture(scope='module')
def python() -> Path:
    """An interpreter with pydantic 1."""
    return environment('jina-http', REQUIREMENTS)


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service with the fake session."""
    with LocalService(tmp_path_factory.mktemp('jina-http'), {'RUNTIME': 'fake'}) as running:
        yield running


def test_jinas_http_client_indexes_searches_encodes_and_sees_errors(
    python: Path, service: LocalService, tmp_path: Path
) -> None:
    from PIL import Image

    paths = []
    for name, colour in (('red', (200, 20, 20)), ('green', (20, 200, 20)), ('blue', (20, 20, 200))):
        Image.new('RGB', (64, 48), colour).save(tmp_path / f'{name}.png')
        paths.append(str(tmp_path / f'{name}.png'))
    run = subprocess.run(
        [str(python), '-c', SCRIPT, service.http, *paths], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.strip().splitlines()[-1])
    assert told['stored'] == ['p0', 'p1', 'p2']
    assert told['found'][0][0] == 'p1'
    assert told['found'][0][1] == pytest.approx(1, abs=1e-5)
    assert told['found'][0][2] == {'place': 1}
    assert told['length'] == pytest.approx(1, abs=1e-5)
    assert '/serch' in told['refused']

"""`clipflow evaluate --host`: a running service is measured as its own answers are."""

import json
from pathlib import Path

import numpy as np
import pytest
from docarray import Document
from PIL import Image

from clipflow.cli import main
from service import Service


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Forty pictures with a caption each."""
    (tmp_path / 'images').mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{number}.png')
        rows.append({'image': f'{number}.png', 'caption': f'picture {number}'})
    (tmp_path / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return tmp_path / 'captions.jsonl'


def measured(out: Path) -> dict[str, object]:
    """The first direction."""
    found: dict[str, object] = json.loads((out / 'evaluation.json').read_text(encoding='utf-8'))['measured'][0]
    return found


def test_a_service_is_as_good_as_its_model(
    fake: Service,
    captions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv('CLIPFLOW_CACHE', str(tmp_path / 'cache'))
    ours = ['evaluate', str(captions), '--quiet', '--template', 'a photo of {}', '--out']
    assert main.main([*ours, str(tmp_path / 'model'), '--runtime', 'fake']) == 0
    files = sorted((tmp_path / 'images').iterdir())
    # By a path, by the bare name and by its stem.
    ids = [(str(file), file.name, file.stem)[number % 3] for number, file in enumerate(files)]
    fake.post('/index', [Document(id=name, blob=file.read_bytes()) for name, file in zip(ids, files, strict=True)])
    capsys.readouterr()
    assert main.main([*ours, str(tmp_path / 'service'), '--host', fake.grpc]) == 0
    assert '**text to image**: 40 queries, 40 items' in capsys.readouterr().out
    assert measured(tmp_path / 'service') == measured(tmp_path / 'model')

    told = json.loads((tmp_path / 'service' / 'evaluation.json').read_text(encoding='utf-8'))['systems'][0]
    assert (told['service'], told['runtime']) == (fake.grpc, 'fake')

    # A document more, one less, and one whose name is no longer its own.
    other = Document(id='other.png', text='picture 7')
    fake.post('/index', [other, Document(id=f'elsewhere/{files[1].name}', blob=files[1].read_bytes())])
    fake.post('/delete', Document(id=ids[0]))
    assert main.main([*ours, str(tmp_path / 'changed'), '--host', fake.grpc]) == 0
    said = capsys.readouterr()
    assert '**text to image**: 38 queries, 41 items' in said.out
    assert f'{files[0].name}: is not in the service' in said.err
    assert f'{files[1].name}: 2 documents have this name' in said.err


def test_a_service_without_the_pictures_says_so(
    fake: Service, captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.post('/index', Document(id='other', text='x'))
    assert main.main(['evaluate', str(captions), '--quiet', '--host', fake.grpc]) == 1
    assert 'none of the 40 pictures is among the 1 documents of the service' in capsys.readouterr().err

"""Pictures with captions for a model without weights, whose vectors are kept in a directory of the test."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CLIPFLOW_CACHE; the runtime is `fake`."""
    monkeypatch.setenv('CLIPFLOW_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    return tmp_path / 'cache'


def paint(folder: Path, names: list[str], seed: int = 0) -> None:
    """Small pictures of random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Eighty pictures with two captions each, in `captions.jsonl`; the last but one is damaged."""
    names = [f'{number:02}.png' for number in range(80)]
    paint(tmp_path / 'images', names)
    (tmp_path / 'images' / '78.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    rows = [{'file': name, 'captions': [f'picture {name}', f'again {name}']} for name in names]
    (tmp_path / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return tmp_path / 'captions.jsonl'

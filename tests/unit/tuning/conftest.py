"""Painted shapes with captions, for tiny models that can learn nothing else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

COLOURS = ('red', 'lime', 'blue', 'yellow', 'white', 'magenta', 'cyan', 'orange')
SHAPES = ('disc', 'box', 'bar')
EACH = {'train': 4, 'val': 1, 'test': 1}


@pytest.fixture(scope='module', autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs that are compared bit by bit, and so small that on a busy machine a second thread is but waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def paint(seed: int, colour: str, shape: str) -> Image.Image:
    """A shape of this colour somewhere on a dark ground."""
    rng = np.random.default_rng(seed)
    picture = Image.new('RGB', (40, 40), tuple(int(part) for part in rng.integers(0, 40, 3)))
    x, y, side = (int(number) for number in rng.integers((2, 2, 22), (8, 8, 28)))
    draw = ImageDraw.Draw(picture)
    if shape == 'disc':
        draw.ellipse((x, y, x + side, y + side), fill=colour)
    else:
        draw.rectangle((x, y, x + side, y + (side if shape == 'box' else side // 3)), fill=colour)
    return picture


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`captions.jsonl` with the splits train, val and test; every split has every colour of every shape."""
    folder = tmp_path_factory.mktemp('shapes')
    (folder / 'images').mkdir()
    rows = []
    for split, several in EACH.items():
        for colour in COLOURS:
            for shape in SHAPES:
                for number in range(several):
                    name = f'{split}-{colour}-{shape}-{number}.png'
                    paint(len(rows), colour, shape).save(folder / 'images' / name)
                    captions = [f'{colour} {shape}', f'a {colour} {shape}']
                    rows.append({'file': name, 'split': split, 'captions': captions})
    (folder / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return folder / 'captions.jsonl'


@pytest.fixture(scope='session')
def classes(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of train, in a folder for each shape."""
    folder = tmp_path_factory.mktemp('classes')
    for picture in (shapes.parent / 'images').glob('train-*'):
        target = folder / picture.name.split('-')[2]
        target.mkdir(exist_ok=True)
        (target / picture.name).write_bytes(picture.read_bytes())
    return folder


@pytest.fixture
def tiny(checkpoint: Callable[[str], Path]) -> Path:
    """A tiny CLIP that knows nothing."""
    return checkpoint('clip')

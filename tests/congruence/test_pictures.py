"""The model's input against transformers' own image processor, both from the same files of real photographs.

`tests/unit/test_pictures.py` compares resize and crop on made pictures; here decoding and colours are compared too.
"""

import io
import os
import random
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import Document
from numpy.typing import NDArray
from PIL import Image

from clipflow import ROOT
from clipflow.preparation import Preparation
from clipflow.settings import PreprocessorSettings
from clipflow.weights import ModelSpec, load_spec

DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data'))
# Shorter sides from 320 pixels to 64; the last holds grey photographs too.
ARCHIVES = (
    'unsplash/photos.zip',
    'unsplash/labelled.zip',
    'human-action/images.zip',
    'flickr8k/images.zip',
    'tiny-imagenet/images.zip',
)
ROUNDING = 0.01
"""Of float32, in grey levels: what may remain where both sides have the same bytes."""
LEVEL = 1.0
DRAFT = 2 * 256
"""A JPEG is decoded at a fraction whose shorter side is at least this: twice the side of a thumbnail."""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def converted(image: Image.Image, mode: str, kind: str, **options: Any) -> bytes:
    return saved(image.convert('RGB').convert(mode), kind, **options)


def slope(image: Image.Image) -> Image.Image:
    """From transparent on the left to opaque on the right."""
    return Image.linear_gradient('L').rotate(90).resize(image.size)


def with_alpha(image: Image.Image, mode: str, kind: str, **options: Any) -> bytes:
    layer = image.convert(mode)
    layer.putalpha(slope(image))
    return saved(layer, kind, **options)


def palette(image: Image.Image, kind: str, transparency: int | bytes | None) -> bytes:
    """64 colours; of some a number is transparent, or each to its own degree."""
    options = {} if transparency is None else {'transparency': transparency}
    return saved(image.convert('RGB').quantize(64), kind, **options)


def strip(image: Image.Image, across: int) -> bytes:
    """The middle of it, twenty times as long as wide."""
    size = list(image.size)
    size[across] = max(1, size[1 - across] // 20)
    left, top = ((whole - part) // 2 for whole, part in zip(image.size, size, strict=True))
    return saved(image.crop((left, top, left + size[0], top + size[1])), 'PNG')


def enlarged(image: Image.Image) -> bytes:
    """As large as a JPEG may be that is decoded whole: the shorter side is less than twice the fraction's."""
    scale = (2 * DRAFT - 1) / min(image.size)
    return saved(image.convert('RGB').resize([round(side * scale) for side in image.size]), 'JPEG', quality=90)


FORMS: dict[str, Callable[[Image.Image], bytes]] = {
    'as it is': lambda image: b'',
    'grey JPEG': partial(converted, mode='L', kind='JPEG'),
    'CMYK JPEG': partial(converted, mode='CMYK', kind='JPEG'),
    'CMYK TIFF': partial(converted, mode='CMYK', kind='TIFF', compression='tiff_lzw'),
    'grey PNG with alpha': partial(with_alpha, mode='L', kind='PNG'),
    'WebP with alpha': partial(with_alpha, mode='RGB', kind='WEBP', lossless=True),
    'palette PNG': partial(palette, kind='PNG', transparency=None),
    'palette PNG with alpha': partial(palette, kind='PNG', transparency=bytes(range(0, 256, 4))),
    'GIF with a transparent colour': partial(palette, kind='GIF', transparency=7),
    'wide strip': partial(strip, across=1),
    'tall strip': partial(strip, across=0),
    'large JPEG': enlarged,
}


@cache
def drawn(archive: str, number: int) -> list[bytes]:
    """Some photographs of an archive, always the same ones."""
    if not (DATA / archive).exists():
        pytest.skip(f'{DATA / archive} is not there; CLIPFLOW_TEST_DATA names the directory of the test data')
    with zipfile.ZipFile(DATA / archive) as file:
        return [file.read(name) for name in random.Random(archive).sample(sorted(file.namelist()), number)]


@pytest.fixture(scope='module')
def spec() -> ModelSpec:
    return load_spec(str(ROOT / 'models' / 'clip-mini'))


@pytest.fixture(scope='module')
def ours(spec: ModelSpec) -> Callable[[bytes], NDArray[np.float64]]:
    """The preprocessor's pixels, normalised as the model's session does it."""
    preparation = Preparation(spec, PreprocessorSettings())

    def of(blob: bytes) -> NDArray[np.float64]:
        doc = Document(blob=blob)
        preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
        assert '__error__' not in doc.tags, doc.tags
        assert (doc.tensor.dtype, doc.tensor.shape) == (np.uint8, (spec.picture.height, spec.picture.width, 3))
        return (doc.tensor / 255 - np.array(spec.picture.mean)) / np.array(spec.picture.std)

    return of


@pytest.fixture(scope='module')
def own(spec: ModelSpec) -> Callable[[bytes], NDArray[np.float64]]:
    """What transformers' processor makes of the same file, with the settings in the checkpoint's directory."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(spec.directory)

    def of(blob: bytes) -> NDArray[np.float64]:
        values = processor(Image.open(io.BytesIO(blob)), return_tensors='np')['pixel_values'][0]
        return np.asarray(values, dtype=np.float64).transpose(1, 2, 0)

    return of


@pytest.fixture(scope='module')
def levels(spec: ModelSpec) -> NDArray[np.float64]:
    """Grey levels in one unit of the normalised input, by channel."""
    return 255 * np.array(spec.picture.std)


@pytest.mark.parametrize('archive', ARCHIVES)
@pytest.mark.parametrize('form', FORMS)
def test_a_photograph_becomes_the_input_that_transformers_makes_of_it(
    form: str,
    archive: str,
    ours: Callable[[bytes], NDArray[np.float64]],
    own: Callable[[bytes], NDArray[np.float64]],
    levels: NDArray[np.float64],
) -> None:
    # Sixty different photographs: one of each archive for each form. Both sides decode the same file as a whole and
    # resize it with the same filter, so the bytes are equal, not only near.
    blob = drawn(archive, len(FORMS))[list(FORMS).index(form)]
    blob = FORMS[form](Image.open(io.BytesIO(blob))) or blob
    assert min(Image.open(io.BytesIO(blob)).size) < 2 * DRAFT
    assert np.abs((ours(blob) - own(blob)) * levels).max() < ROUNDING


def sheet(width: int, height: int) -> bytes:
    """A large JPEG with the detail of real photographs: as many of them side by side as fit in, not enlarged."""
    whole = Image.new('RGB', (width, height))
    side = 280
    blobs = drawn(ARCHIVES[0], 200)
    places = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    for place, blob in zip(places, blobs, strict=False):
        whole.paste(Image.open(io.BytesIO(blob)), place)
    return saved(whole, 'JPEG', quality=90)


@pytest.mark.parametrize(
    'size',
    # At a fraction, those after the fifth end within a pixel.
    [
        (1024, 1024),
        (1600, 1200),
        (1366, 2048),
        (3072, 2304),
        (4096, 4104),
        (1025, 1537),
        (1365, 2048),
        (2048, 1365),
        (1024, 3073),
        (2049, 2049),
        (4096, 4100),
        (5003, 7507),
    ],
)
def test_of_a_jpeg_decoded_at_a_fraction_the_input_differs_by_less_than_a_grey_level_on_average(
    size: tuple[int, int],
    ours: Callable[[bytes], NDArray[np.float64]],
    own: Callable[[bytes], NDArray[np.float64]],
    levels: NDArray[np.float64],
) -> None:
    # The fraction is more than twice as large as the input. Of the finest detail that the input can hold, the mean of
    # two neighbours keeps cos(0.11 pi), that is 94 percent; and such detail makes up at most some 16 levels.
    blob = sheet(*size)
    assert np.abs((ours(blob) - own(blob)) * levels).mean() < LEVEL


def test_a_turned_jpeg_whose_fraction_ends_within_a_pixel_is_decoded_whole(
    ours: Callable[[bytes], NDArray[np.float64]],
    own: Callable[[bytes], NDArray[np.float64]],
    levels: NDArray[np.float64],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(io.BytesIO(sheet(1365, 2049)))
    turned = saved(stored, 'JPEG', quality=90, exif=exif)
    # transformers leaves a picture as it is stored, so it gets the same pixels turned and without loss.
    upright = saved(Image.open(io.BytesIO(turned)).transpose(Image.Transpose.ROTATE_270), 'PNG')
    assert np.abs((ours(turned) - own(upright)) * levels).max() < ROUNDING

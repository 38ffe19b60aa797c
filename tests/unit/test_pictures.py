"""Pictures of every kind become upright RGB within limits, or one of our errors."""

import csv
import io
import os
import random
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from clipflow import ROOT, pictures
from clipflow.errors import ClipflowError, InvalidDocument, TooLarge, Undecodable, UnsupportedMedia
from clipflow.pictures import decode, decode_for, from_tensor, prepare, thumbnail
from clipflow.preprocessing import PictureSpec

LIMIT = 100_000_000
DATA = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data'))
AWKWARD = DATA / 'awkward-images'
SPEC = PictureSpec(height=224, width=224, resize_shortest=224, resample=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def asymmetric() -> NDArray[np.uint8]:
    """48 x 32, in blocks of 16: no rotation and no mirror image equals it."""
    blocks = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 0, 0], [255, 255, 255]]], dtype=np.uint8
    )
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Like a photograph: large soft shapes, a little grain."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


# EXIF: how the stored rows and columns are to be shown.
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize('orientation', SHOWN)
@pytest.mark.parametrize(
    ('kind', 'options'),
    [('JPEG', {'quality': 95, 'subsampling': 0}), ('PNG', {}), ('WEBP', {'lossless': True}), ('TIFF', {})],
)
def test_a_picture_stands_as_its_exif_orientation_says(orientation: int, kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = asymmetric()
    shown = np.asarray(decode(encoded(Image.fromarray(stored), kind, exif=exif, **options), LIMIT))
    expected = SHOWN[orientation](stored)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 3


@pytest.mark.parametrize('orientation', [3, 6])
def test_a_picture_that_is_decoded_at_a_fraction_stands_upright_as_well(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = asymmetric().repeat(20, axis=0).repeat(20, axis=1)
    shown, _ = decode_for(64, encoded(Image.fromarray(large), 'JPEG', exif=exif), LIMIT)
    expected = Image.fromarray(np.ascontiguousarray(SHOWN[orientation](asymmetric()))).resize(shown.size, 0)
    assert max(shown.size) < max(large.shape)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 10


def test_what_is_transparent_is_shown_on_white() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :] = [(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)]
    shown = np.asarray(decode(encoded(Image.fromarray(pixels), 'PNG'), LIMIT))
    # 51 of 255 black over white leaves four fifths of white.
    assert shown[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]


def test_transparency_of_a_palette_a_grey_picture_and_a_key_colour_is_white_too() -> None:
    palette = Image.new('P', (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    assert np.asarray(decode(encoded(palette, 'PNG', transparency=1), LIMIT))[0].tolist() == [
        [10, 20, 30],
        [255, 255, 255],
    ]
    grey = Image.fromarray(np.array([[[70, 255], [70, 0]]], dtype=np.uint8), 'LA')
    assert np.asarray(decode(encoded(grey, 'PNG'), LIMIT))[0].tolist() == [[70, 70, 70], [255, 255, 255]]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [0, 255, 0]]], dtype=np.uint8))
    assert np.asarray(decode(encoded(keyed, 'PNG', transparency=(0, 255, 0)), LIMIT))[0].tolist() == [
        [1, 2, 3],
        [255, 255, 255],
    ]


@pytest.mark.parametrize(
    ('mode', 'colour', 'kind', 'expected'),
    [
        ('L', 77, 'PNG', (77, 77, 77)),
        ('1', 1, 'PNG', (255, 255, 255)),
        ('CMYK', (0, 255, 255, 0), 'TIFF', (255, 0, 0)),
        ('CMYK', (0, 0, 0, 255), 'JPEG', (0, 0, 0)),
        ('RGB', (1, 2, 3), 'BMP', (1, 2, 3)),
        ('F', 0.5, 'TIFF', (127, 127, 127)),
        ('I', 65535, 'TIFF', (255, 255, 255)),
        ('I', 200, 'TIFF', (200, 200, 200)),
    ],
)
def test_other_modes_become_rgb(mode: str, colour: Any, kind: str, expected: tuple[int, int, int]) -> None:
    shown = decode(encoded(Image.new(mode, (8, 8), colour), kind), LIMIT)
    assert shown.mode == 'RGB'
    assert np.abs(np.asarray(shown).astype(int) - expected).max() <= 1


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    shown = np.asarray(decode(encoded(Image.fromarray(ramp), 'PNG'), LIMIT))
    assert np.abs(shown[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM', 'JPEG2000'])
@pytest.mark.parametrize(('value', 'expected'), [(200, 0), (300, 1), (0x7F80, 0x7F), (65535, 255)])
def test_a_dark_picture_of_sixteen_bits_stays_dark(kind: str, value: int, expected: int) -> None:
    # The upper byte, as of colours in 16 bits; not judged by the largest value, which would make one step 257 times.
    shown = decode(encoded(Image.fromarray(np.full((8, 8), value, np.uint16)), kind), LIMIT)
    assert shown.getpixel((3, 3)) == (expected,) * 3


def test_sixteen_bits_may_have_the_order_of_a_mac() -> None:
    turned = Image.fromarray(np.array([[0x0102, 0xF0E0]], dtype='>u2'))
    assert turned.mode == 'I;16B'
    assert np.asarray(decode(encoded(turned, 'TIFF'), LIMIT))[0, :, 0].tolist() == [0x01, 0xF0]


def test_the_key_colour_of_sixteen_bits_is_white_and_its_neighbours_are_not() -> None:
    rows = b'\0' + struct.pack('>3H', 0x2010, 0x2011, 0x200F)
    shown = np.asarray(decode(png((3, 1), 16, 0, rows, struct.pack('>H', 0x2010)), LIMIT))
    assert shown[0].tolist() == [[255] * 3, [0x20] * 3, [0x20] * 3]


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA', 'I;16', 'F'])
def test_a_picture_that_is_made_in_strips_has_no_seams(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(50, 41).convert('RGBA')
    image.putalpha(Image.linear_gradient('L').resize(image.size))
    if mode in ('I;16', 'F'):
        grey = np.asarray(image.convert('L'))
        image = Image.fromarray(grey.astype(np.uint16) * 256 if mode == 'I;16' else grey / np.float32(255))
    else:
        image = image.convert(mode)
    whole = np.asarray(pictures._rgb(image))
    monkeypatch.setattr(pictures, '_PIXELS_OF_A_STRIP', 350)
    assert (np.asarray(pictures._rgb(image)) == whole).all()
    assert len(np.unique(whole[:, 25], axis=0)) > 5


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new('RGB', (20, 10), colour) for colour in ('red', 'lime', 'blue')]
    options = {'lossless': True} if kind == 'WEBP' else {}
    shown = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), LIMIT)
    assert (shown.size, shown.getpixel((5, 5))) == ((20, 10), (255, 0, 0))


def test_a_jpeg_decoded_at_a_fraction_gives_nearly_the_same_input() -> None:
    blob = encoded(smooth(2000, 1500), 'JPEG', quality=90)
    draft, _ = decode_for(512, blob, LIMIT)
    assert 512 <= min(draft.size) < 1500
    whole, quick = (prepare(image, SPEC).astype(int) for image in (decode(blob, LIMIT), draft))
    assert np.abs(whole - quick).mean() < 1.5


def test_a_small_jpeg_is_decoded_whole() -> None:
    assert decode_for(512, encoded(smooth(300, 200), 'JPEG'), LIMIT)[0].size == (300, 200)


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, transparency: bytes | None = None) -> bytes:
    """A PNG with these bits a sample and this colour type; `rows` begin with their filter, 0."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

    header = struct.pack('>IIBBBBB', *size, depth, colour, 0, 0, 0)
    key = b'' if transparency is None else chunk(b'tRNS', transparency)
    pixels = chunk(b'IDAT', zlib.compress(rows))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + key + pixels + chunk(b'IEND', b'')


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes: its header, and next to no pixels."""
    return png((width, height), 8, 2, bytes(100))


def test_a_palette_that_is_missing_is_no_fault_of_ours() -> None:
    survives(png((8, 8), 8, 3, (b'\0' + b'\1' * 8) * 8))


PEAK = """
import re, sys
from pathlib import Path
from clipflow import pictures
from clipflow.preprocessing import PictureSpec

def peak():
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024

blob, before = sys.stdin.buffer.read(), peak()
image, filled = pictures.decode_for(512, blob, 10**8)
pictures.thumbnail(image)
pictures.prepare(image, PictureSpec(224, 224, 224, 3, (0.5,) * 3, (0.5,) * 3), filled)
print((peak() - before) / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the peak of memory is read from /proc')
@pytest.mark.parametrize(
    ('depth', 'colour', 'sample', 'most'),
    [(16, 0, b'\x10\x20', 8), (8, 6, b'\x10' * 4, 10), (8, 2, b'\x10' * 3, 6)],
    ids=['grey of 16 bits', 'with transparency', 'RGB'],
)
def test_a_small_file_of_many_pixels_takes_few_bytes_for_each(
    depth: int, colour: int, sample: bytes, most: float
) -> None:
    # Pillow itself takes 2 or 4 bytes for a pixel as it is decoded, and 4 in RGB. The file has a thousandth of that.
    side = 3000
    blob = png((side, side), depth, colour, (b'\0' + sample * side) * side)
    done = subprocess.run(
        [sys.executable, '-c', PEAK], input=blob, cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    assert float(done.stdout) < most


@pytest.mark.parametrize(('width', 'height'), [(50_000, 50_000), (10_001, 10_000), (15_000, 10_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(width: int, height: int) -> None:
    with pytest.raises(TooLarge, match='100,000,000'):
        decode(png_that_claims(width, height), LIMIT)


def test_the_limit_of_pixels_is_inclusive() -> None:
    blob = encoded(Image.new('RGB', (20, 10)), 'PNG')
    assert decode(blob, 200).size == (20, 10)
    with pytest.raises(TooLarge, match='20 x 10'):
        decode(blob, 199)


FORMATS = {
    'JPEG': {},
    'PNG': {},
    'WEBP': {},
    'GIF': {},
    'TIFF': {'compression': 'tiff_lzw'},
    'BMP': {},
    'ICO': {},
    'PPM': {},
    'JPEG2000': {},
    **({'AVIF': {}} if features.check('avif') else {}),
}


def survives(blob: bytes) -> None:
    """Only a picture or one of our errors may come out."""
    try:
        assert decode_for(16, blob, 1_000_000)[0].mode == 'RGB'
    except ClipflowError as error:
        if error.status not in (413, 415, 422):
            raise


@pytest.mark.parametrize('kind', FORMATS)
def test_a_picture_cut_off_anywhere_is_a_picture_or_our_error(kind: str) -> None:
    blob = encoded(smooth(48, 40), kind, **FORMATS[kind])
    for end in range(0, len(blob), 10):
        survives(blob[:end])


@pytest.mark.parametrize('kind', FORMATS)
def test_a_picture_with_wrong_bytes_anywhere_is_a_picture_or_our_error(kind: str) -> None:
    blob = encoded(smooth(48, 40), kind, **FORMATS[kind])
    chance = random.Random(0)
    for _ in range(400):
        wrong = bytearray(blob)
        for _ in range(chance.choice((1, 3, 10))):
            wrong[chance.randrange(min(len(wrong), chance.choice((100, 400, 10**9))))] = chance.randrange(256)
        survives(bytes(wrong))


@pytest.mark.parametrize(
    'blob',
    [
        b'x',
        b'plain text',
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
        b'%PDF-1.4',
        b'\0' * 100,
    ],
)
def test_what_is_no_picture_is_unsupported(blob: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        decode(blob, LIMIT)


def test_half_a_picture_is_undecodable_at_each_attempt() -> None:
    blob = encoded(smooth(200, 200), 'PNG')
    for _ in range(2):
        with pytest.raises(Undecodable):
            decode(blob[: len(blob) // 2], LIMIT)


def test_a_tensor_of_bytes_or_of_floats_is_a_picture() -> None:
    pixels = asymmetric()
    assert (np.asarray(from_tensor(pixels, LIMIT)) == pixels).all()
    assert (np.asarray(from_tensor((pixels / 255).astype(np.float32), LIMIT)) == pixels).all()
    assert (np.asarray(from_tensor((pixels / 255).astype(np.float64), LIMIT)) == pixels).all()
    assert (np.asarray(from_tensor(pixels[:, ::-1], LIMIT)) == pixels[:, ::-1]).all()


@pytest.mark.parametrize(
    'tensor',
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.full((4, 4, 3), 1.01),
        np.full((4, 4, 3), -0.01),
        np.full((4, 4, 3), 200.0),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), np.inf),
        np.zeros((4, 4, 3), complex),
        np.array(5),
    ],
    ids=lambda tensor: f'{tensor.dtype}{tensor.shape}',
)
def test_another_tensor_is_refused(tensor: NDArray[Any]) -> None:
    with pytest.raises(InvalidDocument, match='tensor'):
        from_tensor(tensor, LIMIT)


def test_a_tensor_has_the_limit_of_pixels_too() -> None:
    with pytest.raises(TooLarge):
        from_tensor(np.zeros((10, 11, 3), np.uint8), 100)


def random_sizes() -> list[tuple[int, int]]:
    chance = random.Random(7)
    drawn = [(chance.randint(1, 900), chance.randint(1, 900)) for _ in range(30)]
    ordinary = [size for size in drawn if max(size) <= 20 * min(size)]
    return [*ordinary, (224, 224), (225, 224), (224, 225), (223, 400), (1, 1), (3, 41), (641, 480), (449, 447)]


@pytest.mark.parametrize('size', random_sizes())
def test_the_input_equals_that_of_the_checkpoint_s_own_processor(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    own = CLIPImageProcessorPil.from_pretrained(ROOT / 'models' / 'clip-mini')
    image = smooth(*size, seed=size[0])
    expected = own(image, do_normalize=False, do_rescale=False)['pixel_values'][0]
    found = prepare(image, SPEC)
    assert found.dtype == np.uint8
    assert (found == np.asarray(expected).transpose(1, 2, 0)).all()


@pytest.mark.parametrize(('shortest', 'crop'), [(36, 32), (32, 32), (33, 32), (32, 41)])
@pytest.mark.parametrize('size', [(50, 70), (71, 50), (640, 427), (20, 20)])
def test_it_does_so_for_other_crops(shortest: int, crop: int, size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    own = CLIPImageProcessorPil(size={'shortest_edge': shortest}, crop_size={'height': crop, 'width': crop})
    spec = PictureSpec(crop, crop, shortest, 3, (0.5,) * 3, (0.5,) * 3)
    image = smooth(*size)
    expected = own(image, do_normalize=False, do_rescale=False)['pixel_values'][0]
    assert (prepare(image, spec) == np.asarray(expected).transpose(1, 2, 0)).all()


@pytest.fixture
def two_gigabytes() -> Iterator[None]:
    """No more memory than that, above what this process has already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 1024**3, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures('two_gigabytes')
@pytest.mark.parametrize('size', [(1, 60_000), (60_000, 1), (3, 90_000), (2, 101)])
def test_a_strip_is_cut_before_it_is_enlarged(size: tuple[int, int]) -> None:
    # Enlarged as a whole, the first would take twelve gigabytes. The middle is red, the ends are blue.
    strip = np.zeros((size[1], size[0], 3), np.uint8)
    along = int(np.argmax(strip.shape[:2]))
    middle = np.abs(np.arange(max(size)) - max(size) / 2) < max(size) * 0.1
    strip[:] = np.where(middle[:, None], [255, 0, 0], [0, 0, 255]).reshape((-1, 1, 3) if along == 0 else (1, -1, 3))
    found = prepare(Image.fromarray(strip), SPEC)
    assert found.shape == (224, 224, 3)
    assert (found == [255, 0, 0]).all()


def test_a_low_limit_of_pixels_does_not_hinder_our_own_crops() -> None:
    image = decode(encoded(smooth(60, 40), 'PNG'), max_pixels=3000)
    assert prepare(image, SPEC).shape == (224, 224, 3)


def test_a_model_without_a_crop_gets_the_whole_picture_whatever_its_proportions() -> None:
    spec = PictureSpec(16, 24, None, 0, (0.5,) * 3, (0.5,) * 3)
    corners = prepare(Image.fromarray(asymmetric()).resize((96, 32), 0), spec)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [[255, 0, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ('size', 'expected'), [((1024, 512), (256, 128)), ((100, 300), (85, 256)), ((40, 30), (40, 30))]
)
def test_a_thumbnail_is_webp_of_at_most_256_pixels_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = smooth(*size)
    small = Image.open(io.BytesIO(thumbnail(image)))
    assert (small.format, small.size, image.size) == ('WEBP', expected, size)


def outcomes() -> list[Any]:
    if not (AWKWARD / 'table.csv').exists():
        reason = f'{AWKWARD} is not there; CLIPFLOW_TEST_DATA names the directory of the test data'
        return [pytest.param('', False, marks=pytest.mark.skip(reason=reason))]
    with (AWKWARD / 'table.csv').open(encoding='utf-8', newline='') as file:
        return [(row['file'], row['open'] == 'ok' and row['load'] == 'ok') for row in csv.DictReader(file)]


@pytest.mark.parametrize(('name', 'accepted'), outcomes())
@pytest.mark.parametrize('draft', [None, 512])
def test_awkward_files_come_out_as_their_table_demands(name: str, accepted: bool, draft: int | None) -> None:
    with zipfile.ZipFile(AWKWARD / 'awkward-images.zip') as archive:
        (member,) = (entry for entry in archive.namelist() if Path(entry).name == name)
        blob = archive.read(member)
    if accepted:
        image, _ = decode_for(draft, blob, LIMIT)
        assert image.mode == 'RGB'
        assert prepare(image, SPEC).shape == (224, 224, 3)
        assert thumbnail(image)
    else:
        with pytest.raises((TooLarge, Undecodable, UnsupportedMedia)):
            decode_for(draft, blob, LIMIT)


def test_all_69_awkward_files_are_looked_at() -> None:
    if not AWKWARD.exists():
        pytest.skip(f'{AWKWARD} is not there')
    assert len(outcomes()) == 69


def test_formats_that_run_programs_or_parse_scripts_are_not_read() -> None:
    assert {'EPS', 'PDF', 'WMF', 'FITS', 'HDF5', 'GRIB'}.isdisjoint(pictures.FORMATS)

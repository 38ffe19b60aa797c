"""Encoded bytes to the model's input: decode within limits, turn upright, flatten to RGB, resize, crop.

Decoding happens once and completely: Pillow hands over half a picture after a second try on the same object.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImagePalette, UnidentifiedImageError

from clipflow.errors import InvalidDocument, TooLarge, Undecodable, UnsupportedMedia
from clipflow.preprocessing import PictureSpec

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF', 'BMP', 'DIB', 'ICO', 'PPM', 'JPEG2000', 'AVIF')
Filled = tuple[float, float] | None
"""How much of an image's width and height its picture fills, where that is not all."""
THUMBNAIL_SIDE = 256
_THUMBNAIL_QUALITY = 75
_PILLOWS_LIMIT = 10_000_000
_LONGEST_STRIP = 50
_PIXELS_OF_A_STRIP = 1 << 18

_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError)
_METADATA = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, ZeroDivisionError, OverflowError)

# The limit is ours (max_pixels, checked before decoding); Pillow only warns between one and two times its own.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)
Image.init()  # all plug-ins at once: asking for a format whose plug-in is not loaded is a KeyError


def decode(blob: bytes, max_pixels: int) -> Image.Image:
    """`decode_for` a use that needs every pixel."""
    return decode_for(None, blob, max_pixels)[0]


def decode_for(side: int | None, blob: bytes, max_pixels: int) -> tuple[Image.Image, Filled]:
    """Decode the first frame, upright, in RGB.

    Args:
        side: if given, a JPEG may be decoded at a fraction of its size whose shorter side is still at least this.
        blob: an encoded picture; its content decides the format, not its name.
        max_pixels: largest width times height.

    Returns:
        The picture, and how much it fills: a JPEG of 1025 pixels decoded at a half fills 512.5 of 513. `prepare`
        needs it to put every pixel where it belongs.

    Raises:
        TooLarge: more pixels than allowed, judged by the header.
        UnsupportedMedia: no picture of a format that we read.
        Undecodable: a picture, but a damaged one.
    """
    # Pillow's own limit is for what a header hides, such as the frames of an icon; crops of ours come under it too.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, _PILLOWS_LIMIT)
    try:
        image = Image.open(io.BytesIO(blob), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise TooLarge(_too_many(f'has {image.width} x {image.height}', max_pixels))
        filled = _draft(image, side) if side is not None and image.format in ('JPEG', 'MPO') else None
        image.load()
    except Image.DecompressionBombError:
        raise TooLarge(_too_many('claims far too many', max_pixels)) from None
    except UnidentifiedImageError:
        raise UnsupportedMedia(
            'the content is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, ...)'
        ) from None
    except MemoryError:
        raise TooLarge('the picture needs more memory than there is') from None
    except _DAMAGED as error:
        # What Pillow's plug-ins raise on damaged files differs from release to release.
        raise Undecodable(f'the picture is damaged: {str(error)[:120] or type(error).__name__}') from None
    return _rgb(_upright(image)), filled


def _draft(image: Image.Image, side: int) -> Filled:
    """Have a JPEG decoded at an eighth, a quarter or a half; returns what it will fill, if not whole pixels."""
    width, height = image.size
    scale = next((scale for scale in (8, 4, 2) if min(width, height) // scale >= side), 1)
    whole = width % scale == 0 == height % scale
    if scale == 1 or not (whole or _orientation(image) == 1):
        # Turned, the pixel that is filled in part would come first. Cameras' sides divide by eight: a rare case.
        return None
    image.draft(None, (width // scale, height // scale))
    return None if whole else (width / scale, height / scale)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _METADATA:
        return 1


def _too_many(size: str, max_pixels: int) -> str:
    return f'the picture {size} pixels, more than the {max_pixels:,} allowed; make it smaller'


def _upright(image: Image.Image) -> Image.Image:
    # Metadata that is broken says nothing about the orientation: the pixels stand as they are.
    with contextlib.suppress(*_METADATA):
        ImageOps.exif_transpose(image, in_place=True)  # which copies nothing where nothing is to be turned
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'P' and image.palette is None:
        image.palette = ImagePalette.ImagePalette()  # a file without its palette; Pillow asserts that there is one
    try:
        if image.mode.startswith(('I', 'F')):
            return _in_strips(image, _eight_bits(image))
        if image.has_transparency_data:
            return _in_strips(image, _on_white)
        return image.convert('RGB') if image.mode != 'RGB' else image
    except (ValueError, OSError) as error:
        raise Undecodable(f'the picture cannot be converted to RGB: {error}') from None


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int, int, int]]]:
    """Its rows, some at a time, and where they belong: what is made of them on the way stays small."""
    rows = max(1, _PIXELS_OF_A_STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), box


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An RGB picture of what `convert` makes of each strip."""
    whole = Image.new('RGB', image.size)
    for strip, box in _strips(image):
        whole.paste(convert(strip), box)
    return whole


def _on_white(strip: Image.Image) -> Image.Image:
    """What is transparent, shown as a page would; a plain conversion uncovers whatever colour hides below."""
    layer = strip.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', layer.size, 'white'), layer)


def _eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How strips of this greyscale become bytes; Pillow would clip them at 255.

    Of 16 bits the upper byte counts, as in Pillow's reading of colours in 16 bits, and the key colour is white.
    Integers of 32 bits and floats do not tell their range, so the largest value of the picture does.
    """
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
        key = image.info.get('transparency')

        def upper_byte(strip: Image.Image) -> Image.Image:
            values = np.asarray(strip)
            grey = (values >> 8).astype(np.uint8)
            if key is not None:
                grey[values == key] = 255
            return Image.fromarray(grey)

        return upper_byte

    top = max(float(_finite(strip).max(initial=0.0)) for strip, _ in _strips(image))
    full = 1.0 if image.mode.startswith('F') and top <= 1.0 else 255.0 if top <= 255.0 else max(top, 65535.0)
    return lambda strip: Image.fromarray(np.clip(_finite(strip) * (255.0 / full), 0, 255).astype(np.uint8))


def _finite(strip: Image.Image) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.nan_to_num(np.asarray(strip).astype(np.float64))
    return found


def from_tensor(tensor: Any, max_pixels: int) -> Image.Image:
    """A picture from an array: uint8 or floats in [0, 1], shape (H, W, 3).

    Raises:
        InvalidDocument: another shape, kind or range, or values that are not finite.
        TooLarge: more pixels than allowed.
    """
    array = np.asarray(tensor)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidDocument(f'a tensor is a picture of shape (height, width, 3), not {array.shape}')
    if array.shape[0] * array.shape[1] > max_pixels:
        raise TooLarge(_too_many(f'has {array.shape[1]} x {array.shape[0]}', max_pixels))
    if array.dtype.kind == 'f':
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InvalidDocument('a tensor of floats holds finite values from 0 to 1')
        array = np.round(array * 255)
    elif array.dtype != np.uint8:
        raise InvalidDocument(f'a tensor holds uint8 or floats from 0 to 1, not {array.dtype}')
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def prepare(image: Image.Image, spec: PictureSpec, filled: Filled = None) -> NDArray[np.uint8]:
    """Resize and crop as the checkpoint's own processor does; uint8, shape (height, width, 3), RGB.

    Args:
        image: upright, in RGB.
        spec: of the checkpoint.
        filled: as `decode_for` gives it.

    The rounding follows transformers' CLIPImageProcessor: the longer side and the crop's corner round down.
    """
    resample = Image.Resampling(spec.resample)
    filled = filled or image.size
    if spec.resize_shortest is None:
        image = image.resize((spec.width, spec.height), resample, (0, 0, *filled))
    else:
        shorter = min(filled)
        if max(image.size) > _LONGEST_STRIP * shorter:
            # Only the middle will be seen; the whole strip, a pixel wide perhaps, would be enlarged to gigabytes.
            image = _middle(image, *(int(min(side, _LONGEST_STRIP * shorter)) for side in image.size))
            filled = image.size
            shorter = min(filled)
        width, height = (max(1, int(spec.resize_shortest * side / shorter)) for side in filled)
        image = image.resize((width, height), resample, (0, 0, *filled))
        image = _middle(image, spec.width, spec.height)
    return np.asarray(image)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def thumbnail(image: Image.Image) -> bytes:
    """WebP with a longer side of at most 256 pixels."""
    longer = max(image.size)
    small = image
    if longer > THUMBNAIL_SIDE:
        # Not Pillow's own `thumbnail`, which works on a copy of all pixels.
        width, height = (max(1, round(THUMBNAIL_SIDE * side / longer)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    small.save(out, 'WEBP', quality=_THUMBNAIL_QUALITY, method=0)
    return out.getvalue()

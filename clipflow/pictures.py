"""Encoded bytes to the model's input: decode within limits, turn upright, flatten to RGB, resize, crop.

Decoding happens once and completely: Pillow hands over half a picture after a second try on the same object.
"""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from clipflow.errors import InvalidDocument, TooLarge, Undecodable, UnsupportedMedia
from clipflow.weights import PictureSpec

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF', 'BMP', 'DIB', 'ICO', 'PPM', 'JPEG2000', 'AVIF')
Filled = tuple[float, float] | None
"""How much of an image's width and height its picture fills, where that is not all."""
THUMBNAIL_SIDE = 256
_THUMBNAIL_QUALITY = 75
_PILLOWS_LIMIT = 10_000_000
_LONGEST_STRIP = 50

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
    try:
        return ImageOps.exif_transpose(image) or image
    except _METADATA:
        # Broken metadata says nothing about the orientation: the pixels stand as they are.
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'RGB' and not image.has_transparency_data:
        return image
    if image.mode.startswith(('I', 'F')):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert('RGB')
    try:
        if image.has_transparency_data:
            # Shown on white, as a page would; a plain conversion uncovers whatever colour hides below.
            layer = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', layer.size, 'white'), layer)
        return image.convert('RGB')
    except (ValueError, OSError) as error:
        raise Undecodable(f'the picture cannot be converted to RGB: {error}') from None


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit, 32-bit and float greyscale scaled to bytes (Pillow would clip them at 255)."""
    wide = np.nan_to_num(values.astype(np.float64))
    top = float(wide.max(initial=0.0))
    full = 1.0 if values.dtype.kind == 'f' and top <= 1.0 else 255.0 if top <= 255.0 else 65535.0
    scaled: NDArray[np.uint8] = np.clip(wide * (255.0 / max(full, top if top > 65535.0 else full)), 0, 255).astype(
        np.uint8
    )
    return scaled


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
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    small.save(out, 'WEBP', quality=_THUMBNAIL_QUALITY, method=0)
    return out.getvalue()

"""A picture of results: thumbnails in a grid, the score under each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from clipflow.errors import InvalidParameter

if TYPE_CHECKING:
    from clipflow_client import Match

_CELL = 256
_CAPTION = 40
_GAP = 12
_TITLE = 44
_INK, _PAPER, _FAINT = '#1c1c1e', '#ffffff', '#ececf0'


def save(rows: Sequence[tuple[str, Sequence['Match']]], path: Path, columns: int = 5) -> None:
    """Draw titled rows of matches (as many lines as they need at `columns` a line) and save the picture.

    The kind of file follows the suffix of `path`.

    Raises:
        InvalidParameter: there is no such kind, or it cannot be written there.
    """
    lines = [(title, list(matches[start : start + columns]), start)
             for title, matches in rows for start in range(0, max(1, len(matches)), columns)]  # fmt: skip
    height = _GAP + sum((_TITLE if start == 0 else 0) + _CELL + _CAPTION + _GAP for _, _, start in lines)
    sheet = Image.new('RGB', (_GAP + columns * (_CELL + _GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    big, small = ImageFont.load_default(24), ImageFont.load_default(16)
    top = _GAP
    for title, matches, start in lines:
        if start == 0:
            draw.text((_GAP, top + 4), title, _INK, big)
            top += _TITLE
        for column, match in enumerate(matches):
            left = _GAP + column * (_CELL + _GAP)
            _cell(sheet, match, left, top)
            draw.text((left, top + _CELL + 6), f'{match.score:.3f}  {_name(match)}', _INK, small)
        top += _CELL + _CAPTION + _GAP
    try:
        sheet.save(path)
    except ValueError:
        raise InvalidParameter(f'{path}: the suffix says no kind of picture; take .png') from None
    except OSError as error:
        raise InvalidParameter(f'{path} cannot be written: {error.strerror or error}') from None


def _cell(sheet: Image.Image, match: 'Match', left: int, top: int) -> None:
    ImageDraw.Draw(sheet).rectangle((left, top, left + _CELL - 1, top + _CELL - 1), _FAINT)
    if not match.thumbnail:
        ImageDraw.Draw(sheet).text((left + 12, top + 12), match.text[:200], _INK, ImageFont.load_default(16))
        return
    try:
        picture = Image.open(io.BytesIO(match.thumbnail), formats=['WEBP']).convert('RGB')
    except (UnidentifiedImageError, OSError):
        return
    sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))


def _name(match: 'Match') -> str:
    name = str(match.tags.get('filename') or match.id.rsplit('/', 1)[-1])
    return name if len(name) <= 22 else name[:19] + '...'

"""What is stored by an older version, and has to be found by this one."""

import io

from docarray import Document
from PIL import Image

COLOURS = ('red', 'green', 'blue', 'white')


def picture(colour: str) -> bytes:
    """A small PNG of one colour."""
    out = io.BytesIO()
    Image.new('RGB', (32, 24), colour).save(out, 'PNG')
    return out.getvalue()


def documents() -> list[Document]:
    """Ten texts with tags, and four pictures."""
    texts = [Document(id=f'text {n}', text=f'text {n}', tags={'number': n, 'even': n % 2 == 0}) for n in range(10)]
    return texts + [Document(id=colour, blob=picture(colour), tags={'colour': colour}) for colour in COLOURS]

"""From what people have in hand (a sentence, a file, bytes, an array) to a Document."""

import os
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow.errors import InvalidDocument, InvalidParameter
from clipflow.files import located
from clipflow.tags import check_sendable, unsendable

Item: TypeAlias = str | os.PathLike[str] | bytes | NDArray[Any] | Document
"""A text, the path of a picture (a `Path`, never a string), encoded picture bytes, an array, or a ready Document.

An array with one axis is an embedding; one of shape (height, width, 3) is a picture.
"""

T = TypeVar('T')


def several(items: T) -> T:
    """What is given for several items or ids; raises InvalidParameter for one: its letters would be taken for them."""
    if isinstance(items, str | bytes | os.PathLike | Document):
        raise InvalidParameter(f'a single {type(items).__name__} is given for several items; put it into a list')
    return items


def document(item: Item) -> Document:
    """The Document of one item; a file is read here, its path becomes the `uri`, and its id.

    Raises:
        InvalidDocument: empty content, an unreadable file, what no message can hold (such as half a surrogate pair), or
            something else altogether.
    """
    doc = _document(item)
    for one in (doc, *doc.chunks):
        check_sendable(one)
    return doc


def name_of(item: Item) -> str:
    """Of what cannot be sent: the id that it would have had, or else how it begins."""
    if isinstance(item, Document):
        return str(item.id)
    return str(located(Path(item))) if isinstance(item, os.PathLike) else str(item)[:100]


def _document(item: Item) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        if not item:
            raise InvalidDocument('the text is empty')
        return Document(text=item)
    if isinstance(item, bytes):
        if not item:
            raise InvalidDocument('the picture has no bytes')
        return Document(blob=item)
    if isinstance(item, os.PathLike):
        return _file(Path(item))
    if isinstance(item, np.ndarray):
        return Document(embedding=item.astype(np.float32)) if item.ndim == 1 else Document(tensor=item)
    raise InvalidDocument(f'a {type(item).__name__} is neither a text, a path, bytes, an array nor a Document')


def _file(path: Path) -> Document:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidDocument(f'{path} cannot be read: {error.strerror}') from None
    if not content:
        raise InvalidDocument(f'{path} is empty')
    name, uri = str(located(path)), located(path).as_uri()
    # A name may hold bytes that are no text, which the URI escapes.
    return Document(id=uri if unsendable(name) else name, blob=content, uri=uri)

"""Tags of a Document: a JSON object. Names that begin with `__` are ours."""

import json
import re
from typing import TYPE_CHECKING, Any

from clipflow.errors import InvalidDocument

if TYPE_CHECKING:
    from docarray import Document

_MAX_DEPTH = 24
_LARGEST = 1.7e308
_HALF = re.compile('[\ud800-\udfff]')
_LONG_NUMBER = re.compile(r'\d{300}')


def drop_private_tags(doc: 'Document') -> None:
    """Remove tags that are reserved for us, at every depth of the Document."""
    for name in [name for name in doc.tags if name.startswith('__')]:
        del doc.tags[name]


def tags_json(doc: 'Document') -> str:
    """The tags as JSON, without private ones.

    Raises:
        InvalidDocument: for tags that JSON cannot hold (NaN, infinity, foreign types), and for a NUL in a text.
    """
    tags = {name: value for name, value in doc.tags.items() if not name.startswith('__')}
    try:
        text = json.dumps(tags, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise InvalidDocument(f'the tags of {doc.id!r} are not a JSON object (NaN and infinity are none)') from None
    if has_nul(text, tags):
        raise InvalidDocument(f'the tags of {doc.id!r} hold the character NUL, which cannot be stored')
    return text


def unsendable(value: Any, depth: int = 0) -> str:
    """What messages between stages cannot hold of a JSON value; empty if there is nothing."""
    if depth > _MAX_DEPTH:
        return f'values nested more than {_MAX_DEPTH} levels deep'
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            return f'the name {strange[0]!r}, which is no text'
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next((reason for item in value if (reason := unsendable(item, depth + 1))), '')
    if isinstance(value, str) and not value.isascii() and _HALF.search(value):
        return 'half a surrogate pair'
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:
        return 'a number that is not finite, or too large'
    return (
        '' if value is None or isinstance(value, str | int | float) else f'a {type(value).__name__}, not a JSON value'
    )


def check_sendable(doc: 'Document') -> None:
    """Raises InvalidDocument if messages between stages cannot hold the Document."""
    if reason := unsendable([doc.id, doc.text, doc.uri, doc.tags]):
        raise InvalidDocument(f'{doc.id[:40]!r}: its id, text, uri or tags hold {reason}')


def is_suspect(text: str) -> bool:
    """Whether `unsendable` may find something in a value with this JSON; quick, and true too often."""
    return (
        (not text.isascii() and _HALF.search(text) is not None)
        or text.count('[') + text.count('{') >= _MAX_DEPTH
        or 'e+30' in text
        or (len(text) > 300 and _LONG_NUMBER.search(text) is not None)
    )


def has_nul(text: str, tags: dict[str, Any]) -> bool:
    """Whether a text in tags, whose JSON is `text`, holds the character NUL.

    SQLite would end the text there, and a filter would take the rest for nothing.
    """
    return '\\u0000' in text and _has_nul(tags)


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return '\0' in value
    if isinstance(value, dict):
        return any(_has_nul(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(_has_nul(item) for item in value)


def plain_tags(doc: 'Document') -> dict[str, Any]:
    """The tags as plain values; whole numbers, which travel as floats, are whole again. Private ones are left out."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        if isinstance(value, list):
            return [whole(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value

    return {key: whole(value) for key, value in doc.tags.items() if not key.startswith('__')}

"""What is stored beside the tags of a document, so that Milvus filters them exactly.

Milvus compares values inside a JSON field, but what it makes of a missing name, of null and of other types differs
from version to version. So a document has `terms`, one for each tag and its type and one for each tag and its value,
of which a filter asks no more than whether they are there; and `values`, numbers and texts under flat names, which are
compared only where a term says that they are of that type.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

KINDS = ('number', 'text', 'truth', 'list', 'object', 'null')
PRESENT = KINDS[:-1]
"""All but null, which means the same as no tag."""
TERM_LENGTH = 32


def kind_term(path: str, kind: str) -> str:
    """Says that the tag at a path `a__b` has this type."""
    return _term('kind', path, kind)


def number_term(path: str, value: float) -> str:
    """Says that it is this number; true and false count as 1 and 0."""
    return _term('number', path, repr(float(value) + 0.0))  # -0.0 is 0.0


def text_term(path: str, value: str) -> str:
    """Says that it is this text."""
    return _term('text', path, value)


def size_term(path: str, size: int) -> str:
    """Says that it is a list of so many."""
    return _term('size', path, str(size))


def field_name(path: str) -> str:
    """The name in `values` of a tag: letters, digits and `_`, so that nothing has to be escaped."""
    return ''.join(c if c.isascii() and c.isalnum() else f'_{ord(c):x}_' for c in path)


def terms_of(tags: dict[str, Any]) -> list[str]:
    """All terms of a document's tags."""
    found = []
    for path, value in _leaves(tags, ()):
        kind = _kind(value)
        found.append(kind_term(path, kind))
        if kind in ('number', 'truth'):
            found.append(number_term(path, value))
        elif kind == 'text':
            found.append(text_term(path, value))
        elif kind == 'list':
            found.append(size_term(path, len(value)))
    return found


def values_of(tags: dict[str, Any]) -> dict[str, float | str]:
    """The numbers, as floats, and the texts among a document's tags, by `field_name`."""
    found: dict[str, float | str] = {}
    for path, value in _leaves(tags, ()):
        if _kind(value) in ('number', 'text'):
            found[field_name(path)] = value if isinstance(value, str) else float(value)
    return found


def _term(*parts: str) -> str:
    # A hash has one length whatever the value, and nothing in it has to be escaped.
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=TERM_LENGTH // 2).hexdigest()


def _kind(value: Any) -> str:
    if value is None:
        return 'null'
    if isinstance(value, bool):
        return 'truth'
    if isinstance(value, int | float):
        return 'number'
    if isinstance(value, str):
        return 'text'
    return 'list' if isinstance(value, list) else 'object'


def _leaves(tags: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """All tags that a filter can name, those inside others too, with their paths."""
    for name, value in tags.items():
        names = (*above, name)
        path = '__'.join(names)
        # Another name that is written the same way is what a filter means.
        if path.split('__') == list(names):
            yield path, value
        if isinstance(value, dict):
            yield from _leaves(value, names)

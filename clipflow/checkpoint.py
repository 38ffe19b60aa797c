"""Values of a checkpoint's JSON files; a wrong one is told with its file and its key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipflow.errors import InvalidParameter, NotFound


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        NotFound: there is no such file.
        InvalidParameter: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise NotFound(f'{path.parent} holds no {path.name}; it is not a model in the Hugging Face format') from None
    except (OSError, ValueError) as error:
        raise InvalidParameter(f'{path} cannot be read: {error}') from None
    if not isinstance(found, dict):
        raise InvalidParameter(f'{path} is not a JSON object')
    return found


@contextmanager
def blamed(file: Path | None) -> Iterator[None]:
    """A value that is wrong in here was read from this file: a ValueError becomes InvalidParameter."""
    try:
        yield
    except ValueError as error:
        raise InvalidParameter(f'{file}: {error}') from None


def part(values: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside another; empty if it is absent or null. Raises ValueError."""
    found = values.get(name)
    if not isinstance(found, dict | None):
        raise ValueError(f'{name} is {found!r}, not an object')
    return found or {}


def whole(values: dict[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of `least` or more; `default` if it is absent or null. Raises ValueError."""
    found = values.get(name)
    found = default if found is None else found
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found // 1 or found < least:
        raise ValueError(f'{name} is {found!r}, not a whole number from {least} on')
    return int(found)

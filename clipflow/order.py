"""Order by the value of a tag, the same in an index and where the results of several are merged."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

RELEVANT = 1000
"""At most so many of the relevant documents are put into the order of a tag."""
Mark = tuple[int, float | str]
"""What a document is ordered by: numbers come before texts, and both before what has no such tag."""

T = TypeVar('T')


def tag_value(tags: dict[str, Any], path: str) -> Any:
    """The value at a nested path `a__b`; None where there is none."""
    value: Any = tags
    for name in path.split('__'):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def mark_of(value: Any) -> Mark:
    """Numbers and booleans, texts, and all else."""
    if isinstance(value, int | float):
        return 0, float(value)
    return (1, value) if isinstance(value, str) else (2, '')


def ordered(items: Iterable[T], mark: Callable[[T], Mark], *, descending: bool) -> list[T]:
    """Items by their marks; those with equal marks stay as they stand, those without a value go last."""
    kept = list(items)
    with_value = [item for item in kept if mark(item)[0] < 2]
    with_value.sort(key=mark, reverse=descending)
    if descending:
        # Numbers first here too.
        with_value.sort(key=lambda item: mark(item)[0])
    return with_value + [item for item in kept if mark(item)[0] == 2]


def parse(sort_by: str) -> tuple[str, bool]:
    """`-price` as the path `price`, descending."""
    return (sort_by[1:], True) if sort_by.startswith('-') else (sort_by, False)

"""What the parts of `embed` hand to each other: places in the input, items, and what is wrong with some of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

Entry = tuple[str, str, str]
"""Names of a picture, of the file with its caption and of the one with its metadata; empty: there is none."""


@dataclass(frozen=True)
class Content:
    """What an item holds.

    Attributes:
        picture: encoded.
        caption: None: it has none.
        metadata: what else is known of it, as JSON has it.
    """

    picture: bytes
    caption: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One item, not yet read.

    Attributes:
        key: its `image_path` in the metadata.
        load: reads it, on any thread; raises InvalidDocument where that fails.
    """

    key: str
    load: Callable[[], Content]


@dataclass(frozen=True)
class Fault:
    """What is left out, or incomplete, and why."""

    key: str
    reason: str
    embedded: bool = False
    """Whether there is a vector of it all the same."""


@dataclass(frozen=True)
class Place:
    """Where one item is.

    Attributes:
        source: the folder, archive or table.
        row: its number in there.
        offset: the byte at which it begins, where that helps to find it.
        entry: the names of its files, where it has names.
    """

    source: str
    row: int
    offset: int = 0
    entry: Entry | None = None


@dataclass(frozen=True)
class Range:
    """Items that follow each other in one source: rows `start` to `stop`; the other fields as in `Place`."""

    source: str
    start: int
    stop: int
    offset: int = 0
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Part:
    """One partition: where its items are, and what was found to be wrong there before reading."""

    ranges: tuple[Range, ...] = ()
    faults: tuple[Fault, ...] = field(default=())

    @property
    def count(self) -> int:
        """Of its items."""
        return sum(piece.stop - piece.start for piece in self.ranges)


class Reader(Protocol):
    """Input of one kind. Pickled, it can `read`, and holds no more than it needs for that."""

    captions: bool
    """Whether items have captions; known once `scan` is through."""

    def digest(self) -> str:
        """Names the input by what is there, without reading it: another one if files come, go or change in size."""
        ...

    def scan(self) -> Iterator[Place | Fault]:
        """All items in their order, which is the same for the same input."""
        ...

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        """The items of a range, in their order; a file of more than `most` bytes is not read.

        Raises:
            InvalidDocument: the source cannot be read any more.
        """
        ...

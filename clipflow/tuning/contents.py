"""What pictures hold, whatever their names: equal ones are known, and changed ones are not taken for what they were."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from clipflow.errors import InvalidDocument
from clipflow.relevance.album import Fault, Picture, digest


class Contents:
    """Digests of pictures, of which each is read once."""

    def __init__(self) -> None:
        self._known: dict[Picture, str | Fault] = {}

    def of(self, picture: Picture) -> str | Fault:
        """The digest of its bytes, or why it cannot be read."""
        if picture not in self._known:
            try:
                self._known[picture] = digest(picture.read())
            except InvalidDocument as error:
                self._known[picture] = Fault(picture.name, error.message)
        return self._known[picture]


def stamps(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """What each holds, in short: of a file the digest of its bytes; in a zip file, which is not read for it, CRC-32 and
    size.

    Raises:
        InvalidDocument: a file cannot be read.
    """
    members: dict[Path, dict[str, str]] = {}
    for source in {picture.source for picture in pictures if picture.member is not None}:
        with zipfile.ZipFile(source) as archive:
            members[source] = {item.filename: f'{item.CRC:08x}-{item.file_size}' for item in archive.infolist()}
    return tuple(
        digest(picture.read()) if picture.member is None else members[picture.source][picture.member]
        for picture in pictures
    )

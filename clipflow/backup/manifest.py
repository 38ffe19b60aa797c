"""What a backup says of itself: `manifest.json`, written last. A backup without one is none."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clipflow.errors import Conflict, Internal
from clipflow.store import layout

NAME = 'manifest.json'
FORMAT = 1
_PARTS = (layout.INDEXER, layout.FEEDBACK, layout.RANKER)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


def _inside(name: str) -> str:
    """A manifest may come from anywhere; what it names must stay in the workspace."""
    path = PurePosixPath(name)
    if str(path) != name or len(path.parts) < 2 or path.parts[0] not in _PARTS or '..' in path.parts or '\0' in name:
        raise ValueError(f'{name!r} is no file of a workspace')
    return name


class File(_Part):
    """Length in bytes, SHA-256 as hexadecimal digits, and of a database the number of its schema."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern='^[0-9a-f]{64}$')
    schema_: int | None = Field(None, alias='schema')


class Shard(_Part):
    """How many documents it held, and the number of its latest change."""

    documents: int = Field(ge=0)
    sequence: int = Field(ge=0)


class Model(_Part):
    """That made the vectors; empty names and 0 without documents."""

    name: str
    fingerprint: str
    precision: str
    dimension: int


class Manifest(_Part):
    """Of one backup. `shards` by their numbers; `of` is how many there are in all; `files` by their names."""

    format: int
    clipflow: str
    sqlite: str
    time: datetime
    model: Model
    of: int
    shards: dict[int, Shard]
    files: dict[Annotated[str, AfterValidator(_inside)], File]

    @property
    def documents(self) -> int:
        """In all shards."""
        return sum(shard.documents for shard in self.shards.values())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    @classmethod
    def parse(cls, data: bytes, place: str) -> Self:
        """Read one.

        Raises:
            Conflict: a newer clipflow has written it.
            Internal: it is damaged.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            found = _Version.read(data)
            if found > FORMAT:
                raise newer(place, 'format', found, FORMAT) from None
            first = error.errors()[0]
            where = '.'.join(str(part) for part in first['loc'])
            raise Internal(
                f'{place}/{NAME} is damaged ({where or "JSON"}: {first["msg"]}); take another backup'
            ) from None

    def check_versions(self, place: str, known: Mapping[str, int]) -> None:
        """Whether this version can use it; `known` is the newest schema of the databases below a name.

        Raises:
            Conflict: it cannot.
        """
        if self.format > FORMAT:
            raise newer(place, 'format', self.format, FORMAT)
        for name, file in self.files.items():
            newest = known.get(PurePosixPath(name).parts[0], 0)
            if file.schema_ is not None and file.schema_ > newest:
                raise newer(f'{place}/{name}', 'schema', file.schema_, newest)

    def dump(self) -> bytes:
        """For people too."""
        return self.model_dump_json(indent=2, by_alias=True).encode() + b'\n'


class _Version(BaseModel):
    format: int = 0

    @classmethod
    def read(cls, data: bytes) -> int:
        try:
            return cls.model_validate_json(data).format
        except ValidationError:
            return 0


def newer(place: str, what: str, found: int, known: int) -> Conflict:
    """The error about a backup that is ahead of this version."""
    return Conflict(
        f'{place} has {what} {found}, written by a newer clipflow; this one knows up to {known}; install that version'
    )

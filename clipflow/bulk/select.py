"""The best pictures of a folder of vectors for one query, and copies of their files."""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import templates, wire
from clipflow.bulk.encoding import LocalEncoder
from clipflow.bulk.mapped import Mapped
from clipflow.errors import DimensionMismatch, InvalidDocument, InvalidParameter, ReadOnly, StorageFull
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec


@dataclass(frozen=True)
class Found:
    """A result: its cosine, and what is known of the picture."""

    score: float
    id: str
    uri: str
    text: str


def encoded(query: str | bytes, spec: ModelSpec) -> NDArray[np.float32]:
    """The vector of a text or of a picture's file, [D], as the service makes it of a query.

    Raises:
        ClipflowError: it cannot be encoded, or the model cannot be loaded.
    """
    doc = Document(text=query) if isinstance(query, str) else Document(blob=query)
    settings = EncoderSettings.load()
    with LocalEncoder(spec, settings) as encoder:
        encoder.encode([doc], templates.usual(settings.templates, spec.templates))
    if error := wire.error_of(doc):
        raise error
    vector: NDArray[np.float32] = doc.embedding
    return vector


def best(
    source: Mapped, query: NDArray[np.float32], most: int | None, threshold: float | None, told: Callable[[int], None]
) -> list[Found]:
    """What fits a query best, the best first; of equal ones the first of the folder.

    Args:
        source: the folder; one block of it is in memory at a time.
        query: of unit length, [D].
        most: so many of the best; None: any number.
        threshold: cosine that all have at least.
        told: hears how many more vectors were compared.

    Raises:
        DimensionMismatch: the query is of another model.
    """
    if len(query) != source.dimension():
        raise DimensionMismatch(
            f'the model makes vectors of {len(query)} dimensions, {source.folder} holds those of {source.dimension()}; '
            'set CLIPFLOW_MODEL to the model that made them'
        )
    places, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for some, rows in source.vectors():
        cosines = rows @ query
        near = np.ones(len(some), dtype=bool) if threshold is None else cosines >= threshold
        places, scores = np.concatenate([places, some[near]]), np.concatenate([scores, cosines[near]])
        if most is not None and len(scores) > most:
            # Stable: what came first stays before what is equal.
            kept = np.sort(np.argsort(-scores, kind='stable')[:most])
            places, scores = places[kept], scores[kept]
        told(len(some))
    known = dict(zip(places.tolist(), source.records(places), strict=True))
    order = np.argsort(-scores, kind='stable')
    found = [(float(scores[n]), known[int(places[n])]) for n in order]
    return [Found(round(score, 6), record.id, record.uri, record.text) for score, record in found]


def copy(found: Sequence[Found], base: Path, target: Path) -> Iterator[tuple[Found, str]]:
    """Copy the files of results into a new folder; of the same name the later ones get a number.

    Args:
        found: results.
        base: where relative paths begin, unless there is such a file where this process runs.
        target: made here; must not exist, or be empty.

    Yields:
        A result whose file is not there, and why. Work goes on with the next.

    Raises:
        InvalidParameter: there is something in the target already.
        ReadOnly, StorageFull: nothing can be written there.
    """
    try:
        if target.exists() and any(target.iterdir()):
            raise InvalidParameter(f'{target} is not empty; name a folder that does not exist')
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnly(f'{target} cannot be written: {error.strerror}') from None
    taken: set[str] = set()
    for one in found:
        try:
            path = _path(one.uri or one.id, base)
        except InvalidDocument as error:
            yield one, error.message
            continue
        name = _free(path, taken)
        try:
            with path.open('rb') as source:
                _put(source, target / name)
        except OSError as error:
            yield one, f'it cannot be read: {error.strerror}'
            continue
        taken.add(name)


def _put(source: IO[bytes], file: Path) -> None:
    try:
        with file.open('xb') as copied:
            shutil.copyfileobj(source, copied)
    except OSError as error:
        file.unlink(missing_ok=True)
        kind = StorageFull if error.errno == errno.ENOSPC else ReadOnly
        raise kind(f'{file} cannot be written: {error.strerror}; what was copied before is there') from None


def _path(uri: str, base: Path) -> Path:
    """The file behind a URI or path; raises InvalidDocument if there is none on this machine."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit('')
    if parts.scheme in ('http', 'https', 's3', 'gs', 'data', 'zip', 'tar'):
        raise InvalidDocument('it is no file of this machine')
    given = Path(url2pathname(parts.path) if parts.scheme == 'file' else uri)
    for path in (given, base / given):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or with a NUL
            break
    raise InvalidDocument('there is no such file')


def _free(path: Path, taken: set[str]) -> str:
    name, number = path.name, 1
    while name in taken:
        number += 1
        name = f'{path.stem}-{number}{path.suffix}'
    return name

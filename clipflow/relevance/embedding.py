"""Vectors of pictures and texts from a model in this process, kept on disk: what was embedded once is not again.

Each way to run a model (fingerprint, runtime, device, precision) has a file of its own, and a vector is found by what
it was made from, so that a run that was interrupted goes on, and the next set that holds the same pictures begins with
them.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.bulk.encoding import LocalEncoder
from clipflow.errors import InvalidDocument, ReadOnly
from clipflow.relevance.album import Fault, Picture, digest
from clipflow.relevance.captions import CaptionSet
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec

_BATCH = 64
"""Documents that are encoded, and then kept, at once."""
_NAME = 80
"""Characters of a text that name it in a fault."""

Moved = Callable[[int], None]
"""Is told how many more are done."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of those items that have one.

    Attributes:
        vectors: float32 of unit length, [n, D].
        kept: place of each among what was asked for, ascending, [n].
        contents: digest of what each was made from, [n].
        faults: why the others have none.
    """

    vectors: NDArray[np.float32]
    kept: NDArray[np.int64]
    contents: tuple[str, ...]
    faults: tuple[Fault, ...]


class Embedding:
    """See the module. A context: the model and the file are let go at its end.

    Args:
        spec: of the model.
        encoding: how it runs, and below which directory vectors are kept.

    Raises:
        ClipflowError: the model cannot be loaded on what the settings ask for.
        ReadOnly: the file of vectors cannot be written.
    """

    def __init__(self, spec: ModelSpec, encoding: EncoderSettings) -> None:
        self._encoder = LocalEncoder(spec, encoding)
        self.description = self._encoder.description
        how = '-'.join(self.description.get(part, '') for part in ('runtime', 'device', 'precision'))
        try:
            self._kept = _Kept(encoding.cache.expanduser() / 'vectors' / f'{spec.fingerprint}-{how}.db')
        except ReadOnly:
            self._encoder.__exit__()
            raise

    def pictures(self, pictures: Sequence[Picture], moved: Moved) -> Embedded:
        """Vectors of pictures; one that cannot be read or decoded is a fault."""

        def load(place: int) -> tuple[str, Document]:
            blob = pictures[place].read()
            return f'picture {digest(blob)}', Document(id=str(place), blob=blob)

        return self._all([picture.name for picture in pictures], load, (), moved)

    def texts(self, texts: Sequence[str], templates: Sequence[str], moved: Moved) -> Embedded:
        """Vectors of texts, each put into the templates (sentences with a place `{}`; the mean of several)."""
        form = '\n'.join(templates)

        def load(place: int) -> tuple[str, Document]:
            text = texts[place]
            whole = '\n\n'.join([form, text])
            return f'text {digest(whole.encode())}', Document(id=str(place), text=text)

        names = [text if len(text) <= _NAME else f'{text[:_NAME]}...' for text in texts]
        return self._all(names, load, templates, moved)

    def _all(
        self,
        names: Sequence[str],
        load: Callable[[int], tuple[str, Document]],
        templates: Sequence[str],
        moved: Moved,
    ) -> Embedded:
        vectors = list[NDArray[np.float32]]()
        kept, contents, faults = list[int](), list[str](), list[Fault]()
        for start in range(0, len(names), _BATCH):
            places = range(start, min(start + _BATCH, len(names)))
            docs = dict[int, tuple[str, Document]]()
            for place in places:
                try:
                    docs[place] = load(place)
                except InvalidDocument as error:
                    faults.append(Fault(names[place], error.message))
            known, wrong = self._of(list(docs.values()), templates)
            for place, (key, _) in docs.items():
                if key in known:
                    vectors.append(known[key])
                    kept.append(place)
                    contents.append(key)
                else:
                    faults.append(Fault(names[place], wrong[key]))
            moved(len(places))
        rows = np.stack(vectors) if vectors else np.empty((0, self._encoder.dimension), np.float32)
        return Embedded(rows, np.asarray(kept, np.int64), tuple(contents), tuple(faults))

    def _of(
        self, docs: Sequence[tuple[str, Document]], templates: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
        """By key: the vectors of some Documents, and what is wrong with those that get none."""
        known = self._kept.get([key for key, _ in docs])
        new = {key: doc for key, doc in docs if key not in known}
        self._encoder.encode(list(new.values()), templates)
        made, wrong = dict[str, NDArray[np.float32]](), dict[str, str]()
        for key, doc in new.items():
            error = wire.error_of(doc)
            if error is None:
                made[key] = np.asarray(doc.embedding, np.float32)
            else:
                wrong[key] = error.message.removeprefix(f'{doc.id!r}: ')
        self._kept.put(made)
        return known | made, wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()
        self._encoder.__exit__()


class _Kept:
    """Vectors on disk by their key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another run may write into the same file.
            self._db = sqlite3.connect(path, isolation_level=None, timeout=60)
            self._db.execute('PRAGMA journal_mode = WAL')
            self._db.execute('PRAGMA synchronous = NORMAL')
            self._db.execute(
                'CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID'
            )

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        marks = ','.join('?' * len(keys))
        with self._translated():
            rows = self._db.execute(f'SELECT key, vector FROM vectors WHERE key IN ({marks})', list(keys)).fetchall()
        return {key: np.frombuffer(vector, np.float32) for key, vector in rows}

    def put(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        if not vectors:
            return
        with self._translated():
            self._db.execute('BEGIN IMMEDIATE')
            rows = [(key, vector.tobytes()) for key, vector in vectors.items()]
            self._db.executemany('INSERT OR REPLACE INTO vectors VALUES (?, ?)', rows)
            self._db.execute('COMMIT')

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise ReadOnly(
                f'vectors cannot be kept in {self._path}: {error}; delete it if it is damaged, or choose another '
                'CLIPFLOW_CACHE'
            ) from None


def owners(chosen: CaptionSet, shown: Embedded) -> NDArray[np.int64]:
    """The picture of each caption; of equal pictures the first, which would tie with the others."""
    owner, firsts = np.arange(len(chosen.pictures)), dict[str, int]()
    for place, content in zip(shown.kept.tolist(), shown.contents, strict=True):
        owner[place] = firsts.setdefault(content, place)
    return owner[[place for place, _ in chosen.captions]]


def distinct(chosen: CaptionSet, owner: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """The captions that say something new of their picture."""
    firsts = dict[tuple[int, str], int]()
    for line in lines.tolist():
        firsts.setdefault((int(owner[line]), chosen.captions[line][1]), line)
    return np.asarray(list(firsts.values()), np.int64)


def rows(part: Embedded, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """The vectors, [n, D], of [n] places that are all kept."""
    found: NDArray[np.float32] = part.vectors[np.searchsorted(part.kept, places)]
    return found

"""Items to embeddings: threads read and decode one minibatch while the model works on the one before."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np
from docarray import Document
from numpy.typing import NDArray

from clipflow import wire
from clipflow.batching import Embedder
from clipflow.bulk.embed.items import Fault, Item
from clipflow.errors import ClipflowError
from clipflow.preparation import Preparation
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import ModelSpec
from clipflow.work import share_of_cores

NO_CAPTION = 'has no caption; its text vector is that of the empty text'


@dataclass(frozen=True)
class Row:
    """What is known of an item that has a vector."""

    key: str
    caption: str | None
    metadata: dict[str, Any]


@dataclass
class Mapped:
    """A partition that is embedded.

    Attributes:
        images: of unit length, a row each item, [D] each.
        texts: the same of the captions; empty without captions.
        rows: in the same order.
        faults: what has no vector, or no caption.
        read_seconds, encode_seconds: spent waiting for items, and in the model.
    """

    images: list[NDArray[np.float16]] = field(default_factory=list)
    texts: list[NDArray[np.float16]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    read_seconds: float = 0.0
    encode_seconds: float = 0.0


@dataclass(frozen=True)
class _Ready:
    row: Row
    picture: Document
    text: Document


Moved = Callable[[int, int], None]
"""Is told how many more items are done, and how many of them failed."""


class Mapper:
    """See the module. A context: the model is freed at its end; all calls come from one thread.

    Args:
        spec: of the model.
        encoding: how it runs.
        reading: limits of pictures and texts.
        processes: how many of these share the machine.

    Raises:
        ClipflowError: the model cannot be loaded on what the settings ask for.
    """

    def __init__(
        self, spec: ModelSpec, encoding: EncoderSettings, reading: PreprocessorSettings, processes: int = 1
    ) -> None:
        self._preparation = Preparation(spec, reading)
        # Decoding wants the cores too: the model's threads may not spin while they wait for each other.
        opened = open_session(spec, encoding, share_of_cores(encoding.threads, processes), shared=True)
        self._session = opened.session
        self._embedder = Embedder(spec, self._session, encoding.batch_size)
        self._batch_size = encoding.batch_size
        self._decoding = ThreadPoolExecutor(share_of_cores(reading.threads, processes), 'decode')
        self._reading = ThreadPoolExecutor(1, 'read')

    @property
    def description(self) -> dict[str, str]:
        """Runtime, device, precision and version."""
        return self._session.description

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self._session.dimension

    def map(self, items: Iterator[Item | Fault], texts: bool, moved: Moved) -> Mapped:
        """Embed the items of one partition.

        A minibatch is what is sound among `batch_size` items that follow each other. So the same partition gives the
        same bytes, whatever was done before it.
        """
        done = Mapped()
        # A partition before this one may have made it smaller, on a device without memory for more.
        self._embedder.batch_size = self._batch_size
        ahead = self._reading.submit(self._begin, items, texts)
        while True:
            begun = time.perf_counter()
            batch = ahead.result()
            if not batch:
                break
            ahead = self._reading.submit(self._begin, items, texts)
            found = [future.result() for future in batch]
            read = time.perf_counter()
            before = len(done.rows)
            self._encode(found, texts, done)
            done.read_seconds += read - begun
            done.encode_seconds += time.perf_counter() - read
            moved(len(found), len(found) - (len(done.rows) - before))
        return done

    def _begin(self, items: Iterator[Item | Fault], texts: bool) -> list[Future[_Ready | Fault]]:
        return [self._decoding.submit(self._prepare, item, texts) for item in islice(items, self._batch_size)]

    def _prepare(self, item: Item | Fault, texts: bool) -> _Ready | Fault:
        if isinstance(item, Fault):
            return item
        try:
            content = item.load()
        except ClipflowError as error:
            return Fault(item.key, error.message)
        caption = content.caption
        if caption is None and isinstance(said := content.metadata.get('caption'), str):
            # JSON can hold half letters, of which no text can be made.
            caption = said.encode('utf-8', 'replace').decode('utf-8')
        picture, text = Document(id='picture', blob=content.picture), Document(id='caption', text=caption or '')
        for doc in (picture, text) if texts and caption else (picture,):
            self._preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
            if (reason := _reason(doc)) is not None:
                return Fault(item.key, reason)
        return _Ready(Row(item.key, caption or None, content.metadata), picture, text)

    def _encode(self, found: list[_Ready | Fault], texts: bool, done: Mapped) -> None:
        ready = [one for one in found if isinstance(one, _Ready)]
        self._embedder.embed([one.picture for one in ready])
        vectors = iter(self._embedder.text_vectors([one.text.text for one in ready]) if texts and ready else ())
        for one in found:
            if isinstance(one, Fault):
                done.faults.append(one)
                continue
            text = next(vectors, None)
            if (reason := _reason(one.picture)) is not None:
                done.faults.append(Fault(one.row.key, reason))
                continue
            done.images.append(np.asarray(one.picture.embedding, np.float16))
            done.rows.append(one.row)
            if text is not None:
                done.texts.append(text.astype(np.float16))
                if one.row.caption is None:
                    done.faults.append(Fault(one.row.key, NO_CAPTION, embedded=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)
        self._session.close()


def _reason(doc: Document) -> str | None:
    """Why a Document has failed, if it has."""
    error = wire.error_of(doc)
    return None if error is None else error.message.removeprefix(f'{doc.id!r}: ')

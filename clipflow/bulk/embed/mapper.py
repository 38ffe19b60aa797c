"""Items to embeddings: threads read and decode one minibatch while the model works on the one before."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clipflow.batching import Embedder
from clipflow.bulk.embed.decoding import Decoder, Ready, Row, reason_of
from clipflow.bulk.embed.items import Fault, Item
from clipflow.sessions.registry import open_session
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import ModelSpec
from clipflow.work import share_of_cores

NO_CAPTION = 'has no caption; its text vector is that of the empty text'


@dataclass
class Mapped:
    """Items that are embedded: a minibatch, or a partition.

    Attributes:
        images: of unit length, a row each item; [n, D] for each minibatch, unless it is empty.
        texts: the same of the captions; nothing without captions.
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

    def add(self, more: 'Mapped') -> None:
        """Append the minibatch that follows."""
        self.images += more.images
        self.texts += more.texts
        self.rows += more.rows
        self.faults += more.faults
        self.read_seconds += more.read_seconds
        self.encode_seconds += more.encode_seconds


Moved = Callable[[int, int], None]
"""Is told how many more items are done, and how many of them failed."""


class Encoder:
    """The model, on minibatches that are decoded. A context: it is freed at its end; all calls come from one thread.

    Args:
        spec: of the model.
        encoding: how it runs.
        processes: how many of these share the machine.

    Raises:
        ClipflowError: the model cannot be loaded on what the settings ask for.
    """

    def __init__(self, spec: ModelSpec, encoding: EncoderSettings, processes: int = 1) -> None:
        # Decoding wants the cores too: the model's threads may not spin while they wait for each other.
        opened = open_session(spec, encoding, share_of_cores(encoding.threads, processes), shared=True)
        self._session = opened.session
        self._embedder = Embedder(spec, self._session, encoding.batch_size)
        self._batch_size = encoding.batch_size

    @property
    def description(self) -> dict[str, str]:
        """Runtime, device, precision and version."""
        return self._session.description

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self._session.dimension

    def begin(self) -> None:
        """Another partition: one before it may have made minibatches smaller, on a device without memory for more."""
        self._embedder.batch_size = self._batch_size

    def encode(self, found: Sequence[Ready | Fault], texts: bool) -> Mapped:
        """Embed a minibatch; what was no longer sound comes back as a fault."""
        begun, done = time.perf_counter(), Mapped()
        images, captions = list[NDArray[np.float16]](), list[NDArray[np.float16]]()
        ready = [one for one in found if isinstance(one, Ready)]
        self._embedder.embed([one.picture for one in ready])
        vectors = iter(self._embedder.text_vectors([one.text.text for one in ready]) if texts and ready else ())
        for one in found:
            if isinstance(one, Fault):
                done.faults.append(one)
                continue
            text = next(vectors, None)
            if (reason := reason_of(one.picture)) is not None:
                done.faults.append(Fault(one.row.key, reason))
                continue
            images.append(np.asarray(one.picture.embedding, np.float16))
            done.rows.append(one.row)
            if text is not None:
                captions.append(text.astype(np.float16))
                if one.row.caption is None:
                    done.faults.append(Fault(one.row.key, NO_CAPTION, embedded=True))
        done.images += [np.stack(images)] if images else []
        done.texts += [np.stack(captions)] if captions else []
        done.encode_seconds = time.perf_counter() - begun
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


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
        self._decoder = Decoder(spec, reading)
        self.encoder = Encoder(spec, encoding, processes)
        self._batch_size = encoding.batch_size
        self._decoding = ThreadPoolExecutor(share_of_cores(reading.threads, processes), 'decode')
        self._reading = ThreadPoolExecutor(1, 'read')

    def map(self, items: Iterator[Item | Fault], texts: bool, moved: Moved) -> Mapped:
        """Embed the items of one partition.

        A minibatch is what is sound among `batch_size` items that follow each other. So the same partition gives the
        same bytes, whatever was done before it.
        """
        done = Mapped()
        self.encoder.begin()
        ahead = self._reading.submit(self._begin, items, texts)
        while True:
            begun = time.perf_counter()
            batch = ahead.result()
            if not batch:
                break
            ahead = self._reading.submit(self._begin, items, texts)
            found = [future.result() for future in batch]
            done.read_seconds += time.perf_counter() - begun
            more = self.encoder.encode(found, texts)
            done.add(more)
            moved(len(found), len(found) - len(more.rows))
        return done

    def _begin(self, items: Iterator[Item | Fault], texts: bool) -> list[Future[Ready | Fault]]:
        return [self._decoding.submit(self._decoder.decode, item, texts) for item in islice(items, self._batch_size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)
        self.encoder.__exit__()

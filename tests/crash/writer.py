"""A client that writes without pause and remembers what was acknowledged."""

import itertools
import threading
from types import TracebackType
from typing import Self

import numpy as np
from docarray import Document, DocumentArray

from clipflow.errors import ClipflowError
from clipflow_client import Client
from service import Service

_BATCH = 4
_DELETE_EVERY = 5


class Writer:
    """Indexes batches, and now and then deletes an older one, each once and without retries.

    `stored` and `deleted` hold the ids whose last write was acknowledged; the fate of the others is open. The first
    number keeps the ids of several writers apart.
    """

    def __init__(self, service: Service, number: int = 0) -> None:
        self.stored: set[str] = set()
        self.deleted: set[str] = set()
        self.errors: list[ClipflowError] = []
        self.requests = 0
        self.waits = False
        """Whether a request is on its way."""
        self._number = number
        self._client = Client(service.grpc, retries=0, timeout=20)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        generator = np.random.default_rng(self._number)
        answered = True
        for turn in itertools.count():
            if self._stop.is_set():
                return
            ids = [f'{self._number}/{turn}/{i}' for i in range(_BATCH)]
            try:
                # While a stage is away no delete is tried: what may be gone or not is nothing that can be checked.
                if answered and turn % _DELETE_EVERY == _DELETE_EVERY - 1 and self.stored:
                    gone = sorted(self.stored)[:: max(1, len(self.stored) // 3)]
                    self.stored -= set(gone)  # while the answer is open
                    self.waits = True
                    self._client.delete(gone)
                    self.deleted |= set(gone)
                else:
                    vectors = generator.normal(size=(_BATCH, 32))
                    pairs = zip(ids, vectors, strict=True)
                    docs = [Document(id=name, embedding=vector, tags={'turn': turn}) for name, vector in pairs]
                    self.waits = True
                    reply = self._client.post('/index', DocumentArray(docs))
                    self.stored |= {doc.id for doc in reply if '__error__' not in doc.tags}
                self.requests += 1
                answered = True
            except ClipflowError as error:
                answered = False
                self.errors.append(error)
                self._stop.wait(0.01)  # do not spin while a stage is away
            finally:
                self.waits = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def assert_kept(service: Service, stored: set[str], deleted: set[str]) -> None:
    """Everything acknowledged is there, by id and by search; nothing that was deleted is."""
    with Client(service.grpc) as client:
        found = set(client.get(sorted(stored | deleted)))
        assert stored - found == set(), 'acknowledged and not stored'
        assert deleted & found == set(), 'deleted and still stored'
        matches = {match.id for match in client.search(np.ones(32), limit=10_000)}
        assert stored - matches == set(), 'acknowledged and not found by a search'
        assert deleted & matches == set(), 'deleted and found by a search'

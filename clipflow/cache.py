"""Embeddings of the texts that were asked for last: a query that comes again costs no model."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Encoded(NamedTuple):
    """The unit vector of a text, [D], and whether the text was longer than the model's context and was cut."""

    vector: NDArray[np.float32]
    cut: bool


class TextCache:
    """What was encoded, the `size` latest used texts. Thread-safe. It lives and dies with one model's session.

    Texts are known by a digest and vectors are copied, so that an entry takes the bytes of a vector, however long the
    text and however large the call. `hits` and `misses` count texts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._texts: OrderedDict[bytes, Encoded] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """What is there of some texts."""
        found: dict[str, Encoded] = {}
        with self._lock:
            for text in texts:
                key = _key(text)
                encoded = self._texts.get(key)
                if encoded is None:
                    self.misses += 1
                else:
                    self.hits += 1
                    self._texts.move_to_end(key)
                    found[text] = encoded
        return found

    def put(self, encoded: Mapping[str, Encoded]) -> None:
        """Keep what is finite, and forget what was not used for longest."""
        with self._lock:
            for text, one in encoded.items():
                if np.isfinite(one.vector).all():
                    key = _key(text)
                    self._texts[key] = Encoded(one.vector.copy(), one.cut)
                    self._texts.move_to_end(key)
                    if len(self._texts) > self._size:
                        self._texts.popitem(last=False)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).digest()

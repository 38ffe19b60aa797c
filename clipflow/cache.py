"""Embeddings of the texts that were asked for last: a query that comes again costs no model."""

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
    """What was encoded, by text, the `size` latest used. Thread-safe. It lives and dies with one model's session.

    `hits` and `misses` count texts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._texts: OrderedDict[str, Encoded] = OrderedDict()
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
                encoded = self._texts.get(text)
                if encoded is None:
                    self.misses += 1
                else:
                    self.hits += 1
                    self._texts.move_to_end(text)
                    found[text] = encoded
        return found

    def put(self, encoded: Mapping[str, Encoded]) -> None:
        """Keep them, and forget those that were not used for longest."""
        with self._lock:
            for text, one in encoded.items():
                self._texts[text] = one
                self._texts.move_to_end(text)
            while len(self._texts) > self._size:
                self._texts.popitem(last=False)

"""The contract of a session. Nothing outside this package knows a runtime."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipflow.errors import Unavailable, first_line
from clipflow.weights import ModelSpec

_log = logging.getLogger('clipflow.sessions')

Tower = Literal['image', 'text']
IMAGE: Tower = 'image'
TEXT: Tower = 'text'
TOWERS = (IMAGE, TEXT)

T = TypeVar('T')


class OutOfMemory(Exception):
    """The device has no room for a call with so many items; what it took for them is free again."""


@dataclass(frozen=True)
class Options:
    """How a session runs."""

    device: str
    """cpu, cuda or mps."""
    precision: str
    """float32, bfloat16, float16 or int8: what the model computes with. Vectors are float32 always."""
    threads: int
    """Of the model."""
    shared: bool
    """Whether other replicas compute on this host: then no thread may keep a core that it does not need."""
    cache: Path
    """Where exported files are kept."""
    url: str = ''
    """Host and port of a server that runs the model."""
    served: str = ''
    """What its models' names begin with."""
    timeout: float = 30.0
    """Seconds for one call of it, with repetitions."""
    compiled: bool = False
    """Whether torch compiles the towers first."""


class Session(Protocol):
    """Prepared input to unit vectors, on one runtime. N items, L tokens, D dimensions, pictures of H x W.

    All calls come from the thread that has loaded it.
    """

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def description(self) -> dict[str, str]:
        """Runtime, device, precision and version, for /status."""
        ...

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, H, W, 3] to [N, D]; raises OutOfMemory for an N that is too large."""
        ...

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """Two of [N, L] to [N, D]; raises OutOfMemory for an N that is too large."""
        ...

    def release(self, tower: Tower) -> None:
        """Free a tower; the next call that needs it loads it again."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Towers(Generic[T]):
    """The towers of a session, loaded when they are asked for.

    Args:
        load: makes one.
        loaded: what is there already.
    """

    def __init__(self, load: Callable[[Tower], T], loaded: Mapping[Tower, T] | None = None) -> None:
        self._load = load
        self._loaded = dict(loaded or {})
        self._released: set[Tower] = set()

    def __getitem__(self, tower: Tower) -> T:
        """Raises Unavailable for one that was there before and cannot be loaded again."""
        if tower not in self._loaded:
            try:
                self._loaded[tower] = self._load(tower)
            except Exception as error:  # what runtimes raise
                if tower not in self._released:
                    raise
                _log.exception('the %s tower cannot be loaded again', tower)
                raise Unavailable(f'the {tower} tower cannot be loaded again ({first_line(error)})') from None
        return self._loaded[tower]

    def release(self, tower: Tower) -> None:
        """Forget one; what it holds is freed when nobody else has it."""
        self._loaded.pop(tower, None)
        self._released.add(tower)

    def close(self) -> None:
        """Forget all."""
        self._loaded.clear()


def grey(spec: ModelSpec) -> NDArray[np.uint8]:
    """One grey picture, [1, H, W, 3]: for the first call, which is slow and tells the dimension."""
    return np.full((1, spec.picture.height, spec.picture.width, 3), 127, dtype=np.uint8)

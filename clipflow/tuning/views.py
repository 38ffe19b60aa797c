"""Pictures as the model's input: decoded once, kept as uint8 where that fits, each time cut a little differently."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipflow.errors import ClipflowError
from clipflow.pictures import decode_for, prepare
from clipflow.preprocessing import PictureSpec
from clipflow.relevance.captions import Fault, Picture
from clipflow.work import cores

Pixels = NDArray[np.uint8]
"""[N, height, width, 3]."""

MAX_PIXELS = 100_000_000
ROOM = 8 / 7
"""A picture to be cut is kept by this factor larger than the model's input: 256 pixels for 224."""
SMALLEST = 0.6
"""Part of the kept area that a cut has at least."""
MEGABYTE = 1024 * 1024


class Views:
    """Pictures of one collection.

    Args:
        pictures: the collection.
        spec: what the model asks for.
        cut: whether `draw` will be called; they are then kept larger.
        budget: bytes that may be kept.
    """

    def __init__(self, pictures: Sequence[Picture], spec: PictureSpec, cut: bool, budget: int) -> None:
        self._pictures, self._spec = pictures, spec
        self._kept_spec = _larger(spec) if cut else spec
        shape = (len(pictures), self._kept_spec.height, self._kept_spec.width, 3)
        self._kept = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= budget else None
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix='views')

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self._kept is None else self._kept.nbytes

    def load(self, moved: Callable[[int], None]) -> list[tuple[int, Fault]]:
        """Decode all once, so that what is damaged is known before the work; places and reasons of those."""
        faults = []

        def one(place: int) -> Fault | None:
            try:
                pixels = self._decode(place)
            except ClipflowError as error:
                return Fault(self._pictures[place].name, error.message)
            if self._kept is not None:
                self._kept[place] = pixels
            return None

        for place, fault in enumerate(self._pool.map(one, range(len(self._pictures)))):
            if fault is not None:
                faults.append((place, fault))
            moved(1)
        return faults

    def whole(self, places: Sequence[int]) -> Pixels:
        """As the service would prepare them (of collections that are kept larger: nearly so)."""
        return np.stack(list(self._pool.map(lambda place: self._fit(self._get(place), None), places)))

    def draw(self, places: Sequence[int], mirrored: Sequence[bool], seeds: Sequence[tuple[int, ...]]) -> Pixels:
        """A random part of each, the same for the same seed.

        Args:
            places: of the pictures.
            mirrored: which of them may be mirrored.
            seeds: of each, such as the run's seed, the epoch and the place.
        """

        def one(place: int, may_mirror: bool, seed: tuple[int, ...]) -> Pixels:
            drawn = np.random.default_rng(seed).random(4)
            pixels = self._get(place)
            height, width = pixels.shape[:2]
            side = np.sqrt(SMALLEST + (1 - SMALLEST) * drawn[0])
            left, top = drawn[1] * (1 - side) * width, drawn[2] * (1 - side) * height
            view = self._fit(pixels, (left, top, left + side * width, top + side * height))
            return view[:, ::-1] if may_mirror and drawn[3] < 0.5 else view

        return np.stack(list(self._pool.map(one, places, mirrored, seeds)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _get(self, place: int) -> Pixels:
        return self._decode(place) if self._kept is None else self._kept[place]

    def _decode(self, place: int) -> Pixels:
        side = self._kept_spec.resize_shortest or max(self._kept_spec.height, self._kept_spec.width)
        image, filled = decode_for(side, self._pictures[place].read(), MAX_PIXELS)
        return prepare(image, self._kept_spec, filled)

    def _fit(self, pixels: Pixels, box: tuple[float, float, float, float] | None) -> Pixels:
        size = (self._spec.width, self._spec.height)
        if box is None and pixels.shape[:2] == size[::-1]:
            return pixels
        image = Image.fromarray(pixels).resize(size, Image.Resampling(self._spec.resample), box)
        return np.asarray(image)


def _larger(spec: PictureSpec) -> PictureSpec:
    shortest = spec.resize_shortest
    return replace(
        spec,
        height=round(spec.height * ROOM),
        width=round(spec.width * ROOM),
        resize_shortest=None if shortest is None else round(shortest * ROOM),
    )

"""How close two sessions are: cosines between their vectors of the same pictures and texts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipflow.sessions.base import Session
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec

_PICTURES = 16
_TEXTS = (
    'a cat',
    'a dog in the snow',
    'two people ride their bicycles along the sea in the evening',
    'red',
    'an old stone bridge over a river, in black and white',
    'a cup of coffee on a wooden table',
    '1234567890',
    'a street at night with many lights, cars, and a crowd in front of a theatre whose name cannot be read',
)


@dataclass(frozen=True)
class Closeness:
    """The worst and the mean cosine over some inputs; 1 is the same."""

    worst: float
    mean: float


def probes(spec: ModelSpec) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]:
    """Pictures of soft shapes [N, H, W, 3], and token ids and mask of sentences [N, L]; the same every time."""
    rng = np.random.default_rng(0)
    size = (spec.picture.width, spec.picture.height)
    shapes = [Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)) for _ in range(_PICTURES)]
    pixels = np.stack([np.asarray(shape.resize(size, Image.Resampling.BICUBIC)) for shape in shapes])
    tokens = Tokenizer(spec)(_TEXTS)
    return pixels, tokens.ids, tokens.mask


def compare(spec: ModelSpec, one: Session, other: Session) -> dict[str, Closeness]:
    """Of pictures (`image`) and of texts (`text`)."""
    pixels, ids, mask = probes(spec)
    return {
        'image': closeness(one.encode_images(pixels), other.encode_images(pixels)),
        'text': closeness(one.encode_texts(ids, mask), other.encode_texts(ids, mask)),
    }


def closeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> Closeness:
    """Of two arrays of unit vectors, [N, D]."""
    cosines = (one.astype(np.float64) * other).sum(axis=1)
    return Closeness(round(float(cosines.min()), 6), round(float(cosines.mean()), 6))

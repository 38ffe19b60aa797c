"""From examples to batches: which caption, which view of the picture, and who is whose negative."""

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipflow.tuning import batches, losses
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.data import Example
from clipflow.tuning.parallel import Group
from clipflow.tuning.views import Views

_SIDES = re.compile(r'\b(left|right)\b', re.IGNORECASE)
_VIEW = 3
"""Beside the numbers in `batches`, so that nothing is drawn by the same seed."""


@dataclass(frozen=True)
class Lessons:
    """What is learned from.

    Attributes:
        examples: those whose pictures can be decoded.
        kinds: of all pictures: equal numbers for equal ones.
        views: of the same pictures.
        digest: of all this, so that a run goes on with what it began with.
    """

    examples: tuple[Example, ...]
    kinds: NDArray[np.int64]
    views: Views
    digest: str


@dataclass(frozen=True)
class Batch:
    """One step's pairs; `pixels` are those of this process only.

    Attributes:
        texts: N of them, the first N of `pictures` belong to them.
        pictures: M places.
        pixels: of this process' share of the pictures.
        negatives: [N, M], see `losses`.
    """

    texts: list[str]
    pictures: list[int]
    pixels: NDArray[np.uint8]
    negatives: Tensor


class Loader:
    """Makes batches of examples.

    Args:
        config: of the run.
        lessons: what is learned from.
        group: of the processes that share a batch.
    """

    def __init__(self, config: TuneConfig, lessons: Lessons, group: Group) -> None:
        self._config, self._lessons, self._group = config, lessons, group
        self._positives: dict[str, set[int]] = {}
        for example in lessons.examples:
            for text in example.texts:
                self._positives.setdefault(text, set()).add(int(lessons.kinds[example.picture]))

    def batch(self, places: NDArray[np.int64], epoch: int) -> Batch:
        """The pairs of these examples, as this epoch draws them; safe to call in a thread."""
        config, examples = self._config, self._lessons.examples
        some = [(int(place), examples[place]) for place in places]
        texts = [batches.drawn_text(example.texts, config.seed, epoch, place) for place, example in some]
        pictures = [example.picture for _, example in some]
        rejected = [
            batches.drawn_rejected(example.rejected, config.rejected, config.seed, epoch, place)
            for place, example in some
        ]
        extra = list(dict.fromkeys(place for several in rejected for place in several))
        pictures += extra
        share = self._group.share(len(pictures))
        if config.augment:
            mirrored = [not _SIDES.search(text) for text in texts] + [True] * len(extra)
            seeds = [(config.seed, epoch, _VIEW, number, place) for number, place in enumerate(pictures)]
            pixels = self._lessons.views.draw(pictures[share], mirrored[share], seeds[share])
        else:
            pixels = self._lessons.views.whole(pictures[share])
        return Batch(texts, pictures, pixels, self._negatives(texts, pictures, rejected))

    def _negatives(self, texts: list[str], pictures: list[int], rejected: list[list[int]]) -> Tensor:
        kinds = self._lessons.kinds[pictures]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        found = losses.negatives_of(torch.from_numpy(kinds), torch.tensor([numbers[text] for text in texts]))
        for row, (text, own) in enumerate(zip(texts, rejected, strict=True)):
            # What belongs to this text elsewhere in the data is none of its negatives either.
            found[row] &= torch.from_numpy(~np.isin(kinds, list(self._positives[text])))
            if self._config.loss == 'ranking' and own:
                found[row] &= torch.from_numpy(np.isin(pictures, own))
        return found

"""A model in the middle of its training, measured on tasks."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipflow.errors import InvalidParameter
from clipflow.relevance.captions import Fault
from clipflow.tokens import Tokenizer
from clipflow.tuning.parallel import Group
from clipflow.tuning.tasks import Measures, Task
from clipflow.tuning.towers import TwoTowers
from clipflow.tuning.views import Views
from clipflow.weights import ModelSpec

Vectors = NDArray[np.float32]
LEAST = 2
"""Pictures of a task: of one alone every recall is 1."""


class Runner:
    """Runs the towers on what stands in memory as NumPy.

    Args:
        model: on its device.
        spec: of the model.
        device: of the model.
        calculation: context of every run, such as autocast.
        part: rows that are computed at once.
        group: of the processes that share the work.
    """

    def __init__(
        self,
        model: TwoTowers,
        spec: ModelSpec,
        device: torch.device,
        *,
        calculation: Callable[[], AbstractContextManager[object]],
        part: int,
        group: Group,
    ) -> None:
        self.model, self.device, self.calculation, self.part, self.group = model, device, calculation, part, group
        self._tokenizer = Tokenizer(spec)

    def images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """[N, H, W, 3] to [N, D]."""
        found: Tensor = self.model.image(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))
        return found

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of N texts, [N, L], on the device."""
        tokens = self._tokenizer(texts)
        ids, mask = (torch.from_numpy(array).long().to(self.device) for array in (tokens.ids, tokens.mask))
        return ids, mask

    def all_images(self, views: Views, places: Sequence[int], moved: Callable[[int], None]) -> Vectors:
        """Of pictures as they are, [N, D]; the processes share them."""
        return self._all(lambda rows: self.images(views.whole(places[rows])), len(places), moved)

    def all_texts(self, texts: Sequence[str], moved: Callable[[int], None]) -> Vectors:
        """Of texts, [N, D]; the processes share them."""
        return self._all(lambda rows: self.model.text(*self.tokens(texts[rows])), len(texts), moved)

    def _all(self, encode: Callable[[slice], Tensor], count: int, moved: Callable[[int], None]) -> Vectors:
        # Fewer than processes: each does all of them.
        group = self.group if count >= self.group.size else Group()
        share = group.share(count)
        found = []
        for start in range(share.start, share.stop, self.part):
            rows = slice(start, min(start + self.part, share.stop))
            with torch.no_grad(), self.calculation():
                found.append(encode(rows).float())
            moved(rows.stop - rows.start)
        vectors: Vectors = group.gather(torch.cat(found), count).cpu().numpy()
        return vectors


class Exam:
    """A task with its pictures in memory.

    Args:
        title: for people.
        task: what is measured.
        views: of the task's pictures.
        moved: is told how many pictures are decoded.

    Raises:
        InvalidParameter: too few of the pictures can be decoded to measure anything.
    """

    def __init__(self, title: str, task: Task, views: Views, moved: Callable[[int], None]) -> None:
        self.title, self._views = title, views
        damaged = views.load(moved)
        self.faults = [fault for _, fault in damaged]
        bad = {place for place, _ in damaged}
        self._places = [place for place in range(len(task.pictures)) if place not in bad]
        self.task = task.part(self._places) if bad and self._places else task
        if len(self._places) < LEAST or not self.task.texts:
            first = f', such as {self.faults[0].name}: {self.faults[0].reason}' if self.faults else ''
            raise InvalidParameter(f'{title}: too few pictures that a text belongs to can be decoded{first}')

    @property
    def size(self) -> int:
        """Pictures and texts that a measurement encodes."""
        return len(self._places) + len(self.task.texts)

    def take(self, runner: Runner, moved: Callable[[int], None]) -> Measures:
        """Measure the model as it is now. All processes get the same."""
        images = runner.all_images(self._views, self._places, moved)
        texts = runner.all_texts(self.task.texts, moved)
        if not (np.isfinite(images).all() and np.isfinite(texts).all()):
            raise InvalidParameter(
                'the training has diverged: the model gives vectors that are not finite; '
                'begin again in another folder with a lower learning_rate'
            )
        return {name: value for name, value in self.task.measure(images, texts).items() if math.isfinite(value)}


def faults_of(exams: Sequence[Exam]) -> list[Fault]:
    """What was left out of all of them."""
    return [fault for exam in exams for fault in exam.faults]

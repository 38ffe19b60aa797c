"""A fine-tuning run from its configuration to its folder."""

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clipflow.errors import InvalidParameter
from clipflow.relevance.album import digest
from clipflow.relevance.captions import Fault
from clipflow.sessions.machine import this_machine
from clipflow.sessions.towers import FORMATS
from clipflow.tuning import data as reading
from clipflow.tuning import folder, mixing, strategies
from clipflow.tuning.config import Faults, TuneConfig
from clipflow.tuning.journal import Journal
from clipflow.tuning.lessons import Lessons
from clipflow.tuning.measuring import LEAST, Exam, Runner, faults_of
from clipflow.tuning.parallel import Group
from clipflow.tuning.tasks import Task, halves
from clipflow.tuning.towers import TwoTowers, save
from clipflow.tuning.trainer import Trainer, calculation_of
from clipflow.tuning.views import MEGABYTE, Views
from clipflow.weights import ModelSpec, load_spec

_NO_MEMORY = "can't allocate memory"
"""PyTorch has no type of its own for this error of its allocator for the CPU."""
_PACKAGES = ('tensorboard', 'matplotlib', 'peft')


@dataclass(frozen=True)
class Ready:
    """What was checked and is there."""

    config: TuneConfig
    spec: ModelSpec
    model: TwoTowers
    data: reading.Data
    old_task: Task | None
    device: torch.device
    precision: str


def check(config: TuneConfig, processes: int = 1) -> Ready:
    """Find all that is wrong, before anything is trained or written.

    Args:
        config: of the run.
        processes: that share it.

    Raises:
        InvalidParameter: a sentence for each fault.
    """
    faults = Faults()
    spec = model = data = old = None
    with faults:
        spec = load_spec(config.model)
        model = TwoTowers(spec)
        strategies.check(model, config)
    with faults:
        data = reading.read(config)
        count = len(data.examples)
        faults.check(
            count >= config.batch,
            f'{count:,} pairs to learn from are too few for batch={config.batch}; make it smaller',
        )
        for title, task in (('validation', data.validation), ('test', data.test)):
            few = task is not None and len(task.pictures) < LEAST
            faults.check(not few, f'the {title} data need at least two pictures: of one, all recalls are 1')
    with faults:
        old = reading.read_old_task(config)
        few = old is not None and len(old.pictures) < 2 * LEAST
        faults.check(not few, 'the old task needs at least four pictures, two for each half')
    with faults:
        folder.check(config)
    faults.check(
        config.batch >= 2 * processes,
        f'batch={config.batch} is too small for {processes} processes: two pairs for each',
    )
    for package in _PACKAGES:
        needed = package != 'peft' or config.strategy == 'lora'
        there = importlib.util.find_spec(package) is not None
        faults.check(there or not needed, f'the package {package} is missing: pip install "clipflow[tuning]"')
    has_cuda = torch.cuda.is_available()
    faults.check(config.device != 'cuda' or has_cuda, 'device=cuda, but PyTorch sees no CUDA device here')
    faults.finish()
    assert spec is not None
    assert model is not None
    assert data is not None
    device = torch.device('cuda' if has_cuda and config.device != 'cpu' else 'cpu')
    fast = torch.cuda.is_bf16_supported() if device.type == 'cuda' else this_machine().bfloat16
    precision = ('bfloat16' if fast else 'float32') if config.precision == 'auto' else config.precision
    return Ready(config, spec, model, data, old, device, precision)


class Run:
    """The work itself, in this process' part.

    Args:
        ready: as `check` gives it.
        group: the processes that share the work.
        journal: where it is told.
    """

    def __init__(self, ready: Ready, group: Group, journal: Journal) -> None:
        self._ready, self._group, self._journal = ready, group, journal
        self._budget = ready.config.cache_mb * MEGABYTE // group.size
        self._views: list[Views] = []
        self.faults: list[Fault] = list(ready.data.faults)

    def finetune(self) -> dict[str, Any]:
        """Train, mix, measure, save; what the report holds. What is left out stands in `faults`.

        Raises:
            InvalidParameter: too little can be decoded, the training has diverged, or the memory is too small.
            Conflict: the folder is of a run on other data.
            StorageFull, ReadOnly: the folder cannot be written.
        """
        try:
            return self._finetune()
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and _NO_MEMORY not in str(error):
                raise
            part, device = self._ready.config.part, self._ready.device.type
        raise InvalidParameter(
            f'{device} has too little memory for part={part}; set a lower part, or checkpointing=true, and the same '
            'command goes on'
        )

    def _finetune(self) -> dict[str, Any]:
        ready, config, journal = self._ready, self._ready.config, self._journal
        begun = time.monotonic()
        lessons = self._lessons()
        validation = self._exam('validation', ready.data.validation)
        selecting, reporting = [validation], [validation]
        if ready.data.test is not None:
            reporting = [self._exam('test', ready.data.test)]
        if ready.old_task is not None:
            one, other = halves(ready.old_task)
            selecting.append(self._exam('old task, to choose on', one))
            reporting.append(self._exam('old task', other))
        self.faults += faults_of([*selecting, *(exam for exam in reporting if exam is not validation)])

        model = ready.model
        start = {name: tensor.detach().clone() for name, tensor in model.weights().items()}
        learning = strategies.choose(model, config)
        if config.checkpointing:
            for tower in (model.image, model.text):
                strategies.checkpoint_blocks(tower)
        model.to(ready.device)
        calculation = calculation_of(ready.precision, ready.device)
        runner = Runner(model, ready.spec, ready.device, calculation=calculation, part=config.part, group=self._group)
        trainer = Trainer(config, runner, learning, lessons=lessons, validation=validation, journal=journal)
        trainer.run()
        if config.strategy == 'lora':
            strategies.merge_lora(model)
        number = FORMATS[config.save_precision]
        tuned = mixing.rounded(model.weights(), torch.float32)
        mixture = mixing.choose(
            runner,
            start,
            tuned,
            config.alphas,
            selecting=selecting,
            reporting=reporting,
            number=number,
            journal=journal,
        )
        if self._group.rank == 0:
            mixed = mixing.mix(start, tuned, mixture.alpha)
            save(ready.spec, mixed, config.out / folder.MODEL, number)
        return {
            'model': ready.spec.name,
            'fingerprint': ready.spec.fingerprint,
            'examples': len(lessons.examples),
            'validation': len(validation.task.pictures),
            'validation_texts': len(validation.task.texts),
            'has_test': ready.data.test is not None,
            'left_out': len(self.faults),
            'parameters': sum(parameter.numel() for parameter in learning.towers.values()),
            'epochs': round(trainer.step / max(1, trainer.total) * config.epochs, 2),
            'steps': trainer.step,
            'best_epoch': trainer.best_epoch,
            'precision': ready.precision,
            'seconds': round(time.monotonic() - begun, 1),
            'alpha': mixture.alpha,
            'tried': {f'{alpha:g}': scores for alpha, scores in mixture.tried.items()},
            'reported': mixture.reported,
        }

    def close(self) -> None:
        """End the threads of the views."""
        for views in self._views:
            views.close()

    def _lessons(self) -> Lessons:
        config, data = self._ready.config, self._ready.data
        views = self._new_views(data.pictures, config.augment)
        with self._journal.bar('decoding pictures', len(data.pictures)) as moved:
            damaged = views.load(moved)
        self.faults += [fault for _, fault in damaged]
        bad = {place for place, _ in damaged}
        examples = tuple(example for example in data.examples if example.picture not in bad)
        if len(examples) < config.batch:
            raise InvalidParameter(
                f'{len(bad):,} pictures cannot be decoded ({self.faults[-1].name}: {self.faults[-1].reason}), and the '
                f'{len(examples):,} pairs that are left are too few for batch={config.batch}'
            )
        if bad:
            examples = tuple(_without(example, bad) for example in examples)
        told = (self._ready.spec.fingerprint, examples, data.digest)
        return Lessons(examples, np.array(data.kinds), views, digest(repr(told).encode())[:16])

    def _exam(self, title: str, task: Task) -> Exam:
        views = self._new_views(task.pictures, cut=False)
        with self._journal.bar(f'decoding pictures: {title}', len(task.pictures)) as moved:
            return Exam(title, task, views, moved)

    def _new_views(self, pictures: Any, cut: bool) -> Views:
        views = Views(pictures, self._ready.spec.picture, cut, self._budget)
        self._budget -= views.size
        self._views.append(views)
        return views


def _without(example: reading.Example, bad: set[int]) -> reading.Example:
    rejected = tuple(place for place in example.rejected if place not in bad)
    return reading.Example(example.picture, example.texts, rejected)

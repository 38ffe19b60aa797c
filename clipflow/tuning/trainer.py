"""The training itself: epochs, steps, checkpoints, when to stop."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipflow.errors import Conflict, InvalidParameter
from clipflow.tuning import batches, losses, state
from clipflow.tuning.accumulate import Encoder, learn
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.journal import Journal
from clipflow.tuning.lessons import Batch, Lessons, Loader
from clipflow.tuning.measuring import Exam, Runner
from clipflow.tuning.schedule import cosine
from clipflow.tuning.strategies import Learning
from clipflow.tuning.tasks import score

BETAS, EPSILON = (0.9, 0.98), 1e-6
"""Of AdamW: Radford et al. 2021, table 18."""
_STATE, _BEST = 'state.safetensors', 'best.safetensors'


class Trainer:
    """One run, from its last checkpoint on, if there is one.

    Args:
        config: of the run.
        runner: of the model that learns.
        learning: what learns of it.
        lessons: what it learns from.
        validation: what is measured after each epoch.
        journal: where the run is told of.

    Raises:
        Conflict: the checkpoint in the folder is from other data.
    """

    def __init__(
        self,
        config: TuneConfig,
        runner: Runner,
        learning: Learning,
        *,
        lessons: Lessons,
        validation: Exam,
        journal: Journal,
    ) -> None:
        self._config, self._runner, self._learning, self._lessons = config, runner, learning, lessons
        self._validation, self._journal = validation, journal
        self._optimiser = torch.optim.AdamW(learning.groups, betas=BETAS, eps=EPSILON)
        self._per_epoch = -(-len(lessons.examples) // config.batch)
        self.total = config.epochs * self._per_epoch
        self._highest = float(torch.clamp(runner.model.log_scale.detach(), min=float(np.log(100))).max())
        self._loader = Loader(config, lessons, runner.group)
        self.step, self.best, self.best_epoch, self._stale = 0, -1.0, -1, 0
        self._order: NDArray[np.int64] | None = None
        self._resume(config.out / _STATE)

    def run(self) -> None:
        """Train to the end, or until validation does not get better, and leave the best weights in the model."""
        if self.best_epoch < 0:
            # The start may be the best there is.
            self._judge(0)
        with self._journal.bar('training', self.total, self.step) as moved:
            while self.step < self.total and self._stale < self._config.patience:
                epoch = self.step // self._per_epoch
                for batch in self._rest_of(epoch):
                    loss = self._learn(batch)
                    self._journal.step(self.step, epoch, loss, self._rate)
                    moved(1, f'loss {loss:.3f}  recall {self.best:.3f}')
                    if self.step % self._config.save_every == 0 and self.step % self._per_epoch:
                        self._save()
                self._order = None
                self._judge(epoch + 1)
        self._put(self._best())

    def _rest_of(self, epoch: int) -> Iterator[Batch]:
        if self._order is None:
            self._order = self._ordered(epoch)
        parts = batches.batches(self._order, self._config.batch)[self.step % self._per_epoch :]
        with ThreadPoolExecutor(1, thread_name_prefix='batch') as pool:
            # One ahead, so that the pictures of the next are ready when this one is learned.
            coming = pool.submit(self._loader.batch, parts[0], epoch)
            for following in [*parts[1:], None]:
                batch = coming.result()
                if following is not None:
                    coming = pool.submit(self._loader.batch, following, epoch)
                yield batch

    def _ordered(self, epoch: int) -> NDArray[np.int64]:
        config, examples = self._config, self._lessons.examples
        order = batches.shuffled(len(examples), config.seed, epoch)
        if not config.hard_negatives:
            return order
        texts = [batches.drawn_text(one.texts, config.seed, epoch, place) for place, one in enumerate(examples)]
        pictures = [example.picture for example in examples]
        with self._journal.bar('looking for hard negatives', 2 * len(examples)) as moved:
            by_picture = self._runner.all_images(self._lessons.views, pictures, moved)
            by_text = self._runner.all_texts(texts, moved)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        alike = (self._lessons.kinds[pictures], np.array([numbers[text] for text in texts]))
        return batches.hard(order, by_picture, by_text, alike, config.hard_negatives)

    def _learn(self, batch: Batch) -> float:
        runner = self._runner
        model, first = runner.model, runner.group.share(len(batch.pictures)).start
        ids, mask = runner.tokens(batch.texts)
        sides = {name.partition('.')[0] for name in self._learning.towers}
        encoders = (
            Encoder(lambda rows: model.text(ids[rows], mask[rows]), len(batch.texts), 'text' in sides),
            Encoder(
                lambda rows: runner.images(batch.pixels[rows.start - first : rows.stop - first]),
                len(batch.pictures),
                'image' in sides,
            ),
        )
        negatives = batch.negatives.to(runner.device)
        for group in self._optimiser.param_groups:
            group['lr'] = group['rate'] * self._factor
        loss = learn(
            encoders,
            lambda texts, images: self._loss(texts @ images.T, negatives),
            parameters=list(self._learning.towers.values()),
            shared=list(self._learning.shared.values()),
            part=runner.part,
            group=runner.group,
            calculation=runner.calculation,
        )
        if not np.isfinite(loss):
            raise InvalidParameter(
                f'the loss of step {self.step} is not finite; begin again in another folder with a lower learning_rate'
            )
        torch.nn.utils.clip_grad_norm_(list(self._learning.named.values()), self._config.clip_gradient)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.log_scale.clamp_(max=self._highest)
        self.step += 1
        return loss

    @property
    def _factor(self) -> float:
        return cosine(self.step, self.total, int(self._config.warmup * self.total))

    @property
    def _rate(self) -> float:
        return self._config.rate * self._factor

    def _loss(self, cosines: Tensor, negatives: Tensor) -> Tensor:
        scale = self._runner.model.scale
        match self._config.loss:
            case 'clip':
                return losses.clip(cosines, negatives, scale)
            case 'siglip':
                return losses.siglip(cosines, negatives, scale, self._runner.model.bias.reshape(()))
            case 'triplet':
                return losses.triplet(cosines, negatives, self._config.margin)
            case 'ranking':
                return losses.ranking(cosines, negatives, scale)

    def _judge(self, epoch: int) -> None:
        """Measure, and keep the weights if they are the best so far."""
        with self._journal.bar('validation', self._validation.size) as moved:
            measures = self._validation.take(self._runner, moved)
        found = score(measures)
        self._journal.epoch(self.step, epoch, measures, found)
        if found > self.best:
            self.best, self.best_epoch, self._stale = found, epoch, 0
            if self._runner.group.rank == 0:
                state.write(self._config.out / _BEST, self._weights(), {'epoch': epoch})
        else:
            self._stale += 1
        self._save()
        self._runner.group.wait()

    def _best(self) -> dict[str, Tensor]:
        found = state.read(self._config.out / _BEST)
        if found is None:
            raise InvalidParameter(
                f'{self._config.out / _BEST} is missing, and with it the best weights so far; '
                f'delete {self._config.out / _STATE} too, and the run begins again'
            )
        return found[0]

    def _weights(self) -> dict[str, Tensor]:
        return {f'weight/{name}': parameter for name, parameter in self._learning.named.items()}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._learning.named.items():
                parameter.copy_(tensors[f'weight/{name}'])

    def _save(self) -> None:
        if self._runner.group.rank:
            return
        tensors = self._weights()
        if self._order is not None:
            tensors['order'] = torch.from_numpy(self._order)
        for name, parameter in self._learning.named.items():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f'{key}/{name}'] = value
        facts = {
            'step': self.step,
            'best': self.best,
            'best_epoch': self.best_epoch,
            'stale': self._stale,
            'data': self._lessons.digest,
        }
        state.write(self._config.out / _STATE, tensors, facts)

    def _resume(self, path: Path) -> None:
        found = state.read(path)
        if found is None:
            self._journal.resume(-1)
            return
        self._best()
        tensors, facts = found
        if facts['data'] != self._lessons.digest:
            raise Conflict(f'the data have changed since the run in {path.parent} began; choose another out')
        self.step, self.best, self.best_epoch = facts['step'], facts['best'], facts['best_epoch']
        self._stale = facts['stale']
        self._put(tensors)
        if 'order' in tensors:
            self._order = tensors['order'].numpy()
        for name, parameter in self._learning.named.items():
            kept = {
                key: tensors[f'{key}/{name}'] for key in ('step', 'exp_avg', 'exp_avg_sq') if f'{key}/{name}' in tensors
            }
            if kept:
                moments = {key: value.to(parameter.device) for key, value in kept.items() if key != 'step'}
                self._optimiser.state[parameter] = moments | {'step': kept['step']}
        self._journal.resume(self.step)


def calculation_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of every run of a tower."""
    if precision == 'bfloat16':
        return lambda: torch.autocast(device.type, torch.bfloat16)
    from contextlib import nullcontext

    return nullcontext

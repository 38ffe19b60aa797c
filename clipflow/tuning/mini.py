"""The training of a small model such as the bundled one: frozen towers, new projections, a folder to go on in."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from clipflow.errors import Conflict, InvalidParameter
from clipflow.files import replaced
from clipflow.relevance.album import digest
from clipflow.relevance.metrics import cosines, ranks_of, retrieval
from clipflow.sessions.towers import FORMATS
from clipflow.tuning import claim, mini_data, schedule, state
from clipflow.tuning.journal import Journal
from clipflow.tuning.mini_config import MiniConfig
from clipflow.tuning.mini_features import Features, classifier
from clipflow.tuning.mini_objective import Heads, LabelledPart, Material, Objective
from clipflow.tuning.towers import save
from clipflow.weights import load_spec

CHECKPOINT, REPORT, MODEL = 'checkpoint.safetensors', 'report.json', 'model'


@dataclass(frozen=True)
class Measured:
    """Measures on the validation data, a title and a number between 0 and 1."""

    figures: dict[str, float]


@dataclass(frozen=True)
class Weights:
    """Projections of pictures [D, V] and of texts [D, W], and the logarithm of the temperature."""

    visual: Tensor
    textual: Tensor
    log_scale: Tensor

    def mixed(self, other: 'Weights', share: float) -> 'Weights':
        """So much of the other, the rest of these: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, equation 1."""
        pairs = (
            (self.visual, other.visual),
            (self.textual, other.textual),
            (self.log_scale, other.log_scale.view_as(self.log_scale)),
        )
        return Weights(*(torch.lerp(mine, theirs, share) for mine, theirs in pairs))


class Training:
    """One training in one folder; all is checked when it is made, and nothing is written before `run`.

    Args:
        config: of the training.
        out: its folder; what is there of the same training goes on.
        shows: whether there are progress bars.

    Raises:
        Conflict: the folder holds something else.
        NotFound, InvalidParameter: the data, the start or the classifier are not what they should be.
    """

    def __init__(self, config: MiniConfig, out: Path, shows: bool) -> None:
        self._config, self._out = config, out
        claim.check(out, config)
        self._spec = load_spec(str(config.start))
        self.data = mini_data.read(config)
        self._features = Features(self._spec, out / 'features', FORMATS[config.precision])
        self._classifier = classifier(config.class_names, self._features.visual.in_features)
        names, *linear_layer = self._classifier
        told = [
            self._spec.fingerprint,
            self.data.digest,
            *names,
            *(digest(one.numpy().tobytes()) for one in linear_layer),
        ]
        self._digest = digest('\0'.join(told).encode())
        self._journal = Journal(out, True, shows)

    def run(self) -> tuple[Measured, Measured]:
        """Train, and write the checkpoint to `model/`; measures of the start and of the result.

        Raises:
            Conflict: another process trains in the folder, or the training that is there is of other data.
            InvalidParameter: a picture is damaged, or the training has diverged.
            StorageFull, ReadOnly: the folder cannot be written.
        """
        with claim.claimed(self._out, self._config):
            return self._run()

    def _run(self) -> tuple[Measured, Measured]:
        begun = time.monotonic()
        material = self._material()
        heads = Heads(
            self._features.visual.weight.detach(),
            self._features.textual.weight.detach(),
            torch.tensor(math.log(self._config.optimiser.scale)),
            material.views[:, material.captioned].flatten(0, 1),
        )
        start = Weights(
            self._features.visual.weight.detach().clone(),
            self._features.textual.weight.detach().clone(),
            self._features.model.log_scale.detach().clone(),
        )
        self._learn(Objective(material, self._config.optimiser), heads)
        learned = Weights(heads.whole_visual(), heads.textual.detach(), heads.log_scale.detach())
        result = start.mixed(learned, self._config.mix)
        before, after = (self._measure(material, weights) for weights in (start, result))
        self._write(result)
        found = {
            'before': before.figures,
            'after': after.figures,
            'pictures': len(self.data.pictures),
            'learned_from': len(self.data.learned_from),
            'left_out': len(self.data.faults),
            'seconds': round(time.monotonic() - begun),
        }
        replaced(self._out / REPORT, (json.dumps(found, indent=2) + '\n').encode())
        self._journal.close()
        return before, after

    def _material(self) -> Material:
        """All features, from disk as far as they are there."""
        data, named = self.data, self._config.class_names
        with self._journal.bar('pictures', 2 * len(data.pictures)) as moved:
            views = [self._features.pictures(data.pictures, data.stamps, squeezed, moved) for squeezed in (False, True)]
        names, weight, bias = self._classifier
        groups = [(part.names, part.asked.templates) for part in data.classes]
        groups.append((names, named.templates))
        said = [[text.replace('{}', name) for name in several for text in forms] for several, forms in groups]
        with self._journal.bar('texts', len(data.texts) + sum(map(len, said))) as moved:
            captions = self._features.texts(data.texts, moved)
            texts = [
                self._features.texts(sentences, moved).view(len(several), len(forms), -1)
                for sentences, (several, forms) in zip(said, groups, strict=True)
            ]
        labelled = tuple(
            LabelledPart(part.asked, torch.from_numpy(part.train), torch.from_numpy(part.train_labels), features)
            for part, features in zip(data.classes, texts, strict=False)
        )
        return Material(
            views=torch.stack(views),
            texts=captions,
            captioned=torch.from_numpy(np.concatenate([part.pictures for part in data.train])),
            captions=tuple(torch.tensor(several) for part in data.train for several in part.texts),
            paraphrases=torch.from_numpy(data.paraphrases),
            paraphrase_weight=self._config.paraphrase_weight,
            labelled=labelled,
            class_names=named,
            class_texts=texts[-1],
            probabilities=(views[0] @ weight.T + bias).softmax(-1),
            anything=torch.from_numpy(data.learned_from),
        )

    def _learn(self, objective: Objective, heads: Heads) -> None:
        asked = self._config.optimiser
        groups: list[dict[str, Any]] = [
            {'params': [heads.visual], 'lr': asked.image_rate, 'weight_decay': asked.weight_decay},
            {'params': [heads.offset], 'lr': asked.image_rate, 'weight_decay': 0.0},
            {'params': [heads.textual], 'lr': asked.text_rate, 'weight_decay': 0.0},
            {'params': [heads.log_scale], 'lr': asked.scale_rate, 'weight_decay': 0.0},
        ]
        rates = [group['lr'] for group in groups]
        optimiser = torch.optim.AdamW(groups)
        done = self._resume(heads, optimiser)
        with self._journal.bar('steps', asked.steps, done) as moved:
            for step in range(done, asked.steps):
                factor = schedule.cosine(step, asked.steps, asked.warmup)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group['lr'] = rate * factor
                loss = objective.loss(heads, step)
                value = loss.item()
                if not math.isfinite(value):
                    raise InvalidParameter(f'the training has diverged at step {step}; lower the learning rates')
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                self._journal.step(step + 1, 0, value, factor)
                if (step + 1) % asked.save_every == 0 or step + 1 == asked.steps:
                    self._save(heads, optimiser, step + 1)
                moved(1, f'loss {value:.3f}')

    def _save(self, heads: Heads, optimiser: torch.optim.Optimizer, step: int) -> None:
        tensors = {f'heads.{name}': value for name, value in heads.state_dict().items()}
        for number, values in optimiser.state_dict()['state'].items():
            tensors |= {f'optimiser.{number}.{name}': torch.as_tensor(value) for name, value in values.items()}
        state.write(self._out / CHECKPOINT, tensors, {'step': step, 'data': self._digest})

    def _resume(self, heads: Heads, optimiser: torch.optim.Optimizer) -> int:
        """Steps that are done already."""
        found = state.read(self._out / CHECKPOINT)
        if found is None:
            self._journal.resume(0)
            return 0
        tensors, facts = found
        if facts.get('data') != self._digest:
            raise Conflict(f'the data have changed since the training in {self._out} began; choose another out')
        heads.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith('heads.')})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith('optimiser.'):
                _, number, kind = name.split('.')
                moments.setdefault(int(number), {})[kind] = value
        optimiser.load_state_dict(optimiser.state_dict() | {'state': moments})
        step = int(facts['step'])
        self._journal.resume(step)
        return step

    def _measure(self, material: Material, weights: Weights) -> Measured:
        """Captions against all pictures, and zero-shot top-1, on the validation parts."""
        pictures = normalize(linear(material.views[0], weights.visual), dim=-1).numpy()
        found = dict[str, float]()
        for part in self.data.validation:
            owners = np.repeat(part.pictures, [len(several) for several in part.texts])
            places = torch.tensor([text for several in part.texts for text in several])
            texts = normalize(linear(material.texts[places], weights.textual), dim=-1)
            ranks = ranks_of(cosines(texts.numpy(), pictures), owners[:, None], len(pictures))
            found |= {
                f'{part.title}, {len(owners):,} captions against {len(pictures):,} pictures, image {name}': float(
                    values.mean()
                )
                for name, values in retrieval(ranks).items()
                if name in ('R@1', 'R@5', 'R@10')
            }
        for classes, features in zip(self.data.classes, material.labelled, strict=True):
            names = normalize(linear(features.texts[:, 0], weights.textual), dim=-1).numpy()
            right = (pictures[classes.validation] @ names.T).argmax(1) == classes.validation_labels
            found[f'{classes.title}, {len(right):,} pictures, {len(classes.names)} classes, top-1'] = float(
                right.mean()
            )
        return Measured(found)

    def _write(self, weights: Weights) -> None:
        model = self._features.model
        with torch.no_grad():
            self._features.visual.weight.copy_(weights.visual)
            self._features.textual.weight.copy_(weights.textual)
            model.log_scale.copy_(weights.log_scale)
        save(self._spec, model.weights(), self._out / MODEL, torch.float16)

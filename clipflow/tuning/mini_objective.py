"""What the two projections of a small model learn on features of its frozen towers.

The features of some thousand pictures are far too few for a projection of half a million weights; what keeps it from
learning them by heart is Gaussian noise and dropout on the features (Bishop 1995, "Training with Noise is Equivalent
to Tikhonov Regularization"; Srivastava et al. 2014, JMLR 15).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from clipflow.tuning import losses
from clipflow.tuning.mini_config import ClassNames, Labelled, Optimiser


class Heads(torch.nn.Module):
    """Both projections and the temperature.

    The projection of pictures works on centred features and has an offset: W (x - mean) + b, which is W x plus a
    constant. The models that this code trains have no bias there; where one feature is the same number in all pictures,
    its column holds the constant, and where there is none, the features are not centred and b stays nought.

    Args:
        visual: [D, V], where it starts.
        textual: [D, W].
        log_scale: of the temperature.
        pictures: features to learn from, [n, V], which say what the mean and the deviation are.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, visual: Tensor, textual: Tensor, log_scale: Tensor, pictures: Tensor) -> None:
        super().__init__()
        deviation, mean = torch.std_mean(pictures, dim=0)
        constant = (deviation == 0) & (mean != 0)
        self._bias = int(constant.nonzero()[0]) if constant.any() else None
        self.register_buffer('deviation', deviation)
        self.register_buffer('mean', mean if self._bias is not None else torch.zeros_like(mean))
        start = visual.clone()
        if self._bias is not None:
            start[:, self._bias] = 0.0
        self.visual = torch.nn.Parameter(start)
        self.offset = torch.nn.Parameter(torch.zeros(len(start)), requires_grad=self._bias is not None)
        self.textual = torch.nn.Parameter(textual.clone())
        self.log_scale = torch.nn.Parameter(log_scale.detach().clone())

    def centred(self, features: Tensor) -> Tensor:
        """[N, V], without their mean, to unit vectors [N, D]."""
        return normalize(linear(features, self.visual, self.offset), dim=-1)

    def texts(self, features: Tensor) -> Tensor:
        """[N, W] to unit vectors [N, D]."""
        return normalize(linear(features, self.textual), dim=-1)

    def whole_visual(self) -> Tensor:
        """[D, V] for features as they are: the constant stands in the column of the feature that never changes."""
        found = self.visual.detach().clone()
        if self._bias is not None:
            found[:, self._bias] = 0.0
            found[:, self._bias] = (self.offset.detach() - found @ self.mean) / self.mean[self._bias]
        return found


@dataclass(frozen=True)
class LabelledPart:
    """A labelled collection: pictures [n], the class of each [n], features of class texts [classes, templates, W]."""

    asked: Labelled
    pictures: Tensor
    labels: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Material:
    """Features and what is known of them.

    Attributes:
        views: features of all pictures, [views, P, V]; the first view is that of the service.
        texts: features of all captions, [T, W].
        captioned: places of the pictures that have captions, [n].
        captions: of each of these the places of its texts.
        paraphrases: places of texts that say the same, [n, several].
        paraphrase_weight: of their loss.
        labelled: collections with classes.
        class_names: what was asked of the classifier.
        class_texts: features of the names of its classes, [classes, templates, W].
        probabilities: what it says of all pictures as they are, [P, classes].
        anything: places of all pictures to learn from.
    """

    views: Tensor
    texts: Tensor
    captioned: Tensor
    captions: tuple[Tensor, ...]
    paraphrases: Tensor
    paraphrase_weight: float
    labelled: tuple[LabelledPart, ...]
    class_names: ClassNames
    class_texts: Tensor
    probabilities: Tensor
    anything: Tensor


class Objective:
    """Draws the batches of a step and says how wrong the heads are on them."""

    def __init__(self, material: Material, asked: Optimiser) -> None:
        self._material, self._asked = material, asked
        generator = Generator().manual_seed(asked.seed)
        # Drawn once and read from random places, because drawing costs more than the projection itself.
        size = 2 * self._most_pictures() * material.views.shape[-1]
        self._noise = torch.randn(size, generator=generator)
        self._kept = (torch.rand(size, generator=generator) >= asked.dropout).float() / (1 - asked.dropout)

    def loss(self, heads: Heads, step: int) -> Tensor:
        """Of one step; its draws depend on seed and step alone, so that a resumed run has nothing to restore."""
        generator = Generator().manual_seed(self._asked.seed * 1_000_003 + step)
        scale = heads.log_scale.exp()
        material = self._material
        total = self._of_captions(heads, scale, generator)
        if len(material.paraphrases) > 1:
            total = total + material.paraphrase_weight * self._of_paraphrases(heads, scale, generator)
        for part in material.labelled:
            if part.asked.weight:
                total = total + part.asked.weight * self._of_labels(heads, scale, part, generator)
        return total + material.class_names.weight * self._of_class_names(heads, scale, generator)

    def _most_pictures(self) -> int:
        """At once in one of the losses."""
        asked = [part.asked for part in self._material.labelled]
        together = self._asked.batch + sum(part.negatives for part in asked)
        return max(together, self._material.class_names.batch, *(part.batch for part in asked))

    def _of_captions(self, heads: Heads, scale: Tensor, generator: Generator) -> Tensor:
        """CLIP's loss; pictures of labelled collections stand beside the captioned ones and belong to no text."""
        material = self._material
        rows = torch.randperm(len(material.captioned), generator=generator)[: self._asked.batch]
        texts = torch.stack([_one(material.captions[row], generator) for row in rows.tolist()])
        others = [_some(part.pictures, part.asked.negatives, generator) for part in material.labelled]
        pictures = torch.cat([material.captioned[rows], *others])
        cosines = heads.texts(material.texts[texts]) @ self._drawn(heads, pictures, generator).T
        return losses.clip(cosines, losses.negatives_of(pictures, texts), scale)

    def _of_paraphrases(self, heads: Heads, scale: Tensor, generator: Generator) -> Tensor:
        """CLIP's loss between two texts of one picture: what people agree on is what can be seen."""
        rows = torch.randperm(len(self._material.paraphrases), generator=generator)[: self._asked.batch]
        several = self._material.paraphrases[rows]
        first, second = torch.randperm(several.shape[1], generator=generator)[:2].tolist()
        one, other = (heads.texts(self._material.texts[several[:, place]]) for place in (first, second))
        return losses.clip(one @ other.T, losses.negatives_of(several[:, second], several[:, first]), scale)

    def _of_labels(self, heads: Heads, scale: Tensor, part: LabelledPart, generator: Generator) -> Tensor:
        """Cross entropy between a picture and the names of the collection's classes."""
        rows = torch.randint(len(part.pictures), (part.asked.batch,), generator=generator)
        template = int(torch.randint(part.texts.shape[1], (1,), generator=generator))
        pictures = self._drawn(heads, part.pictures[rows], generator)
        logits = scale * pictures @ heads.texts(part.texts[:, template]).T
        return cross_entropy(logits, part.labels[rows], label_smoothing=self._asked.label_smoothing)

    def _of_class_names(self, heads: Heads, scale: Tensor, generator: Generator) -> Tensor:
        """Cross entropy to the classifier's probabilities: distillation, Hinton et al. 2015, arXiv:1503.02531."""
        material = self._material
        pictures = _some(material.anything, material.class_names.batch, generator)
        template = int(torch.randint(material.class_texts.shape[1], (1,), generator=generator))
        logits = scale * self._drawn(heads, pictures, generator) @ heads.texts(material.class_texts[:, template]).T
        return cross_entropy(logits, material.probabilities[pictures])

    def _drawn(self, heads: Heads, pictures: Tensor, generator: Generator) -> Tensor:
        """Unit vectors of pictures, [N, D], each from one of its views, with noise and dropout."""
        views = torch.randint(len(self._material.views), (len(pictures),), generator=generator)
        features = self._material.views[views, pictures] - heads.mean
        noise, kept = (self._piece(pool, features, generator) for pool in (self._noise, self._kept))
        features = (features + self._asked.noise * heads.deviation * noise) * kept
        return heads.centred(features)

    def _piece(self, pool: Tensor, like: Tensor, generator: Generator) -> Tensor:
        start = int(torch.randint(len(pool) - like.numel() + 1, (1,), generator=generator))
        return pool[start : start + like.numel()].view_as(like)


def _one(places: Tensor, generator: Generator) -> Tensor:
    return places[torch.randint(len(places), (1,), generator=generator)[0]]


def _some(places: Tensor, count: int, generator: Generator) -> Tensor:
    return places[torch.randint(len(places), (count,), generator=generator)]

"""What the frozen towers make of pictures and texts, just before their projections: computed once, kept on disk.

It is most of the work of a training, and the same for all trainings on the same data. It is kept in blocks, each a file
that is there whole or not at all, so an interrupted run goes on with the next block.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipflow.errors import InvalidParameter
from clipflow.relevance.captions import Fault, Picture
from clipflow.tokens import Tokenizer
from clipflow.tuning import state
from clipflow.tuning.mini_config import ClassNames
from clipflow.tuning.towers import TwoTowers
from clipflow.tuning.views import Views
from clipflow.weights import ModelSpec

BLOCK = 512
_PART = 32
"""Pictures or texts that are computed at once."""
_ENOUGH = 1 << 40
"""Bytes: a block always fits into memory."""
_FEATURES = 'features'
_CLASSIFIER = ('classifier.weight', 'classifier.bias')

Moved = Callable[[int], None]


class Features:
    """Of one model, below one folder.

    Args:
        spec: of the model.
        folder: for the files.
        number: format in which pictures are computed.

    Raises:
        InvalidParameter: the model has no two linear projections without bias.
    """

    def __init__(self, spec: ModelSpec, folder: Path, number: torch.dtype) -> None:
        self._spec, self._folder, self._number = spec, folder, number
        self._model = TwoTowers(spec)
        # A copy, because converting it changes its weights.
        self._image = TwoTowers(spec).image
        self._image.convert(number)
        self._tokenizer = Tokenizer(spec)
        self.visual, self.textual = projections(self._model, spec)

    @property
    def model(self) -> TwoTowers:
        """The towers with their projections."""
        return self._model

    def pictures(self, pictures: Sequence[Picture], stamps: Sequence[str], squeezed: bool, moved: Moved) -> Tensor:
        """[P, V] float32.

        Args:
            pictures: to be computed.
            stamps: of what they hold, whereby their features are kept.
            squeezed: not as the service prepares them, but without a crop, whatever their proportions: a second view
                to learn from.
            moved: is told how many more are done.

        Raises:
            InvalidParameter: a picture is damaged.
        """
        blocks = []
        for start in range(0, len(pictures), BLOCK):
            some = pictures[start : start + BLOCK]
            view = ('squeezed',) if squeezed else ()
            key = _key(self._spec.fingerprint, self._number, *view, *stamps[start : start + BLOCK])
            blocks.append(self._kept(key, partial(self._of_pictures, some, squeezed)))
            moved(len(some))
        return torch.cat(blocks)

    def texts(self, texts: Sequence[str], moved: Moved) -> Tensor:
        """[T, W] float32."""
        blocks = []
        for start in range(0, len(texts), BLOCK):
            some = texts[start : start + BLOCK]
            blocks.append(self._kept(_key(self._spec.fingerprint, *some), partial(self._of_texts, some)))
            moved(len(some))
        return torch.cat(blocks)

    def _of_pictures(self, pictures: Sequence[Picture], squeezed: bool) -> Tensor:
        spec = replace(self._spec.picture, resize_shortest=None) if squeezed else self._spec.picture
        views = Views(pictures, spec, False, _ENOUGH)
        try:
            faults = views.load(lambda _: None)
            if faults:
                raise _damaged([fault for _, fault in faults])
            pixels = [views.whole(range(part.start, part.stop)) for part in _parts(len(pictures))]
        finally:
            views.close()
        layer = self._image._model.visual_projection
        return torch.cat([before(layer, partial(self._image, torch.from_numpy(part))) for part in pixels])

    def _of_texts(self, texts: Sequence[str]) -> Tensor:
        # Texts of one length need no padding, which would be computed for nothing.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = []
        for part in _parts(len(texts)):
            tokens = self._tokenizer([texts[place] for place in order[part]])
            ids, mask = (torch.from_numpy(array).long() for array in (tokens.ids, tokens.mask))
            found.append(before(self.textual, partial(self._model.text, ids, mask)))
        return torch.cat(found)[torch.from_numpy(np.argsort(order))]

    def _kept(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        path = self._folder / f'{key}.safetensors'
        found = state.read(path)
        if found is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            features = compute().half()
            state.write(path, {_FEATURES: features}, {})
            return features.float()
        return found[0][_FEATURES].float()


def classifier(asked: ClassNames, width: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names of the classes, and the linear classifier on features of pictures.

    Raises:
        InvalidParameter: it is none on features of this width.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(asked.model / 'model.safetensors')
        weight, bias = (tensors[name].float() for name in _CLASSIFIER)
        labels = json.loads((asked.model / 'config.json').read_text(encoding='utf-8'))['id2label']
        names = tuple(labels[str(place)].replace('_', ' ') for place in range(len(weight)))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidParameter(f'{asked.model} is no classifier with names: {error}') from None
    if weight.shape[1] != width:
        raise InvalidParameter(
            f'the classifier in {asked.model} takes {weight.shape[1]} features, the model gives {width}'
        )
    return names, weight, bias


def projections(model: TwoTowers, spec: ModelSpec) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """The last layers of both towers.

    Raises:
        InvalidParameter: there are none of the kind that this training learns.
    """
    visual = getattr(model.image._model, 'visual_projection', None)
    textual = getattr(model.text._model, 'text_projection', None)
    for layer in (visual, textual):
        if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
            raise InvalidParameter(
                f'the model {spec.name!r} does not end in two linear projections without bias, which this training '
                'learns; start from a model such as the bundled one'
            )
    assert isinstance(visual, torch.nn.Linear)
    assert isinstance(textual, torch.nn.Linear)
    return visual, textual


def before(layer: torch.nn.Linear, run: Callable[[], Any]) -> Tensor:
    """What `layer` gets when `run` is called, [N, width] float32."""
    seen = list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    try:
        with torch.inference_mode():
            run()
    finally:
        handle.remove()
    return seen[0]


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + _PART, count)) for start in range(0, count, _PART)]


def _key(*parts: object) -> str:
    return hashlib.sha256('\0'.join(map(str, parts)).encode()).hexdigest()[:32]


def _damaged(faults: Sequence[Fault]) -> InvalidParameter:
    return InvalidParameter(
        f'{len(faults)} pictures cannot be decoded, such as {faults[0].name}: {faults[0].reason}; take them out'
    )

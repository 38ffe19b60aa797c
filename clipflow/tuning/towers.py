"""A checkpoint as one trainable module of two towers, and back into files."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipflow.errors import InvalidParameter
from clipflow.files import sync
from clipflow.sessions.towers import load_towers
from clipflow.tuning.state import writing
from clipflow.weights import ModelSpec

SIGLIP_BIAS = -10.0
"""Where a model without a bias learns by the sigmoid loss: Zhai et al. 2023, section 3.2."""
_CARRIED = ('*.json', '*.txt', '*.model')
_OWN_NAME, _FILE_NAME = 'embeddings._patch_embedding.', 'embeddings.patch_embedding.'


class TwoTowers(torch.nn.Module):
    """Both towers, which share the temperature.

    They compute as in the service: BatchNorm by its stored means, no dropout. So a text or picture has the same vector
    whatever stands beside it in the batch, which is what accumulation and several processes rely on.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.image, self.text = load_towers(spec)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        root: Any = self.image._model
        scale: torch.nn.Parameter | None = getattr(root, 'logit_scale', None)
        self.log_scale: torch.nn.Parameter = (
            scale if scale is not None else torch.nn.Parameter(torch.tensor(math.log(spec.scale)))
        )
        bias: torch.nn.Parameter | None = getattr(root, 'logit_bias', None)
        self.bias = bias if bias is not None else torch.nn.Parameter(torch.tensor(SIGLIP_BIAS))

    @property
    def scale(self) -> Tensor:
        """Temperature as a factor; a scalar."""
        return self.log_scale.exp().reshape(())

    def weights(self) -> dict[str, Tensor]:
        """All weights by the names of the checkpoint's own model; they are not copies."""
        found = dict(_of_tower(self.image)) | dict(_of_tower(self.text))
        return {name.replace(_OWN_NAME, _FILE_NAME): tensor for name, tensor in found.items()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put in other values, by the names of `weights`."""
        with torch.no_grad():
            for name, tensor in self.weights().items():
                tensor.copy_(weights[name])


def _of_tower(tower: Any) -> Iterator[tuple[str, Tensor]]:
    yield from tower._model.named_parameters()


def _set_normalisation(directory: Path, spec: ModelSpec) -> None:
    """The catalogue may know better than the files with which mean and deviation the weights were trained."""
    file = directory / 'preprocessor_config.json'
    if not file.exists():
        file = directory / 'processor_config.json'
    if file.exists():
        whole = json.loads(file.read_text(encoding='utf-8'))
        options = whole if file.name == 'preprocessor_config.json' else whole.setdefault('image_processor', {})
        # Ours are those of pixels from 0 to 1, whatever range the file has them in.
        options |= {'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True}
        options |= {'image_mean': list(spec.picture.mean), 'image_std': list(spec.picture.std)}
        file.write_text(json.dumps(whole, indent=2) + '\n', encoding='utf-8')


def save(spec: ModelSpec, weights: dict[str, Tensor], directory: Path, number: torch.dtype) -> None:
    """Write a checkpoint in the Hugging Face format; it is there whole or not at all, and durable on return.

    Args:
        spec: of the start, whose configuration, tokenizer and preparation are taken over.
        weights: by the names of `TwoTowers.weights`.
        directory: is replaced.
        number: format of the weights.

    Raises:
        InvalidParameter: the start has no such weights, which would be lost.
        StorageFull, ReadOnly: it cannot be written.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(spec.directory), trust_remote_code=False)
    if spec.activation:
        config.text_config.hidden_act = config.vision_config.hidden_act = spec.activation
    model: Any = transformers.AutoModel.from_pretrained(
        str(spec.directory), config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    _, unknown = model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, strict=False)
    if unknown:
        raise InvalidParameter(f'the model {spec.name!r} has no weights {", ".join(unknown[:3])}: it cannot be saved')
    with writing(directory):
        _write(model.to(number), spec, directory)


def _write(model: Any, spec: ModelSpec, directory: Path) -> None:
    part = directory.with_name(directory.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for pattern in _CARRIED:
        for file in spec.directory.glob(pattern):
            if not file.name.endswith('.index.json'):
                shutil.copyfile(file, part / file.name)
    _set_normalisation(part, spec)
    model.save_pretrained(part)
    for file in part.glob('*.safetensors'):
        # Written for the owner alone; a service runs as somebody else.
        file.chmod(0o644)
    for path in (*part.iterdir(), part):
        sync(path)
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)
    sync(directory.parent)

"""The two towers of a CLIP checkpoint in plain PyTorch, from prepared input to unit vectors.

They are written out, and not taken from transformers, because PopTorch compiles a fixed graph: only operations that it
has, attention by hand, a causal mask that stays finite in half precision, and no search for the end token on the
device. What is here runs on Python 3.8 with torch 2.0 and on later ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

# Adding the smallest half to a negative score gives -inf, and a row of those gives NaN; this is far enough from both.
MASKED = -10_000.0
_NEARLY = 1e-6
_OLD_END = 2
"""What old checkpoints name as the end token; they mean the largest id of the text."""
_DEFAULTS = {
    'text_config': {'num_attention_heads': 8, 'num_hidden_layers': 12, 'eos_token_id': 49407},
    'vision_config': {'num_attention_heads': 12, 'num_hidden_layers': 12},
}
"""Of transformers, which leaves out of config.json what is as usual."""
_COLOURS = {
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
}
"""Of transformers' CLIPImageProcessor, and of those whose names begin as in `_OF_CLIP`."""
_OF_CLIP = ('CLIP', 'ChineseCLIP')


class BadModel(Exception):
    """The files cannot be served; the message is one sentence for a person."""


class Quick(nn.Module):
    """The activation of OpenAI's models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention over [N, L, width], with products and a softmax only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float(width // heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[N, L, width] to the same; `mask` [L, L] is added to the scores."""
        count, length, width = x.shape
        # Scaled before the product: the scores of a half model stay small.
        queries = self._split(self.q_proj(x) * self.scale)
        keys, values = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if mask is not None:
            scores = scores + mask
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
        mixed = mixed.view(count, self.heads, length, -1).permute(0, 2, 1, 3)
        found: torch.Tensor = self.out_proj(mixed.reshape(count, length, width))
        return found

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[N, L, width] to [N * heads, L, width / heads]."""
        count, length, width = x.shape
        side = width // self.heads
        heads = x.view(count, length, self.heads, side).permute(0, 2, 1, 3)
        return heads.reshape(count * self.heads, length, side)


class Mlp(nn.Module):
    """Two layers and an activation."""

    def __init__(self, width: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(width, inner), activation, nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        found: torch.Tensor = self.fc2(self.activation(self.fc1(x)))
        return found


class Layer(nn.Module):
    """One block; its parts carry the names of the checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.self_attn = Attention(sizes.width, sizes.heads)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.mlp = Mlp(sizes.width, sizes.inner, sizes.activation())

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[N, L, width] to the same."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        found: torch.Tensor = x + self.mlp(self.layer_norm2(x))
        return found


class Pixels(nn.Module):
    """[N, H, W, 3] uint8 to [N, 3, H, W], scaled and normalised in float32 whatever the tower computes in."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.colours = {'mean': mean, 'std': std}
        wide_mean, wide_std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer('factor', (1 / (255 * wide_std)).float(), persistent=False)
        self.register_buffer('shift', (-wide_mean / wide_std).float(), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return (pixels.to(torch.float32) * self.factor + self.shift).permute(0, 3, 1, 2)


class ImageTower(nn.Module):
    """[N, side, side, 3] uint8 to [N, D] float32 of unit norm."""

    def __init__(self, sizes: Sizes, pixels: Pixels) -> None:
        super().__init__()
        weights = sizes.weights
        self.pixels = pixels
        self.class_embedding = nn.Parameter(weights['embeddings.class_embedding'])
        self.patches = nn.Parameter(weights['embeddings.patch_embedding.weight'])
        self.positions = nn.Parameter(weights['embeddings.position_embedding.weight'])
        self.patch = int(self.patches.shape[-1])
        self.pre_layrnorm = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.layers = nn.ModuleList([Layer(sizes) for _ in range(sizes.depth)])
        self.post_layernorm = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.projection = nn.Parameter(weights['projection'])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        inputs = self.pixels(pixels).to(self.patches.dtype)
        patches = nn.functional.conv2d(inputs, self.patches, stride=self.patch).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        x = self.pre_layrnorm(torch.cat([first, patches], dim=1) + self.positions)
        for layer in self.layers:
            x = layer(x, None)
        return _unit(nn.functional.linear(self.post_layernorm(x.select(1, 0)), self.projection))


class TextTower(nn.Module):
    """Ids [N, context] int32 and, in the tower's precision, a row with 1 at the end token [N, context], to [N, D]."""

    mask: torch.Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        weights = sizes.weights
        self.tokens = nn.Parameter(weights['embeddings.token_embedding.weight'])
        self.positions = nn.Parameter(weights['embeddings.position_embedding.weight'])
        self.layers = nn.ModuleList([Layer(sizes) for _ in range(sizes.depth)])
        self.final_layer_norm = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.projection = nn.Parameter(weights['projection'])
        context = int(self.positions.shape[0])
        # Made here, on the host: PopTorch takes triu of constants only.
        self.register_buffer('mask', torch.full((context, context), MASKED).triu(1), persistent=False)

    def forward(self, ids: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = nn.functional.embedding(ids, self.tokens) + self.positions
        for layer in self.layers:
            x = layer(x, self.mask)
        pooled = torch.bmm(end.unsqueeze(1), x).squeeze(1)
        return _unit(nn.functional.linear(self.final_layer_norm(pooled), self.projection))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    # In float32: the sum of squares of a long half vector can overflow.
    wide = vectors.to(torch.float32)
    found: torch.Tensor = wide / (torch.linalg.vector_norm(wide, dim=-1, keepdim=True) + 1e-12)
    return found


_ACTIVATIONS: dict[str, Any] = {'quick_gelu': Quick, 'gelu': nn.GELU}


class Sizes:
    """What one tower is made of: its weights without their prefix, and what the configuration adds."""

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor], activation: str) -> None:
        self.weights = weights
        if str(activation) not in _ACTIVATIONS:
            raise BadModel(f'the activation {activation!r} is not one of quick_gelu and gelu, which this worker knows')
        self.activation = _ACTIVATIONS[activation]
        self.eps = float(config.get('layer_norm_eps', 1e-5))
        self.heads = int(config['num_attention_heads'])
        self.inner, self.width = (int(size) for size in weights['layers.0.mlp.fc1.weight'].shape)
        self.depth = 1 + max(int(name.split('.')[1]) for name in weights if name.startswith('layers.'))
        if config['num_hidden_layers'] != self.depth:
            raise ValueError(f'num_hidden_layers is {config["num_hidden_layers"]!r}, and there are {self.depth}')


class Towers:
    """Both towers in half precision, and what a request must hold."""

    def __init__(self, image: ImageTower, text: TextTower, side: int, end: int, settings: dict[str, str]) -> None:
        self.image, self.text = image, text
        self.settings = settings
        """Mean, standard deviation and activation that are in use, as their flags take them."""
        self.side = side
        self.context = int(text.positions.shape[0])
        self.vocabulary = int(text.tokens.shape[0])
        self.dimension = int(text.projection.shape[0])
        self.end = None if end == _OLD_END else end
        """The id that ends a text; None: the largest id of the text does."""


def load_towers(
    directory: Path, activation: str = '', mean: list[float] | None = None, std: list[float] | None = None
) -> Towers:
    """Read a checkpoint in the Hugging Face format; nothing in it is run.

    Args:
        directory: holds config.json, model.safetensors (or its parts and their index) and, for the pictures,
            preprocessor_config.json.
        activation: quick_gelu or gelu, where config.json names the wrong one; else empty.
        mean: of the pixels' three channels, from 0 to 1, where the files name the wrong one; else None.
        std: likewise their standard deviation.

    Raises:
        BadModel: the files are not there, damaged, or of another family.
    """
    config = _json(directory / 'config.json')
    family = config.get('model_type')
    if family != 'clip':
        raise BadModel(
            f'the model in {directory} is of the family {family!r}; the IPU worker serves the family clip only'
        )
    weights = _weights(directory)
    parts = {name: _part(config, name) for name in _DEFAULTS}
    end, heads = parts['text_config']['eos_token_id'], [part['num_attention_heads'] for part in parts.values()]
    for name, value in (('eos_token_id', end), *(('num_attention_heads', count) for count in heads)):
        if not isinstance(value, int):
            raise BadModel(f'{name} in {directory / "config.json"} is {value!r}, not a whole number')
    try:
        used = {name: activation or str(parts[name]['hidden_act']) for name in parts}
        sizes = {
            name: Sizes(parts[name], _tower(weights, prefix, projection), used[name])
            for name, prefix, projection in (
                ('vision_config', 'vision_model.', 'visual_projection.weight'),
                ('text_config', 'text_model.', 'text_projection.weight'),
            )
        }
        image = ImageTower(sizes['vision_config'], _pixels(directory, {'image_mean': mean, 'image_std': std}))
        text = TextTower(sizes['text_config'])
        for tower, size in ((image, sizes['vision_config']), (text, sizes['text_config'])):
            missing = tower.load_state_dict(size.weights, strict=False).missing_keys
            absent = [name for name in missing if name.startswith(('layers.', 'pre_', 'post_', 'final_'))]
            if absent:
                raise BadModel(f'the weights in {directory} lack {absent[0]}; fetch them again')
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise BadModel(f'the weights in {directory} do not fit its config.json ({reason}); fetch both again') from None
    side = image.patch * round((image.positions.shape[0] - 1) ** 0.5)
    settings = {name: ' '.join(str(float(x)) for x in three) for name, three in image.pixels.colours.items()}
    settings['activation'] = ' and '.join(sorted(set(used.values())))
    return Towers(_half(image), _half(text), side, end, settings)


def _half(tower: Any) -> Any:
    tower.eval().requires_grad_(False).half()
    if isinstance(tower, ImageTower):
        tower.pixels.float()
    return tower


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError) as error:
        raise BadModel(
            f'{path} cannot be read ({error}); --model wants a directory in the Hugging Face format'
        ) from None


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    # Old files keep what differs from the defaults under a second name, which wins.
    given = [config.get(name), config.get(name + '_dict')]
    merged: dict[str, Any] = {'hidden_act': 'quick_gelu', **_DEFAULTS[name]}
    for values in given:
        if not isinstance(values or {}, dict):
            raise BadModel(f'{name} in config.json is {values!r}, not an object')
        merged.update(values or {})
    return merged


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    files, index = [directory / 'model.safetensors'], directory / 'model.safetensors.index.json'
    if not files[0].exists():
        named = _json(index).get('weight_map') if index.exists() else None
        if not isinstance(named, dict) or not named:
            raise BadModel(f'{directory} holds no model.safetensors, the only form of weights that is loaded')
        files = [directory / name for name in sorted({str(name) for name in named.values()})]
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            file.open('rb').close()
            with safe_open(str(file), framework='pt') as opened:
                found.update((name, opened.get_tensor(name).float()) for name in opened.keys())  # noqa: SIM118
        except OSError as error:
            raise BadModel(f'the weights {file} cannot be read ({error.strerror})') from None
        except SafetensorError as error:
            raise BadModel(f'the weights {file} are damaged ({error}); fetch them again') from None
    return found


def _tower(weights: dict[str, torch.Tensor], prefix: str, projection: str) -> dict[str, torch.Tensor]:
    """The weights of one tower by the names that its module has, the rest by those of the checkpoint."""
    tower = {
        name[len(prefix) :].replace('encoder.', '', 1): value
        for name, value in weights.items()
        if name.startswith(prefix) and not name.endswith('position_ids')
    }
    tower['projection'] = weights[projection]
    return tower


def _pixels(directory: Path, better: dict[str, list[float] | None]) -> Pixels:
    """Of the checkpoint's processor, as clipflow reads it, but for another range of pixels. What is `better` wins."""
    given: Any = {}
    if (directory / 'preprocessor_config.json').exists():
        given = _json(directory / 'preprocessor_config.json')
    elif (directory / 'processor_config.json').exists():
        given = _json(directory / 'processor_config.json').get('image_processor') or {}
        if not isinstance(given, dict):
            raise BadModel(f'image_processor in {directory / "processor_config.json"} is {given!r}, not an object')
    factor = given.get('rescale_factor')
    if given.get('do_rescale') is False or (factor is not None and abs(255 * factor - 1) > _NEARLY):
        raise BadModel(
            f'the processor of {directory} has its pixels in another range (do_rescale, rescale_factor) than 0 to 1, '
            'which is all that this worker knows'
        )
    if given.get('do_normalize') is False:
        given = {'image_mean': [0.0] * 3, 'image_std': [1.0] * 3}
    given = {**given, **{name: value for name, value in better.items() if value is not None}}
    return Pixels(_colours(given, 'image_mean'), _colours(given, 'image_std'))


def _colours(given: dict[str, Any], name: str) -> list[float]:
    kind = given.get('image_processor_type') or given.get('feature_extractor_type') or _OF_CLIP[0]
    if name not in given and not str(kind).startswith(_OF_CLIP):
        raise BadModel(f'{name} of the processor is missing, and what {kind} takes is not known; give it as a flag')
    found = given.get(name, _COLOURS[name])
    sound = isinstance(found, list) and len(found) == 3 and all(isinstance(x, (int, float)) for x in found)
    if not sound or (name == 'image_std' and min(found) <= 0):
        raise BadModel(f'{name} of the processor is {found!r}, not three numbers (above 0 for image_std)')
    return list(found)

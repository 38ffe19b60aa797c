"""The two towers of a checkpoint as PyTorch modules, from prepared input to unit vectors: what is run or exported."""

import copy
from typing import Any

import torch
from torch.nn.functional import normalize

from clipflow.errors import InvalidParameter, first_line
from clipflow.preprocessing import PictureSpec
from clipflow.weights import CLIP_SERVER, ModelSpec

FORMATS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

_OF_NO_VECTOR = ('logit_scale', 'logit_bias', 'num_batches_tracked')
"""Weights that no vector depends on; a checkpoint may lack them."""


class _Tower(torch.nn.Module):
    """One half of a model: the other half's weights are not held."""

    def __init__(self, model: Any, other: str) -> None:
        super().__init__()
        self._model = copy.copy(model)
        self._model._modules = {name: part for name, part in model._modules.items() if not name.startswith(other)}

    def convert(self, number: torch.dtype) -> None:
        """Compute in another number format; pixels come and vectors go as before."""
        self._model.to(number)


class ImageTower(_Tower):
    """[N, H, W, 3] uint8 to [N, D] float32; scaling and normalisation of the pixels are inside."""

    _factor: torch.Tensor
    _shift: torch.Tensor

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__(model, 'text')
        self._patch = int(model.config.vision_config.patch_size) if spec.family == 'siglip2' else 0
        factor, shift = _normalisation(spec.picture)
        self.register_buffer('_factor', factor, persistent=False)
        self.register_buffer('_shift', shift, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        floats = pixels.to(torch.float32) * self._factor + self._shift
        floats = floats.to(self._model.dtype)
        # Pixels arrive as height, width, channels: in the layout channels_last that is no copy.
        inputs = self._patches(floats) if self._patch else {'pixel_values': floats.permute(0, 3, 1, 2)}
        return _unit(self._model.get_image_features(**inputs))

    def _patches(self, floats: torch.Tensor) -> dict[str, torch.Tensor]:
        """NaFlex input of SigLIP 2: [N, patches, side * side * 3], every patch real."""
        count, height, width, _ = floats.shape
        side = self._patch
        rows, columns = height // side, width // side
        grid = floats.reshape(count, rows, side, columns, side, 3).permute(0, 1, 3, 2, 4, 5)
        # No mask, because no patch is padding; the positions know their shape already.
        return {'pixel_values': grid.reshape(count, rows * columns, side * side * 3)}


class _FixedPositions(torch.nn.Module):
    """The embeddings of SigLIP 2 for pictures of one size; transformers resizes the positions in every call."""

    _positions: torch.Tensor

    def __init__(self, embeddings: Any, rows: int, columns: int) -> None:
        super().__init__()
        self._patch_embedding = embeddings.patch_embedding
        side = embeddings.position_embedding_size
        table = embeddings.position_embedding.weight.detach().reshape(side, side, -1)
        shape = torch.tensor([[rows, columns]])
        self.register_buffer('_positions', embeddings.resize_positional_embeddings(table, shape, rows * columns))

    def forward(self, patches: torch.Tensor, _: None) -> torch.Tensor:
        """[N, patches, side * side * 3] to [N, patches, width]."""
        embedded: torch.Tensor = self._patch_embedding(patches)
        return embedded + self._positions


class TextTower(_Tower):
    """Token ids [N, L] and, for models that need it, the mask of real tokens [N, L], to [N, D] float32."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__(model, 'vis')
        self.masked = spec.padding == 'longest'

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See the class."""
        inputs = {'input_ids': ids} | ({'attention_mask': mask} if self.masked else {})
        return _unit(self._model.get_text_features(**inputs))


def load_towers(spec: ModelSpec) -> tuple[ImageTower, TextTower]:
    """Both towers in float32 on the CPU.

    Raises:
        InvalidParameter: transformers cannot make a model of these files, or only one with random weights.
    """
    import transformers

    if spec.family == CLIP_SERVER:
        raise InvalidParameter(
            f'the model {spec.name!r} runs in clip-as-service: serve flows/clip-server.yml, or set CLIPFLOW_MODEL to a '
            'model without "clip-server::"'
        )
    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(spec.directory), trust_remote_code=False)
        if spec.activation:
            config.text_config.hidden_act = config.vision_config.hidden_act = spec.activation
        model, found = transformers.AutoModel.from_pretrained(
            str(spec.directory),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever its file readers raise
        reason = first_line(error)
        raise InvalidParameter(f'the model in {spec.directory} cannot be loaded: {reason}') from None
    _check_complete(spec, found)
    for part in model.modules():
        pooling = getattr(part, 'pooler', None)
        if isinstance(pooling, torch.nn.AvgPool2d):
            # EfficientNet averages with a window that is larger than any picture, which no other runtime accepts.
            part.pooler = torch.nn.AdaptiveAvgPool2d(1)
    if spec.family == 'siglip2':
        vision = model.vision_model
        sides = (spec.picture.height, spec.picture.width)
        vision.embeddings = _FixedPositions(vision.embeddings, *(side // vision.config.patch_size for side in sides))
    model = model.eval().to(memory_format=torch.channels_last)
    return ImageTower(model, spec).eval(), TextTower(model, spec).eval()


def _check_complete(spec: ModelSpec, found: dict[str, Any]) -> None:
    """transformers fills what the files lack with random numbers."""
    missing = sorted(name for name in found['missing_keys'] if not name.endswith(_OF_NO_VECTOR))
    if missing:
        others = sorted(found['unexpected_keys'])
        raise InvalidParameter(
            f'the weights in {spec.directory} lack {missing[0]}'
            + (f' and {len(missing) - 1} more of the model' if missing[1:] else '')
            + (f', but hold {others[0]}, which it has not got' if others else '')
            + '; save the whole model with save_pretrained, and not a part, a wrapper or an adapter of it'
        )


def _normalisation(spec: PictureSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel / 255 - mean) / std as one multiplication and one addition a channel."""
    std = torch.tensor(spec.std, dtype=torch.float64)
    mean = torch.tensor(spec.mean, dtype=torch.float64)
    return (1 / (255 * std)).float(), (-mean / std).float()


def _unit(features: Any) -> torch.Tensor:
    # transformers 5 wraps the projected vector in an output object; 4 returned the tensor itself.
    vectors = features if torch.is_tensor(features) else features.pooler_output
    return normalize(vectors.float(), dim=-1)

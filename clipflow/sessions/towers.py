"""The two towers of a checkpoint as PyTorch modules, from prepared input to unit vectors: what is run or exported."""

from typing import Any

import torch
from torch.nn.functional import normalize

from clipflow.errors import InvalidParameter
from clipflow.weights import ModelSpec, PictureSpec


class ImageTower(torch.nn.Module):
    """[N, H, W, 3] uint8 to [N, D] float32; scaling and normalisation of the pixels are inside."""

    _factor: torch.Tensor
    _shift: torch.Tensor

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self._model = model
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
        return {
            'pixel_values': grid.reshape(count, rows * columns, side * side * 3),
            'pixel_attention_mask': torch.ones(count, rows * columns, dtype=torch.int32, device=floats.device),
            'spatial_shapes': torch.tensor([[rows, columns]] * count),
        }


class TextTower(torch.nn.Module):
    """Token ids [N, L] and, for models that need it, the mask of real tokens [N, L], to [N, D] float32."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self._model = model
        self.masked = spec.padding == 'longest'

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See the class."""
        inputs = {'input_ids': ids} | ({'attention_mask': mask} if self.masked else {})
        return _unit(self._model.get_text_features(**inputs))


def load_towers(spec: ModelSpec) -> tuple[ImageTower, TextTower]:
    """Both towers in float32 on the CPU.

    Raises:
        InvalidParameter: transformers cannot make a model of these files.
    """
    import transformers

    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(spec.directory), trust_remote_code=False)
        if spec.activation:
            config.text_config.hidden_act = config.vision_config.hidden_act = spec.activation
        model = transformers.AutoModel.from_pretrained(
            str(spec.directory), config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever its file readers raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidParameter(f'the model in {spec.directory} cannot be loaded: {reason}') from None
    for part in model.modules():
        pooling = getattr(part, 'pooler', None)
        if isinstance(pooling, torch.nn.AvgPool2d):
            # EfficientNet averages with a window that is larger than any picture, which no other runtime accepts.
            part.pooler = torch.nn.AdaptiveAvgPool2d(1)
    model = model.eval().to(memory_format=torch.channels_last)
    return ImageTower(model, spec).eval(), TextTower(model, spec).eval()


def _normalisation(spec: PictureSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel / 255 - mean) / std as one multiplication and one addition a channel."""
    std = torch.tensor(spec.std, dtype=torch.float64)
    mean = torch.tensor(spec.mean, dtype=torch.float64)
    return (1 / (255 * std)).float(), (-mean / std).float()


def _unit(features: Any) -> torch.Tensor:
    # transformers 5 wraps the projected vector in an output object; 4 returned the tensor itself.
    vectors = features if torch.is_tensor(features) else features.pooler_output
    return normalize(vectors.float(), dim=-1)

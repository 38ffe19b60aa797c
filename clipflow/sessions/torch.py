"""PyTorch on the CPU, float32: the reference that every other session is compared with."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from clipflow.errors import InvalidParameter
from clipflow.weights import ModelSpec, PictureSpec

_TOKENS_FOR_ONE_THREAD = 64
"""A short query gains a fifth from a second thread, and loses threefold where that thread has to wait for its core."""


def load(spec: ModelSpec) -> 'TorchSession':
    """Load both towers.

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
    return TorchSession(model.eval(), spec)


class TorchSession:
    """See `base.Session`. Vectors come out of the towers unnormalised and are brought to unit length here."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        # Pixels arrive as height, width, channels: with this layout convolutions take them without a copy.
        self._model = model.to(memory_format=torch.channels_last)
        self._masked = spec.padding == 'longest'
        self._patch = int(model.config.vision_config.patch_size) if spec.family == 'siglip2' else 0
        self._factor, self._shift = _normalisation(spec.picture)
        self._threads = torch.get_num_threads()
        self.dimension = self._probe(spec)

    @property
    def description(self) -> dict[str, str]:
        """See `base.Session`."""
        return {'runtime': 'torch', 'device': 'cpu', 'precision': 'float32', 'runtime_version': torch.__version__}

    def use_threads(self, threads: int) -> None:
        """See `base.Session`."""
        self._threads = threads
        torch.set_num_threads(threads)

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `base.Session`."""
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            floats = torch.tensor(pixels, dtype=torch.float32).mul_(self._factor).add_(self._shift)  # [N, H, W, 3]
            inputs = self._patches(floats) if self._patch else {'pixel_values': floats.permute(0, 3, 1, 2)}
            return _unit(self._model.get_image_features(**inputs))

    def encode_texts(self, ids: NDArray[np.int32], mask: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `base.Session`."""
        torch.set_num_threads(1 if ids.size <= _TOKENS_FOR_ONE_THREAD else self._threads)
        inputs = {'input_ids': torch.tensor(ids, dtype=torch.int64)}
        if self._masked:
            inputs['attention_mask'] = torch.tensor(mask, dtype=torch.int64)
        with torch.inference_mode():
            return _unit(self._model.get_text_features(**inputs))

    def close(self) -> None:
        """See `base.Session`."""
        self._model = None

    def _patches(self, floats: torch.Tensor) -> dict[str, torch.Tensor]:
        """NaFlex input of SigLIP 2: [N, patches, side * side * 3], every patch real."""
        count, height, width, _ = floats.shape
        side = self._patch
        rows, columns = height // side, width // side
        grid = floats.reshape(count, rows, side, columns, side, 3).permute(0, 1, 3, 2, 4, 5)
        return {
            'pixel_values': grid.reshape(count, rows * columns, side * side * 3),
            'pixel_attention_mask': torch.ones(count, rows * columns, dtype=torch.int32),
            'spatial_shapes': torch.tensor([[rows, columns]] * count),
        }

    def _probe(self, spec: ModelSpec) -> int:
        """Encode a grey picture: the first call is slow, and it tells the dimension."""
        grey = np.full((1, spec.picture.height, spec.picture.width, 3), 127, dtype=np.uint8)
        return int(self.encode_images(grey).shape[1])


def _normalisation(spec: PictureSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel / 255 - mean) / std as one multiplication and one addition a channel."""
    std = torch.tensor(spec.std, dtype=torch.float64)
    mean = torch.tensor(spec.mean, dtype=torch.float64)
    return (1 / (255 * std)).float(), (-mean / std).float()


def _unit(features: Any) -> NDArray[np.float32]:
    # transformers 5 wraps the projected vector in an output object; 4 returned the tensor itself.
    vectors = features if torch.is_tensor(features) else features.pooler_output
    unit: NDArray[np.float32] = normalize(vectors.float(), dim=-1).numpy()
    return unit

"""How a checkpoint wants its pictures: read from the description of its processor. What is not followed is refused.

The input would differ from that in training otherwise, and every vector with it, without a sign.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipflow.checkpoint import blamed, part, read_json, whole

_FILES = ('preprocessor_config.json', 'processor_config.json')
_LAST_FILTER = 5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_CLIP = {'image_mean': CLIP_MEAN, 'image_std': CLIP_STD, 'resample': 3, 'do_center_crop': True}
_AS_USUAL: dict[str, dict[str, Any]] = {
    'clip': _CLIP,
    'altclip': _CLIP,
    'chineseclip': _CLIP,
    'siglip': {'image_mean': _HALF, 'image_std': _HALF, 'resample': 3, 'do_center_crop': False},
    # Its own processor crops nothing, but makes pictures of any proportions; here they are squares.
    'siglip2': {'image_mean': _HALF, 'image_std': _HALF, 'resample': 2, 'do_center_crop': True},
    'vit': {'image_mean': _HALF, 'image_std': _HALF, 'resample': 2, 'do_center_crop': False},
}
"""What transformers' processors take where a file does not say, by their name, or else the model's family."""


@dataclass(frozen=True)
class PictureSpec:
    """How a picture becomes the model's input: resize, crop, then (in the session) scale and normalise."""

    height: int
    width: int
    resize_shortest: int | None
    """Length of the shorter side before the crop; None: resize to height x width, whatever the proportions."""
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def picture_spec(directory: Path, config: dict[str, Any]) -> PictureSpec:
    """Read what the processor of the checkpoint in `directory` does.

    Args:
        directory: with the description; what it leaves out, or all without one, is as usual for its processor.
        config: of the model, from config.json.

    Raises:
        InvalidParameter: the description is damaged, asks for what is not followed, or leaves out what is not known.
    """
    with blamed(directory / 'config.json'):
        side = whole(part(config, 'vision_config'), 'image_size', 224)
    file = next((path for path in (directory / name for name in _FILES) if path.exists()), None)
    with blamed(file or directory / _FILES[0]):
        given = {} if file is None else read_json(file)
        if file is not None and file.name == 'processor_config.json':
            given = part(given, 'image_processor')
        # null is what transformers writes for what is as usual. A mean is never as usual.
        given = {key: value for key, value in given.items() if value is not None or key in ('image_mean', 'image_std')}
        if config.get('model_type') == 'siglip2' and 'patch_size' in given:
            # NaFlex: the largest square that its number of patches allows.
            side = whole(given, 'patch_size') * math.isqrt(whole(given, 'max_num_patches', 256))
        given = _as_usual(given, str(config.get('model_type')), side) | given
        for key in ('size', 'resample', *(('image_mean', 'image_std') if given.get('do_normalize', True) else ())):
            if key not in given:
                raise ValueError(
                    f'{key} is missing, and what is as usual for this processor is not known; write it there'
                )
        height, width, shortest = _sides(given, side)
        resample = whole(given, 'resample', least=0)
        if resample > _LAST_FILTER:
            raise ValueError(f'resample is {resample}, not one of the filters of Pillow, 0 to {_LAST_FILTER}')
        return PictureSpec(height, width, shortest, resample, *_normalisation(given))


def _as_usual(given: dict[str, Any], family: str, side: int) -> dict[str, Any]:
    """What the processor takes that `given` is for; nothing of one that is not known."""
    name = str(given.get('image_processor_type') or given.get('feature_extractor_type') or '')
    kind = re.sub('(ImageProcessor|FeatureExtractor).*', '', name or family)
    usual = _AS_USUAL.get(kind.replace('_', '').lower())
    if usual is None:
        return {}
    return usual | {'size': side if usual['do_center_crop'] else {'height': side, 'width': side}}


def _sides(given: dict[str, Any], side: int) -> tuple[int, int, int | None]:
    """Height, width and shorter side before the crop; ValueError for what would be another picture here.

    A number for `size` is a shorter side, one for `crop_size` both sides; without the latter, `side` of the model is
    taken.
    """
    if not given.get('do_resize', True):
        raise ValueError('do_resize is false, but clipflow serves models whose pictures are resized')
    if given.get('do_pad'):
        raise ValueError('do_pad is true, but clipflow pads no pictures')
    boxes = {'size': given['size'], 'crop_size': given.get('crop_size', side)}
    for name, keys in (('size', ('shortest_edge',)), ('crop_size', ('height', 'width'))):
        if isinstance(boxes[name], int | float):
            boxes[name] = dict.fromkeys(keys, boxes[name])
    size, crop = part(boxes, 'size'), part(boxes, 'crop_size')
    shortest = whole(size, 'shortest_edge') if 'shortest_edge' in size else None
    if shortest is None and not {'height', 'width'} <= size.keys():
        raise ValueError(f'size is {size}, which has neither shortest_edge nor height and width')
    cropped = given.get('do_center_crop', shortest is not None)
    if shortest is not None:
        if not cropped:
            raise ValueError(
                f'do_center_crop is false and size has only shortest_edge ({shortest}), so that pictures keep their '
                'proportions, which no model here takes; give size a height and a width'
            )
        return whole(crop, 'height'), whole(crop, 'width'), shortest
    exact = (whole(size, 'height'), whole(size, 'width'))
    cut = (whole(crop, 'height'), whole(crop, 'width')) if cropped else exact
    if cut != exact:
        raise ValueError(
            f'asks for another size before the crop ({exact[0]} x {exact[1]}) than after ({cut[0]} x {cut[1]}); '
            'clipflow crops only what was resized by its shortest edge'
        )
    return (*exact, None)


def _normalisation(given: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for pixels from 0 to 1, whatever range the checkpoint has them in."""
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if given.get('do_normalize', True):
        mean, std = _colours(given, 'image_mean'), _colours(given, 'image_std')
    if min(std) <= 0:
        raise ValueError(f'image_std is {list(std)}; its numbers must be above 0')
    factor = given.get('rescale_factor', 1 / 255) if given.get('do_rescale', True) else 1.0
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f'rescale_factor is {factor!r}, not a number above 0')
    if math.isclose(255 * factor, 1):
        return mean, std
    # (factor p - mean) / std of a pixel p from 0 to 255, written for p / 255
    return tuple(x / (255 * factor) for x in mean), tuple(x / (255 * factor) for x in std)


def _colours(given: dict[str, Any], name: str) -> tuple[float, ...]:
    found = given[name]
    if not isinstance(found, list | tuple) or len(found) != 3:
        raise ValueError(f'{name} is {found!r}, not three numbers')
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in found):
        raise ValueError(f'{name} is {found!r}, not three finite numbers')
    return tuple(float(x) for x in found)

"""KServe v2 messages: what the two models say of themselves, requests to checked arrays, vectors to replies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as cfg
from tritonclient.grpc import service_pb2 as pb

IMAGE = 'clip_image'
TEXT = 'clip_text'
VERSION = '1'
_FORMATS: dict[str, np.dtype[Any]] = {'UINT8': np.dtype('u1'), 'INT64': np.dtype('<i8')}


class Refused(Exception):
    """A request that is not answered: the name of a gRPC status and one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Model:
    """One served model: its inputs by name, in order, with datatype, shape without N, and whether it may be absent."""

    def __init__(self, name: str, inputs: dict[str, tuple[str, list[int], bool]], dimension: int) -> None:
        self.name = name
        self.inputs = inputs
        self.dimension = dimension

    def metadata(self) -> Any:
        """For ModelMetadata; shapes begin with N."""
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=self.name,
            versions=[VERSION],
            platform='poptorch',
            inputs=[tensor(name=n, datatype=kind, shape=[-1, *dims]) for n, (kind, dims, _) in self.inputs.items()],
            outputs=[tensor(name='vectors', datatype='FP32', shape=[-1, self.dimension])],
        )

    def config(self, largest: int, parameters: dict[str, str]) -> Any:
        """For ModelConfig; dims are without N, of which there may be `largest`."""
        made = cfg.ModelConfig(
            name=self.name,
            backend='poptorch',
            max_batch_size=largest,
            input=[
                cfg.ModelInput(name=n, data_type=getattr(cfg, f'TYPE_{kind}'), dims=dims, optional=optional)
                for n, (kind, dims, optional) in self.inputs.items()
            ],
            output=[cfg.ModelOutput(name='vectors', data_type=cfg.TYPE_FP32, dims=[self.dimension])],
        )
        for name, value in parameters.items():
            made.parameters[name].string_value = value
        return pb.ModelConfigResponse(config=made)

    def arrays(self, request: Any, largest: int) -> dict[str, np.ndarray]:
        """The inputs of a ModelInfer request by name, as it sent them.

        Raises:
            Refused: INVALID_ARGUMENT, with what is wrong.
        """
        if len(request.raw_input_contents) != len(request.inputs):
            raise _bad(f'{len(request.inputs)} inputs came with {len(request.raw_input_contents)} raw_input_contents')
        if any(output.name != 'vectors' for output in request.outputs):
            raise _bad(f'the only output of {self.name} is vectors')
        found: dict[str, np.ndarray] = {}
        for number, given in enumerate(request.inputs):
            if given.name not in self.inputs or given.name in found:
                raise _bad(f'{self.name} takes each of {", ".join(self.inputs)} once, not {given.name!r}')
            found[given.name] = self._array(given, request.raw_input_contents[number], largest)
        for name, (_, _, optional) in self.inputs.items():
            if not optional and name not in found:
                raise _bad(f'{self.name} needs the input {name}')
        return found

    def _array(self, given: Any, raw: bytes, largest: int) -> np.ndarray:
        kind, dims, _ = self.inputs[given.name]
        shape = list(given.shape)
        if given.datatype != kind:
            raise _bad(f'{given.name} must be {kind}, not {given.datatype!r}')
        fits = len(shape) == len(dims) + 1 and all(dims[i] in (-1, shape[i + 1]) for i in range(len(dims)))
        if not fits or min(shape) < 0:
            raise _bad(f'{given.name} must have the shape {_shown(dims)}, not {shape}')
        if shape[0] > largest:
            raise _bad(f'{given.name} has {shape[0]} items; send at most {largest} in one request')
        if len(raw) != math.prod(shape) * _FORMATS[kind].itemsize:
            raise _bad(f'{given.name} of shape {shape} in {kind} cannot have {len(raw)} bytes')
        return np.frombuffer(raw, dtype=_FORMATS[kind]).reshape(shape)

    def reply(self, request: Any, vectors: np.ndarray) -> Any:
        """Vectors [N, D] float32 as a ModelInfer response."""
        made = pb.ModelInferResponse(model_name=self.name, model_version=VERSION, id=request.id)
        made.outputs.add(name='vectors', datatype='FP32', shape=vectors.shape)
        made.raw_output_contents.append(np.ascontiguousarray(vectors, dtype='<f4').tobytes())
        return made


def models(side: int, dimension: int) -> dict[str, Model]:
    """Both by name."""
    image = Model(IMAGE, {'pixels': ('UINT8', [side, side, 3], False)}, dimension)
    text = Model(TEXT, {'ids': ('INT64', [-1], False), 'mask': ('INT64', [-1], True)}, dimension)
    return {IMAGE: image, TEXT: text}


def text_inputs(found: dict[str, np.ndarray], towers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [N, L] as the text tower takes them: padded to the context, and a row with 1 at the end token.

    Nothing behind the end token reaches the vector, so the mask is only checked.

    Args:
        found: `ids` and perhaps `mask`, int64.
        towers: an `ipu_towers.Towers`.

    Returns:
        [N, context] int32 and [N, context] float16.

    Raises:
        Refused: INVALID_ARGUMENT, with what is wrong.
    """
    ids = found['ids']
    count, length = ids.shape
    if not 1 <= length <= towers.context:
        raise _bad(f'a text of {length} tokens is not within 1 and {towers.context}; cut it and keep its end token')
    if ids.size and not 0 <= ids.min() <= ids.max() < towers.vocabulary:
        raise _bad(f'ids must be from 0 to {towers.vocabulary - 1}; is this the tokenizer of another model?')
    ends = ids == towers.end if towers.end is not None else ids == ids.max(axis=1, keepdims=True)
    if not ends.any(axis=1).all():
        row = int(np.argmin(ends.any(axis=1)))
        raise _bad(f'row {row} of ids has no end token {towers.end}; cut long texts so that it stays')
    where = ends.argmax(axis=1)
    if 'mask' in found:
        mask = found['mask']
        if mask.shape != ids.shape:
            raise _bad(f'mask must have the shape of ids {list(ids.shape)}, not {list(mask.shape)}')
        before = np.arange(length) <= where[:, None]
        if not np.isin(mask, (0, 1)).all() or not mask[before].all():
            raise _bad('mask must be 1 for each token up to the end token and 1 or 0 behind it; pad on the right')
    padded = np.zeros((count, towers.context), dtype=np.int32)
    padded[:, :length] = ids
    end = np.zeros((count, towers.context), dtype=np.float16)
    end[np.arange(count), where] = 1
    return padded, end


def _bad(sentence: str) -> Refused:
    return Refused('INVALID_ARGUMENT', sentence)


def _shown(dims: list[int]) -> str:
    return '[N, ' + ', '.join('L' if size == -1 else str(size) for size in dims) + ']'

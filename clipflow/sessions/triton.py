"""A model repository for Triton: the exported towers, and what Triton has to know of them."""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from clipflow.errors import Conflict, ReadOnly, StorageFull
from clipflow.sessions.base import IMAGE, TEXT, Tower
from clipflow.sessions.export import exported, file_name, files_of, put
from clipflow.weights import ModelSpec

MAX_BATCH = 64

Inputs = dict[str, tuple[str, tuple[int, ...]]]
"""By name: Triton's type, and the shape of one item."""

_CONFIG = """# Written by clipflow; its session "kserve" relies on names, shapes and types.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [{inputs}
]
output [
  {{ name: "vectors" data_type: TYPE_FP32 dims: [ {dimension} ] }}
]
instance_group [
  {{ kind: {kind} count: {count} }}
]
dynamic_batching {{
  preferred_batch_size: [ 8, 32 ]
  max_queue_delay_microseconds: 2000
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: 30000000
    allow_timeout_override: true
    max_queue_size: 256
  }}
}}
version_policy {{ latest {{ num_versions: 1 }} }}
model_warmup [
  {{
    name: "one item"
    batch_size: 1{warm}
  }}
]
parameters {{ key: "fingerprint" value {{ string_value: "{fingerprint}" }} }}
parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}
"""


@dataclass(frozen=True)
class Serving:
    """How Triton is to run the towers."""

    precision: str = 'float32'
    """float32, float16 (for GPUs) or int8."""
    gpu: bool = False
    """On its GPUs, not on the CPU."""
    instances: int = 1
    """How many of each tower run at once, on each device."""
    exact: frozenset[str] = frozenset()
    """Towers that stay in float32 beside one in another precision."""


def write_repository(spec: ModelSpec, cache: Path, out: Path, dimension: int, serving: Serving) -> list[Path]:
    """Write `<out>/clip_image` and `<out>/clip_text`, a new version of each, and return their folders.

    Args:
        spec: of the model.
        cache: where its exported files are, or are put.
        out: the model repository.
        dimension: of the vectors.
        serving: how they are to run.

    Raises:
        Conflict: `out`, or a folder in it, exists and is a file.
        StorageFull, ReadOnly: it cannot be written.
    """
    directory = exported(spec, cache, serving.precision)
    try:
        return _written(directory, spec, out, dimension, serving)
    except (FileExistsError, NotADirectoryError) as error:
        raise Conflict(f'{error.filename} is in the way; a model repository is a folder of folders') from None
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else ReadOnly
        raise kind(f'the model repository {out} cannot be written: {error.strerror}') from None


def _written(directory: Path, spec: ModelSpec, out: Path, dimension: int, serving: Serving) -> list[Path]:
    folders = []
    for tower, inputs in _inputs(spec).items():
        folder = out / f'clip_{tower}'
        folder.mkdir(parents=True, exist_ok=True)
        version = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
        # Triton looks for new folders with numbers: the file is whole before the folder has its name.
        temporary = folder / f'{version}.part'
        temporary.mkdir(exist_ok=True)
        graph = directory / file_name(tower, 'float32' if tower in serving.exact else serving.precision)
        for file in files_of(graph):  # the graph knows the other one by its name
            shutil.copyfile(file, temporary / ('model.onnx' if file == graph else file.name))
        # What is said of it is there before: the session asks for that when it sees another version.
        put(folder / 'config.pbtxt', _config(spec, tower, inputs, dimension, serving).encode())
        temporary.rename(folder / str(version))
        folders.append(folder)
    return folders


def _inputs(spec: ModelSpec) -> dict[Tower, Inputs]:
    """By tower: its inputs without the batch; -1 is any length."""
    length = spec.context if spec.padding == 'fixed' else -1
    names = ('ids', 'mask') if spec.padding == 'longest' and spec.family != 'clip' else ('ids',)
    pixels = (spec.picture.height, spec.picture.width, 3)
    return {IMAGE: {'pixels': ('TYPE_UINT8', pixels)}, TEXT: dict.fromkeys(names, ('TYPE_INT64', (length,)))}


def _config(spec: ModelSpec, tower: str, inputs: Inputs, dimension: int, serving: Serving) -> str:
    rows, warm = [], []
    for key, (kind, shape) in inputs.items():
        rows.append(f'\n  {{ name: "{key}" data_type: {kind} dims: [ {", ".join(map(str, shape))} ] }}')
        dims = ', '.join(str(2 if side == -1 else side) for side in shape)
        warm.append(f'\n    inputs {{ key: "{key}" value {{ data_type: {kind} dims: [ {dims} ] zero_data: true }} }}')
    return _CONFIG.format(
        name=f'clip_{tower}',
        batch=MAX_BATCH,
        inputs=','.join(rows),
        dimension=dimension,
        kind='KIND_GPU' if serving.gpu else 'KIND_CPU',
        count=serving.instances,
        warm=''.join(warm),
        fingerprint=spec.fingerprint,
        precision=serving.precision,
    )

"""Checkpoints: a file that is there whole or not at all, of tensors and a few facts. No pickles."""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from clipflow.errors import InvalidParameter, ReadOnly, StorageFull

_NO_SPACE = 28


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the file at once; durable on return.

    Raises:
        StorageFull, ReadOnly: it could not be written, and the former one is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + '.part')
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(whole, part, metadata={'facts': json.dumps(facts)})
        with part.open('rb+') as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        if getattr(error, 'errno', None) == _NO_SPACE or 'No space' in str(error):
            raise StorageFull(f'no space is left for {path}; free some, and the same command goes on') from None
        raise ReadOnly(f'{path} cannot be written: {error}') from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts; None if there is no such file.

    Raises:
        InvalidParameter: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            return tensors, json.loads(file.metadata()['facts'])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidParameter(
            f'{path} is damaged ({error}); delete it, and the run begins where it then can'
        ) from None


def put(path: Path, text: str) -> None:
    """Replace a text file at once."""
    part = path.with_name(path.name + '.part')
    try:
        part.write_text(text, encoding='utf-8')
        part.replace(path)
    except OSError as error:
        raise ReadOnly(f'{path} cannot be written: {error.strerror}') from None

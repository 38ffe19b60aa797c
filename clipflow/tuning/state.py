"""Checkpoints: a file that is there whole or not at all, of tensors and a few facts. No pickles."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from clipflow.errors import InvalidParameter, ReadOnly, StorageFull
from clipflow.files import sync


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with files inside becomes one sentence.

    Raises:
        StorageFull, ReadOnly: it cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, 'errno', None) == errno.ENOSPC or 'No space' in str(error):
            raise StorageFull(f'no space is left for {path}; free some, and the same command goes on') from None
        raise ReadOnly(f'{path} cannot be written: {getattr(error, "strerror", None) or error}') from None


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the file at once; durable on return.

    Raises:
        StorageFull, ReadOnly: it could not be written, and the former one is as it was.
    """
    from safetensors.torch import save_file

    part = path.with_name(path.name + '.part')
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        with writing(path):
            save_file(whole, part, metadata={'facts': json.dumps(facts)})
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


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

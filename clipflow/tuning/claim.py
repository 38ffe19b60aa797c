"""A folder of a training: it belongs to what was asked first, and to one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from clipflow.errors import Conflict, InvalidParameter
from clipflow.files import replaced
from clipflow.tuning.config import read_yaml
from clipflow.tuning.state import writing

CONFIG, _LOCK = 'config.yaml', '.lock'


def check(folder: Path, config: BaseModel, free: Set[str] = frozenset()) -> None:
    """Whether the folder can be this training's.

    Args:
        folder: of the training; it need not be there.
        config: what is asked.
        free: options that may be others than those the training began with.

    Raises:
        Conflict: another training is in it, or files that are none of a training.
        InvalidParameter: what it says of itself is damaged.
    """
    if not (folder / CONFIG).exists():
        # Hidden files are what a kill leaves: the lock, and a file that was being written.
        if folder.exists() and (not folder.is_dir() or any(file.name[0] != '.' for file in folder.iterdir())):
            raise Conflict(f'{folder} is there and is no run folder; choose another out')
        return
    try:
        was = read_yaml(folder / CONFIG)
    except InvalidParameter as error:
        raise InvalidParameter(f'{error.message}; choose another out, or delete the folder') from None
    asked = _plain(config)
    other = sorted(name for name in {*was, *asked} - free if was.get(name) != asked.get(name))
    if other:
        raise Conflict(
            f'{folder} is of a run with another {" and ".join(other)}; choose another out, or ask for the same'
        )


@contextmanager
def claimed(folder: Path, config: BaseModel, free: Set[str] = frozenset()) -> Iterator[None]:
    """Make the folder, keep other processes out of it, and note what was asked.

    Raises:
        Conflict: another process has it; and as of `check`.
        ReadOnly, StorageFull: it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f'another process trains in {folder}; wait for its end, or choose another out') from None
        check(folder, config, free)
        replaced(folder / CONFIG, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True).encode())
        yield
    finally:
        os.close(descriptor)


def _plain(config: BaseModel) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(config.model_dump_json())
    return plain

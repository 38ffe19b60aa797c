"""Workspaces to back up, and what is in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from clipflow.backup.manifest import Manifest
from clipflow.backup.take import Taken, complete
from clipflow.backup.target import Target
from clipflow.store import generations, layout
from clipflow.store.reading import Documents, Record
from clipflow.store.sqlite import Store

FINGERPRINT = '0123456789abcdef'
DIMENSION = 64


def unnoticed(_total: int) -> Any:
    """Nobody looks at the progress."""
    return lambda _count: None


def listed(target: Target) -> list[Taken]:
    """All backups that are complete, the oldest first."""
    return [Taken(name, Manifest.parse(data, name)) for name, data in complete(target).items()]


def records(count: int, seed: int = 0) -> list[Record]:
    """Of unit length, with tags and thumbnails; their ids tell the seed."""
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [
        Record(f'{seed}/{n}', f'text {n}', '', json.dumps({'n': n}), row, bytes([n % 256]) * 100)
        for n, row in enumerate(rows)
    ]


def fill(workspace: Path, count: int, seed: int = 0, shards: int = 1, fingerprint: str = FINGERPRINT) -> None:
    """Documents in every shard, feedback and a head, all of which tell the seed."""
    for number in range(shards):
        store = Store(generations.current(workspace) / str(number), fingerprint, 'm', (), shards)
        store.upsert(records(count, seed + 1000 * number))
        store.close()
    for folder, text in ((layout.FEEDBACK, '0.txt'), (layout.RANKER, 'head')):
        (workspace / folder).mkdir(exist_ok=True)
        (workspace / folder / text).write_text(f'{folder} {seed}')


Everything = tuple[dict[str, tuple[Any, ...]], dict[str, str]]


def everything(workspace: Path) -> Everything:
    """All documents by id with their vectors, and the other files."""
    folder = generations.current(workspace)
    found: dict[str, tuple[Any, ...]] = {}
    for directory in layout.shards(folder).values():
        store = Documents(directory)
        for name, one in store.by_ids(sorted(store.ids()), thumbnails=True, vectors=True).items():
            assert one.vector is not None
            found[name] = (one.key, one.text, one.tags, one.vector.tobytes(), one.thumbnail)
        store.close()
    files = {
        f'{name}/{path.name}': path.read_text()
        for name in (layout.FEEDBACK, layout.RANKER)
        for path in (workspace / name).glob('*')
        if path.suffix != '.db'
    }
    return found, files

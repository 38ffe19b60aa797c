"""Folders of vectors in clip-retrieval's layout, as the tests of bulk work need them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def written(
    folder: Path, vectors: NDArray[Any], columns: Mapping[str, Sequence[Any]] | None = None, size: int = 700
) -> Path:
    """A folder of partitions of `size` rows each; with `columns` for metadata."""
    (folder / 'img_emb').mkdir(parents=True)
    (folder / 'metadata').mkdir()
    for number, start in enumerate(range(0, len(vectors), size)):
        np.save(folder / 'img_emb' / f'img_emb_{number:02d}.npy', vectors[start : start + size])
        if columns is not None:
            rows = {name: list(values[start : start + size]) for name, values in columns.items()}
            pyarrow.parquet.write_table(
                pyarrow.table(rows), folder / 'metadata' / f'metadata_{number:02d}.parquet', row_group_size=150
            )
    return folder

"""Names of models that people know, and the hub repositories behind them. The table is data: catalogue.csv.

clip-as-service writes `-` where open_clip writes `_`, and both use older forms (`ViT-B/32`); all are understood.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clipflow.errors import NotFound

_TABLE = Path(__file__).with_name('catalogue.csv')


@dataclass(frozen=True)
class Entry:
    """One row. Mean, std and activation are the ones the weights were trained with; they win over the checkpoint's."""

    name: str
    repository: str
    loadable: bool
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    instead: str


def key(name: str) -> str:
    """The same for all ways to write a name."""
    folded = name.strip().lower().replace('/', '-').replace('_', '-').replace('@', '-')
    folded = folded.removesuffix('px')
    return folded if '::' in folded or '-clip-' in folded else f'{folded}::openai'


def _entry(row: dict[str, str]) -> Entry:
    mean, std = (tuple(float(x) for x in row[name].split()) for name in ('mean', 'std'))
    return Entry(row['name'], row['repository'], row['loadable'] == 'yes', row['activation'], mean, std, row['instead'])


@cache
def _entries() -> dict[str, Entry]:
    with _TABLE.open(encoding='utf-8', newline='') as file:
        rows = [_entry(row) for row in csv.DictReader(file)]
    return {key(row.name): row for row in rows}


def find(name: str) -> Entry | None:
    """The row of a known name, None for a name that the table does not have.

    Raises:
        NotFound: the weights exist only in open_clip's own format; says which model to take instead.
    """
    entry = _entries().get(key(name))
    if entry is not None and not entry.loadable:
        raise NotFound(
            f'the model {name!r} is published only in the open_clip format ({entry.repository}), which transformers '
            f'does not load; take {entry.instead} instead, or convert it to the Hugging Face format'
        )
    return entry

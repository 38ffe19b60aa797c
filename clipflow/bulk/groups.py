"""Groups of near-duplicates: which picture of each is kept, and the files that say so."""

import contextlib
import csv
import errno
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from clipflow.bulk.arrow import arrow, parquet
from clipflow.bulk.dedup import Places
from clipflow.bulk.mapped import Mapped
from clipflow.errors import InvalidParameter, ReadOnly, StorageFull
from clipflow.store.reading import Record

_ROWS = 4096
FORMATS = ('.parquet', '.csv', '.jsonl')


@dataclass(frozen=True)
class Member:
    """A picture of a group: `cosine` is that with the one that is kept."""

    group: int
    id: str
    uri: str
    cosine: float
    kept: bool


def members(source: Mapped, labels: Places) -> Iterator[Member]:
    """The groups of two and more, one after the other, the one that is kept first.

    The largest picture is kept, where the metadata have `original_width` and `original_height`, or `width` and
    `height`; else the first.
    """
    sizes = np.bincount(labels, minlength=len(labels))
    places = np.flatnonzero(sizes[labels] > 1)
    known: list[Record] = []
    areas = np.empty(len(places))
    for n, record in enumerate(source.records(places)):
        areas[n] = _area(json.loads(record.tags))
        known.append(record)
    order = np.lexsort((places, -areas, labels[places]))
    begins = np.flatnonzero(np.diff(labels[places][order], prepend=-1))
    kept = np.repeat(order[begins], np.diff([*begins, len(order)]))
    groups = np.repeat(np.arange(len(begins)), np.diff([*begins, len(order)]))
    for start in range(0, len(order), _ROWS):
        some, keep = order[start : start + _ROWS], kept[start : start + _ROWS]
        rows, others = source.vectors_of(places[some])[1], source.vectors_of(places[keep])[1]
        cosines = np.einsum('nd,nd->n', rows.astype(np.float64), others.astype(np.float64))
        for n, (one, other) in enumerate(zip(some.tolist(), keep.tolist(), strict=True)):
            yield Member(
                int(groups[start + n]), known[one].id, known[one].uri, round(float(cosines[n]), 6), one == other
            )


def _area(tags: dict[str, Any]) -> float:
    for prefix in ('original_', ''):
        width, height = tags.get(f'{prefix}width'), tags.get(f'{prefix}height')
        if isinstance(width, int | float) and isinstance(height, int | float):
            return float(width) * float(height)
    return 0.0


def check_file(file: Path) -> None:
    """Raises InvalidParameter for a file of a format that is not written."""
    if file.suffix not in FORMATS:
        raise InvalidParameter(f'{file} ends with none of {", ".join(FORMATS)}, which say how it is written')


def write(found: Iterable[Member], file: Path) -> None:
    """Write groups as parquet, CSV or JSON lines, by the end of the name; a file that was there is replaced.

    Raises:
        ReadOnly, StorageFull: it cannot be written; a file that was there is left.
        Unavailable: parquet needs pyarrow.
    """
    temporary = file.with_name(f'.{file.name}-{secrets.token_hex(4)}')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == '.parquet':
            _write_parquet(found, temporary)
        else:
            _write_text(found, temporary, as_json=file.suffix == '.jsonl')
        os.replace(temporary, file)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else ReadOnly
        raise kind(f'{file} cannot be written: {error.strerror or error}') from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_text(found: Iterable[Member], file: Path, *, as_json: bool) -> None:
    with file.open('w', encoding='utf-8', newline='') as out:
        if as_json:
            out.writelines(json.dumps(asdict(one), ensure_ascii=False) + '\n' for one in found)
            return
        rows = csv.DictWriter(out, [field.name for field in fields(Member)], lineterminator='\n')
        rows.writeheader()
        rows.writerows(asdict(one) for one in found)


def _write_parquet(found: Iterable[Member], file: Path) -> None:
    tables, arrays = parquet(), arrow()
    text = arrays.string()
    schema = arrays.schema(
        [('group', arrays.int64()), ('id', text), ('uri', text), ('cosine', arrays.float64()), ('kept', arrays.bool_())]
    )
    with tables.ParquetWriter(file, schema) as out:
        for some in _blocks(found):
            out.write_table(arrays.Table.from_pylist([asdict(one) for one in some], schema=schema))


def _blocks(found: Iterable[Member]) -> Iterator[list[Member]]:
    remaining = iter(found)
    while some := list(itertools.islice(remaining, _ROWS)):
        yield some

"""What is done and in which parts, kept in the output folder: every process and every further run does the same.

plan/plan.json   the input, the model, the number of partitions
plan/N.json      where the items of partition N are
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clipflow.bulk.embed.items import Fault, Part, Place, Range, Reader
from clipflow.errors import Conflict, InvalidParameter, ModelMismatch, NotFound
from clipflow.files import replaced, translated


@dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes:
        input: as the caller named it.
        digest: of what was there.
        fingerprint: of the model.
        partition_size: items of a partition, the last excepted.
        texts: whether captions are embedded.
        partitions: how many there are.
        items: how many in all.
        options: what else decides which items there are, and what is embedded of them; by name.
    """

    input: str
    digest: str
    fingerprint: str
    partition_size: int
    texts: bool
    partitions: int = 0
    items: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """Of a partition, as in the names of its files: as many digits as clip-retrieval has for so many partitions."""
        return f'{number:0{len(str(self.partitions))}d}'


def planned(folder: Path, wanted: Plan, reader: Reader, *, keep: bool) -> Plan:
    """The plan of the output folder; made if there is none.

    Args:
        folder: for the output.
        wanted: without the number of partitions and items; `texts` says whether captions are wanted, if there are any.
        reader: of the input.
        keep: whether a plan stays in force though the input has changed.

    Raises:
        NotFound: there is no item in the input.
        InvalidParameter: the folder holds something else.
        Conflict, ModelMismatch: it was begun with another input, partition size, model or other options.
        StorageFull, ReadOnly: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidParameter(f'{folder} is a file; name a folder')
    path = folder / 'plan' / 'plan.json'
    if path.is_file():
        return _agreed(folder, _read(path), wanted, keep)
    if folder.is_dir() and any(not name.startswith('.') for name in os.listdir(folder)):
        raise InvalidParameter(f'{folder} is not empty and has no plan of `clipflow embed`; name another folder')
    # Ranks on several machines may do this at once.
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix='.plan-', dir=folder))
        made.chmod(0o755)
        try:
            _write(made, wanted, reader)
            try:
                made.rename(path.parent)
            except OSError:
                # Another rank was first, with the same plan.
                if not path.is_file():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return _agreed(folder, _read(path), wanted, keep)


def part(folder: Path, plan: Plan, number: int) -> Part:
    """A partition of a plan."""
    found = json.loads((folder / 'plan' / f'{plan.name(number)}.json').read_text(encoding='utf-8'))
    pieces = (Range(**piece | {'entries': tuple(map(tuple, piece['entries']))}) for piece in found['ranges'])
    return Part(tuple(pieces), tuple(Fault(**fault) for fault in found['faults']))


def parts(found: Iterable[Place | Fault], size: int) -> Iterator[Part]:
    """Cut what a reader has found into partitions of `size` items."""
    pieces, faults, count = list[_Open](), list[Fault](), 0
    for one in found:
        if isinstance(one, Fault):
            faults.append(one)
            continue
        if count == size:
            yield Part(tuple(piece.closed() for piece in pieces), tuple(faults))
            pieces, faults, count = [], [], 0
        if not pieces or not pieces[-1].takes(one):
            pieces.append(_Open(one.source, one.row, one.row, one.offset, []))
        pieces[-1].add(one)
        count += 1
    yield Part(tuple(piece.closed() for piece in pieces), tuple(faults))


@dataclass
class _Open:
    """A range that grows."""

    source: str
    start: int
    stop: int
    offset: int
    entries: list[Any]

    def takes(self, place: Place) -> bool:
        return (place.source, place.row) == (self.source, self.stop)

    def add(self, place: Place) -> None:
        self.stop += 1
        if place.entry is not None:
            self.entries.append(place.entry)

    def closed(self) -> Range:
        return Range(self.source, self.start, self.stop, self.offset, tuple(self.entries))


def _write(folder: Path, wanted: Plan, reader: Reader) -> None:
    """Write a plan into a new folder; the names of its parts are known when all are there."""
    numbers, items, first = 0, 0, ''
    for number, piece in enumerate(parts(reader.scan(), wanted.partition_size)):
        first = first or (piece.faults[0].reason if piece.faults else '')
        text = {'ranges': [asdict(one) for one in piece.ranges], 'faults': [asdict(one) for one in piece.faults]}
        replaced(folder / f'part-{number}', json.dumps(text).encode('ascii'))
        numbers, items = number + 1, items + piece.count
    if not items:
        raise NotFound(f'{wanted.input} holds no pictures{f": {first}" if first else ""}')
    plan = replace(wanted, texts=wanted.texts and reader.captions, partitions=numbers, items=items)
    for number in range(numbers):
        (folder / f'part-{number}').rename(folder / f'{plan.name(number)}.json')
    replaced(folder / 'plan.json', json.dumps(asdict(plan), indent=2).encode('ascii'))


def _read(path: Path) -> Plan:
    try:
        return Plan(**json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidParameter(f'{path} is no plan of `clipflow embed` ({error}); name another folder') from None


def _agreed(folder: Path, plan: Plan, wanted: Plan, keep: bool) -> Plan:
    again = 'name another folder for the output'
    if plan.fingerprint != wanted.fingerprint:
        raise ModelMismatch(f'{folder} was begun with another model ({plan.fingerprint[:12]}); {again}')
    if plan.input != wanted.input:
        raise Conflict(f'{folder} was begun with the input {plan.input}, not {wanted.input}; {again}')
    if plan.partition_size != wanted.partition_size:
        raise Conflict(f'{folder} was begun with --partition-size {plan.partition_size}; give the same, or {again}')
    if plan.options != wanted.options:
        options = ' '.join(f'{name} {value}'.strip() for name, value in plan.options.items())
        raise Conflict(f'{folder} was begun with {options or "none of these options"}; give the same, or {again}')
    if plan.digest != wanted.digest and not keep:
        raise Conflict(
            f'{plan.input} has changed since {folder} was begun: files came, went or have another size; {again}, or go '
            'on with what was there then (--keep-plan)'
        )
    return plan

"""Embeddings on disk, as clip-retrieval lays them out: a partition is there as a whole, or not at all.

    img_emb/img_emb_N.npy          float16, [n, D], rows of unit length
    text_emb/text_emb_N.npy        the same of the captions, if there are any
    metadata/metadata_N.parquet    image_path, caption, and the metadata with nested names joined by dots
    failures/failures_N.parquet    key, reason, and whether it is embedded all the same
    stats/N.json                   written last: with it the partition is done
    failures.parquet, manifest.json  of all partitions, when the last is done

Everything is written under another name first, and given its own when it is on the disk.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.bulk.arrow import arrow, parquet
from clipflow.bulk.embed.decoding import Row
from clipflow.bulk.embed.items import Fault
from clipflow.bulk.embed.mapper import Mapped
from clipflow.bulk.embed.plan import Plan
from clipflow.errors import Conflict, ModelMismatch
from clipflow.files import replaced, translated

_OWN = ('image_path', 'caption')
_SESSION = ('runtime', 'device', 'precision')
Columns = dict[str, list[Any]]


class Writer:
    """See the module.

    Args:
        folder: of the output.
        plan: of the work.
        dimension: D.

    Raises:
        Unavailable: pyarrow is not installed.
    """

    def __init__(self, folder: Path, plan: Plan, dimension: int) -> None:
        self._folder = folder
        self._plan = plan
        self._dimension = dimension
        arrow()

    def write(self, number: int, mapped: Mapped, timings: dict[str, float]) -> None:
        """Write partition `number`, over what an earlier run may have left of it.

        Raises:
            StorageFull, ReadOnly: it cannot be written; nothing of it counts.
        """
        name = self._plan.name(number)
        with translated(self._folder):
            made = Path(tempfile.mkdtemp(prefix=f'.partition-{name}-', dir=self._folder))
            try:
                files = dict(self._made(made, name, mapped))
                sizes = {target: path.stat().st_size for target, path in files.items()}
                stats = timings | {
                    'sample_count': len(mapped.rows),
                    'failures': sum(not fault.embedded for fault in mapped.faults),
                    'without_caption': sum(fault.embedded for fault in mapped.faults),
                    'files': sizes,
                }
                if _is_whole(self._folder, name):
                    return  # another process was at it too, and whoever counts what is there may not miss it
                # Of a partition that is made again, what is there no longer counts from here on.
                (self._folder / 'stats' / f'{name}.json').unlink(missing_ok=True)
                for target, path in files.items():
                    (self._folder / target).parent.mkdir(exist_ok=True)
                    os.replace(path, self._folder / target)
            finally:
                shutil.rmtree(made, ignore_errors=True)
        replaced(self._folder / 'stats' / f'{name}.json', json.dumps(stats, indent=2).encode('ascii'))

    def _made(self, made: Path, name: str, mapped: Mapped) -> Iterator[tuple[str, Path]]:
        towers = [('img_emb', mapped.images), *([('text_emb', mapped.texts)] if self._plan.texts else [])]
        for tower, vectors in towers:
            with _synced(made / tower) as file:
                np.save(file, self._matrix(vectors))
            yield f'{tower}/{tower}_{name}.npy', made / tower
        for folder, columns in (
            ('metadata', metadata(mapped.rows, self._plan.texts)),
            ('failures', failures(mapped.faults)),
        ):
            with _synced(made / folder) as file:
                parquet().write_table(table(columns), file)
            yield f'{folder}/{folder}_{name}.parquet', made / folder

    def _matrix(self, vectors: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
        return np.concatenate(vectors) if vectors else np.empty((0, self._dimension), np.float16)


def metadata(rows: Sequence[Row], texts: bool) -> Columns:
    """The columns of the metadata: those that an item has not are null there."""
    columns: Columns = {'image_path': [row.key for row in rows]}
    if texts or any(row.caption is not None for row in rows):
        columns['caption'] = [row.caption for row in rows]
    for place, row in enumerate(rows):
        for name, value in _flat(row.metadata, ''):
            if name not in _OWN:
                if name not in columns:
                    columns[name] = [None] * len(rows)
                columns[name][place] = value
    return columns


def _flat(fields: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{above}{name}.')
        else:
            yield f'{above}{name}', value


def failures(faults: Iterable[Fault]) -> Columns:
    """The columns of the list of failures."""
    rows = list(faults)
    return {
        'key': [fault.key for fault in rows],
        'reason': [fault.reason for fault in rows],
        'embedded': [fault.embedded for fault in rows],
    }


def table(columns: Columns) -> Any:
    """A table of Arrow; a column whose values are of several kinds holds them as JSON."""
    arrays = arrow()
    made = {}
    for name, values in columns.items():
        text = name in ('image_path', 'caption', 'key', 'reason')
        try:
            made[name] = arrays.array(values, arrays.string() if text else None)
        except (arrays.ArrowException, UnicodeError, OverflowError):
            made[name] = arrays.array([None if value is None else _text(value) for value in values], arrays.string())
    return arrays.table(made)


def _text(value: Any) -> str:
    """As JSON, or a text itself; what is no letter, of names in another encoding, is told by its code."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def unfinished(folder: Path, plan: Plan) -> list[int]:
    """Partitions that are not there as a whole: not written yet, half written, or damaged since."""
    return [number for number in range(plan.partitions) if not _is_whole(folder, plan.name(number))]


def _is_whole(folder: Path, name: str) -> bool:
    stats = _stats(folder, name)
    try:
        return bool(stats) and all((folder / file).stat().st_size == size for file, size in stats['files'].items())
    except OSError:
        return False


def _stats(folder: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / 'stats' / f'{name}.json').read_text(encoding='utf-8'))
        return found if 'files' in found else {}
    except (OSError, ValueError):
        return {}


def tidy(folder: Path, plan: Plan) -> None:
    """Remove what killed runs have left of partitions that are done by now, and of plans that were not the first."""
    for pattern in ('.plan-*', *(f'.partition-{plan.name(number)}-*' for number in range(plan.partitions))):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def agree(folder: Path, description: dict[str, str]) -> None:
    """Hold on to what the first process of all runs the model on; others have to run it on the same.

    Raises:
        ModelMismatch: this one runs it on something else; the vectors would differ.
    """
    path = folder / 'plan' / 'session.json'
    own = {name: description.get(name, '') for name in _SESSION}
    if not path.is_file():
        made = path.with_name(f'.session-{uuid.uuid4().hex}')
        replaced(made, json.dumps(description, indent=2).encode('ascii'))
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        except OSError:
            made.replace(path)  # a file system without links
        finally:
            made.unlink(missing_ok=True)
    found = json.loads(path.read_text(encoding='utf-8'))
    theirs = {name: found.get(name, '') for name in _SESSION}
    if theirs != own:
        raise ModelMismatch(
            f'{folder} was begun on {" ".join(theirs.values())}, and here the model runs on {" ".join(own.values())}; '
            'give --runtime and --precision of then, or name another folder'
        )


def finish(folder: Path, plan: Plan, model: str) -> dict[str, Any]:
    """Gather the failures and write the manifest, once every partition is there.

    Returns:
        What is in the manifest.

    Raises:
        Conflict: another process makes a partition anew.
        StorageFull, ReadOnly: they cannot be written.
    """
    totals = dict.fromkeys(('sample_count', 'failures', 'without_caption'), 0)
    arrays, tables = arrow(), parquet()
    schema = arrays.schema([('key', arrays.string()), ('reason', arrays.string()), ('embedded', arrays.bool_())])
    gathered = folder / f'.failures-{uuid.uuid4().hex}'
    with translated(folder):
        with _synced(gathered) as file, tables.ParquetWriter(file, schema) as out:
            for number in range(plan.partitions):
                stats = _stats(folder, plan.name(number))
                if not stats:
                    raise Conflict(
                        f'another process is at partition {number} in {folder}; let it end, then run the same command '
                        'again'
                    )
                totals = {name: count + stats[name] for name, count in totals.items()}
                found = tables.read_table(folder / 'failures' / f'failures_{plan.name(number)}.parquet')
                if found.num_rows:
                    out.write_table(found.cast(schema))
        os.replace(gathered, folder / 'failures.parquet')
    session = json.loads((folder / 'plan' / 'session.json').read_text(encoding='utf-8'))
    manifest = {'model': model, **asdict(plan), **session, **totals}
    replaced(folder / 'manifest.json', json.dumps(manifest, indent=2).encode('ascii'))
    return manifest


@contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """A new file that is on the disk afterwards."""
    with path.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())

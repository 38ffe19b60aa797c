"""What a run from URLs or pictures has left out, of all its steps in one list: key or URL, reason, step."""

import os
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from clipflow.bulk.arrow import arrow, parquet
from clipflow.bulk.embed import writer
from clipflow.files import translated

_BLOCK = 10_000

Row = tuple[str, str, str]


def gather(folder: Path) -> None:
    """Write `failures.parquet` of the folder that holds `embeddings/` and, if there was a list of URLs, `pictures/`.

    Raises:
        StorageFull, ReadOnly: it cannot be written.
    """
    names = ('key', 'reason', 'step')
    schema = arrow().schema([(name, arrow().string()) for name in names])
    made = folder / f'.failures-{uuid.uuid4().hex}'
    with translated(folder):
        try:
            with parquet().ParquetWriter(made, schema) as out:
                rows = _rows(folder)
                while block := list(islice(rows, _BLOCK)):
                    columns = dict(zip(names, map(list, zip(*block, strict=True)), strict=True))
                    out.write_table(writer.table(columns).cast(schema))
            os.replace(made, folder / 'failures.parquet')
        finally:
            made.unlink(missing_ok=True)


def of_fetching(folder: Path) -> Iterator[tuple[str, str]]:
    """URL and reason of what could not be fetched."""
    for path in sorted(folder.glob('pictures/*.parquet')):
        for batch in parquet().ParquetFile(path).iter_batches(_BLOCK, columns=['url', 'status', 'error_message']):
            for row in batch.to_pylist():
                if row['status'] != 'success':
                    yield row['url'], row['error_message'] or 'no reason given'


def _rows(folder: Path) -> Iterator[Row]:
    for url, reason in of_fetching(folder):
        yield url, reason, 'fetch'
    embedded = folder / 'embeddings' / 'failures.parquet'
    for batch in parquet().ParquetFile(embedded).iter_batches(_BLOCK) if embedded.is_file() else ():
        left_out = [row for row in batch.to_pylist() if not row['embedded']]
        urls = _urls(folder, {row['key'] for row in left_out})
        for row in left_out:
            yield urls.get(row['key'], row['key']), row['reason'], 'embed'


def _urls(folder: Path, keys: set[str]) -> dict[str, str]:
    """The URLs of fetched items, by their keys, which begin with the name of their shard."""
    found = dict[str, str]()
    for shard in sorted({key[:5] for key in keys}):
        path = folder / 'pictures' / f'{shard}.parquet'
        if path.is_file():
            rows = parquet().read_table(path, columns=['key', 'url']).to_pylist()
            found |= {row['key']: row['url'] for row in rows if row['key'] in keys}
    return found

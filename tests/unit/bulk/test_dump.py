"""A collection that is written out: on a full disk, after a kill, larger than memory."""

import multiprocessing
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from clipflow.bulk import exchange
from clipflow.bulk.arrow import parquet
from clipflow.errors import NotFound, StorageFull
from clipflow.store import reading
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

LAYOUTS = ('plain', 'clip-retrieval')
COUNT = 130


def unit(count: int, dimension: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(COUNT, 384)


def stored(place: Path, vectors: np.ndarray) -> Path:
    store = Store(place, 'abc', 'm')
    for start in range(0, len(vectors), 1000):
        block = vectors[start : start + 1000]
        texts = (f'{os.urandom(200).hex()}' if len(vectors) == COUNT else '' for _ in block)
        store.upsert([Record(f'{start + n}', text, '', '{}', block[n]) for n, text in enumerate(texts)])
    store.close()
    return place


def unnoticed(count: int) -> None:
    pass


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own, which a signal may end."""
    process = multiprocessing.get_context('spawn').Process(target=work, args=arguments)
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 0


def written_where_less_and_less_is_missing(place: Path, disk: Path, layout: str) -> None:
    exchange.ROWS_PER_FILE = 50
    store, folder, filling = Store(place, 'abc', 'm'), disk / 'out', disk / 'filling'
    failed = 0
    for free in range(0, 512 << 10, 4 << 10):
        space = os.statvfs(disk)
        filling.write_bytes(bytes(space.f_bavail * space.f_frsize - free))
        try:
            exchange.write([store], folder, layout, unnoticed)
            break
        except StorageFull as error:
            said = str(error)
        assert f'no space is left for {folder}' in said
        assert list(folder.iterdir()) == []
        failed += 1
        filling.unlink()
    assert failed > 50
    found = [record.id for block in exchange.read(folder) for record in block]
    assert found == [f'{n}' for n in range(COUNT)]
    assert {path.name for path in folder.iterdir()} == (
        {'vectors.npy', 'documents.jsonl', 'manifest.json'}
        if layout == 'plain'
        else {'img_emb', 'metadata', 'image.index', 'manifest.json'}
    )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_full_disk_is_said_and_nothing_is_left_wherever_it_is_met(
    layout: str, tmp_path: Path, small_disk: Path
) -> None:
    apart(written_where_less_and_less_is_missing, stored(tmp_path / 'store', VECTORS), small_disk, layout)


def written_where_files_stay_small(place: Path, folder: Path, layout: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    with pytest.raises(StorageFull, match='no space is left'):
        exchange.write([Store(place, 'abc', 'm')], folder, layout, unnoticed)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_limit_on_files_is_a_full_disk_too(layout: str, tmp_path: Path) -> None:
    apart(written_where_files_stay_small, stored(tmp_path / 'store', VECTORS), tmp_path / 'out', layout)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_what_a_kill_leaves_is_no_collection(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(exchange, '_write_manifest', killed)
    store = Store(stored(tmp_path / 'store', VECTORS), 'abc', 'm')
    with pytest.raises(Killed):
        exchange.write([store], tmp_path / 'interrupted', layout, unnoticed)
    assert list((tmp_path / 'interrupted').iterdir()) == []
    monkeypatch.setattr(exchange, '_clear', killed)
    with pytest.raises(Killed):
        exchange.write([store], tmp_path / 'killed', layout, unnoticed)
    with pytest.raises(NotFound, match='no collection'):
        list(exchange.read(tmp_path / 'killed'))
    store.close()


def test_the_index_is_byte_for_byte_what_faiss_writes(tmp_path: Path) -> None:
    stores = [Store(stored(tmp_path / f'{n}', VECTORS[n::2]), 'abc', 'm') for n in range(2)]
    exchange.write(stores, tmp_path / 'out', 'clip-retrieval', unnoticed)
    index = faiss.index_factory(384, 'Flat', faiss.METRIC_INNER_PRODUCT)
    index.add(np.concatenate([VECTORS[0::2], VECTORS[1::2]]))
    assert (tmp_path / 'out' / 'image.index').read_bytes() == bytes(faiss.serialize_index(index))
    for store in stores:
        store.close()


LARGE = (24_000, 1024)
"""100 MB; a block of 1,000 has 4."""


def most_memory() -> int:
    """Bytes that this process had at once. `getrusage` counts what there was before it became this program."""
    found = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert found is not None
    return int(found[1]) << 10


def written_within(place: Path, folder: Path, layout: str) -> None:
    parquet()
    reading._ROWS_PER_READ = 1000
    store = Store(place, 'abc', 'm')
    for _ in store.vectors():  # until SQLite's cache is full
        pass
    before = most_memory()
    exchange.write([store], folder, layout, unnoticed)
    assert most_memory() - before < 4 * LARGE[0] * LARGE[1] / 2


@pytest.mark.skipif(not Path('/proc/self/status').is_file(), reason='there is no /proc, which tells the memory')
def test_a_collection_may_be_larger_than_memory(tmp_path: Path) -> None:
    place = stored(tmp_path / 'store', unit(*LARGE))
    for layout in LAYOUTS:
        apart(written_within, place, tmp_path / layout, layout)
        shutil.rmtree(tmp_path / layout)

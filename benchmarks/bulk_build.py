"""`clipflow build` beside the bare calls of FAISS that make the same index: 1.5 times as long is the aim at a million.

    python benchmarks/bulk_build.py --count 1000000

Both read the same float16 files, memory-mapped, and make an index of the same kind. The bare calls are `index_factory`,
`train` on as many vectors and with as many rounds of k-means as `build` takes (FAISS's own sample is four times as
large), `add` in blocks of 10,000, and `write_index`. `build` checks and scales the vectors, stores the documents,
tunes the search effort, and writes with checksums and to the disk itself; `file` is `build --faiss` without a
workspace, which stores no documents, as the bare calls do not. They take turns, each in a fresh folder. Seconds of
processors are told too, for a machine that others use. Vectors are random around centres.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet
from rich.console import Console
from rich.progress import track

from clipflow import ROOT
from clipflow.bulk import index_file
from clipflow.bulk.build import build_workspace
from clipflow.bulk.mapped import Mapped
from clipflow.index.choice import Wanted, choose
from clipflow.weights import load_spec

PARTITION = 100_000
ERRORS = Console(stderr=True)


def write(folder: Path, count: int, dimension: int) -> None:
    """A folder in clip-retrieval's layout."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(8, count // 200), dimension)).astype(np.float32)
    (folder / 'img_emb').mkdir()
    (folder / 'metadata').mkdir()
    for number, start in enumerate(track(range(0, count, PARTITION), 'writing vectors', console=ERRORS)):
        size = min(PARTITION, count - start)
        rows = centres[rng.integers(0, len(centres), size)] + rng.normal(size=(size, dimension)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder / 'img_emb' / f'img_emb_{number:03d}.npy', rows.astype(np.float16))
        table = {
            'image_path': [f'/photos/{start + n}.jpg' for n in range(size)],
            'caption': [f'caption {start + n}' for n in range(size)],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), folder / 'metadata' / f'metadata_{number:03d}.parquet')


def bare(folder: Path, target: Path, factory: str, sample: int) -> None:
    """Train, add, write: a script with FAISS, with the rounds of k-means and the sample that `build` takes."""
    arrays = [np.load(path, mmap_mode='r') for path in sorted(folder.glob('img_emb/*.npy'))]
    index = faiss.index_factory(arrays[0].shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.extract_index_ivf(index)
    lists.cp.niter, lists.cp.max_points_per_centroid = 10, 64
    step = max(1, sum(len(array) for array in arrays) // sample)
    index.train(np.concatenate([array[::step] for array in arrays]).astype(np.float32))
    for array in arrays:
        for start in range(0, len(array), 10_000):
            index.add(array[start : start + 10_000].astype(np.float32))
    faiss.write_index(index, str(target / 'image.index'))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=100_000)
    parser.add_argument('--dimension', type=int, default=512)
    parser.add_argument('--shards', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args(arguments)
    spec = replace(load_spec(str(ROOT / 'models' / 'clip-mini')), dimension=given.dimension)
    wanted = Wanted('ivf')
    factory = choose(wanted, given.count, given.dimension).factory
    seconds: dict[str, list[float]] = {'bare': [], 'file': [], 'build': []}
    busy: dict[str, list[float]] = {'bare': [], 'file': [], 'build': []}

    with tempfile.TemporaryDirectory(prefix='clipflow-build-') as place:
        folder = Path(place, 'vectors')
        folder.mkdir()
        write(folder, given.count, given.dimension)
        source = Mapped(folder)
        sample = 64 * int(factory.partition(',')[0].removeprefix('IVF'))

        def told(phase: str, count: int) -> None:
            """Nobody looks."""

        ways: dict[str, Callable[[Path], Any]] = {
            'bare': lambda target: bare(folder, target, factory, sample),
            'file': lambda target: index_file.write(source, target / 'image.index', wanted, told),
            'build': lambda target: build_workspace(source, target, spec, wanted, shards=given.shards, told=told),
        }
        for _ in range(given.rounds):
            for name, way in ways.items():
                target = Path(place, name)
                target.mkdir()
                begun, before = time.perf_counter(), sum(os.times()[:4])
                way(target)
                seconds[name].append(time.perf_counter() - begun)
                busy[name].append(sum(os.times()[:4]) - before)
                shutil.rmtree(target)

    def ratio(name: str) -> dict[str, Any]:
        ratios = [own / other for own, other in zip(seconds[name], seconds['bare'], strict=True)]
        return {'median': round(statistics.median(ratios), 2), 'range': [round(min(ratios), 2), round(max(ratios), 2)]}

    found = {
        'count': given.count,
        'dimension': given.dimension,
        'shards': given.shards,
        'factory': factory,
        'seconds': {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        'processor_seconds': {name: [round(value, 1) for value in values] for name, values in busy.items()},
        'ratio': {name: ratio(name) for name in ('file', 'build')},
    }
    print(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()

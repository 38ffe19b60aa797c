"""On paper: hours and money for many pictures on some numbers of GPUs, from rates that are measured here or given.

    python benchmarks/hours.py [--data DIR] [--rate 1389] [--gpu-price 1.0] [--core-price 0.05]

Measured: how long a core decodes a photograph, and how fast one process gathers and writes what comes back from a Ray
cluster. Given: pictures a second of one GPU; by default what clip-retrieval tells of itself, 100 million in 20 hours on
an RTX 3080 with ViT-B/32. Prices are assumptions.

    hours = pictures / (GPUs x rate)
    cores = GPUs x rate x seconds of a core for a picture
    runs  = GPUs x rate / what one process writes: ranks of one output folder, rounded up
    cost  = hours x (GPUs x price of a GPU + cores x price of a core)

The model is taken to be what everything waits for. Prices and rates of yours are options.
"""

import argparse
import math
import os
import pickle
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from clipflow import ROOT
from clipflow.bulk.embed.decoding import Decoder, Row
from clipflow.bulk.embed.items import Item
from clipflow.bulk.embed.mapper import Mapped
from clipflow.bulk.embed.plan import Plan, parts
from clipflow.bulk.embed.readers import open_input
from clipflow.bulk.embed.tables import Columns
from clipflow.bulk.embed.worker import items_of
from clipflow.bulk.embed.writer import Writer
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import load_spec

PARTITION, BATCH, DIMENSION = 10_000, 256, 512


@dataclass(frozen=True)
class Rates:
    """Pictures a second of a GPU, seconds of a core for each, pictures a second that are gathered and written."""

    gpu: float
    decoding: float
    writing: float


@dataclass(frozen=True)
class Prices:
    """Of an hour."""

    gpu: float
    core: float


def estimate(items: float, gpus: int, rates: Rates, prices: Prices) -> tuple[float, int, int, float]:
    """Hours, cores, runs, and cost; see the module."""
    rate = gpus * rates.gpu
    hours, cores = items / rate / 3600, math.ceil(rate * rates.decoding)
    return hours, cores, math.ceil(rate / rates.writing), hours * (gpus * prices.gpu + cores * prices.core)


def decoding(pattern: str, count: int) -> float:
    """Seconds of one core for a photograph: read, decoded, brought to the model's size."""
    spec, reader = load_spec(EncoderSettings.load().model), open_input(pattern, Columns())
    reading = PreprocessorSettings.load()
    decoder, found = Decoder(spec, reading), items_of(reader, next(parts(reader.scan(), count)), reading.max_bytes)
    items = [one for one in islice(found, count) if isinstance(one, Item)]
    begun = time.process_time()
    for item in items:
        decoder.decode(item, texts=False)
    return (time.process_time() - begun) / len(items)


def writing(rounds: int) -> float:
    """Pictures a second, of what comes back pickled in minibatches, with captions, and becomes partitions."""
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((2, BATCH, DIMENSION)).astype(np.float16)
    rows = [Row(f'{n:09d}', f'a caption of ten words or so, number {n}', {'n': n, 'w': 1.5}) for n in range(BATCH)]
    batch = pickle.dumps(Mapped([vectors[0]], [vectors[1]], rows))
    plan = Plan('', '', '', PARTITION, texts=True, partitions=rounds, items=rounds * PARTITION)
    with tempfile.TemporaryDirectory() as folder:
        for name in ('plan', 'stats'):
            Path(folder, name).mkdir()
        begun = time.perf_counter()
        for number in range(rounds):
            whole = Mapped()
            for _ in range(PARTITION // BATCH):
                whole.add(pickle.loads(batch))
            Writer(Path(folder), plan, DIMENSION).write(number, whole, {})
        return rounds * (PARTITION // BATCH) * BATCH / (time.perf_counter() - begun)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--set', default='unsplash/photos.zip', help='a zip file below DATA')
    parser.add_argument('--items', type=float, default=100e6)
    parser.add_argument('--gpus', default='1,8,64')
    parser.add_argument('--rate', type=float, default=100e6 / 20 / 3600, help='pictures a second of one GPU')
    parser.add_argument('--gpu-price', type=float, default=1.0, help='of an hour')
    parser.add_argument('--core-price', type=float, default=0.05, help='of an hour')
    given = parser.parse_args()
    rates = Rates(given.rate, decoding(str(given.data / given.set), 500), writing(20))
    print(f'a core decodes a photograph in {rates.decoding * 1000:.1f} ms; one process writes {rates.writing:,.0f}/s')
    print(f'\n| GPUs at {rates.gpu:,.0f}/s | hours | cores that decode | runs | cost |\n|---:|---:|---:|---:|---:|')
    for gpus in map(int, given.gpus.split(',')):
        hours, cores, runs, cost = estimate(given.items, gpus, rates, Prices(given.gpu_price, given.core_price))
        print(f'| {gpus} | {hours:.2f} | {cores} | {runs} | {cost:,.0f} |')
    print(
        f'\nmeasured on {len(os.sched_getaffinity(0))} cores; a GPU hour {given.gpu_price}, a core {given.core_price}'
    )


if __name__ == '__main__':
    main()

"""How fast `clipflow embed` is beside the model alone, and how much memory it takes for more and more items.

    python benchmarks/bulk.py [--data DIR] [--sets unsplash/photos.zip,...] [--rounds 3]
    python benchmarks/bulk.py --memory 10 [--sets ...] [--runner ray]

Each round embeds all sets, in a process of its own, and then lets the same runtime encode the same pictures, with their
pixels ready and nothing else to do. `--memory 10` makes WebDataset shards of the sets, embeds them, and then ten times
as many by links to each shard: the memory of all processes together has to stay the same, and below 2 GB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path

from clipflow import ROOT
from setups import spread

SETS = 'unsplash/photos.zip'
LIMIT = 2000 * 1000**2 // 2**20
"""2 GB in MiB."""


def embed(pattern: str, out: Path, partition_size: int, runner: str = 'local') -> tuple[float, float]:
    """Items a second, the loading of the model not counted, and the largest memory of all its processes in MiB."""
    command = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'clipflow.cli.main',
        'embed',
        pattern,
        '--out',
        str(out),
        '--quiet',
    ]
    command += ['--partition-size', str(partition_size), '--runner', runner]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        ended = threading.Event()

        def wait() -> None:
            running.wait()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        while not ended.wait(0.2):
            peak = max(peak, _memory(running.pid))
    stats = [json.loads(path.read_text()) for path in (out / 'stats').glob('*.json')]
    seconds = max(one['end_time'] for one in stats) - min(one['start_time'] for one in stats)
    return sum(one['sample_count'] for one in stats) / seconds, peak


def _memory(process: int) -> float:
    """Resident memory of a process and those below it, in MiB."""
    try:
        pages = int(Path(f'/proc/{process}/statm').read_text().split()[1])
        children = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20 + sum(_memory(int(child)) for child in children)


def memory(sets: list[Path], times: int, partition_size: int, runner: str) -> bool:
    """Embed shards once and so many times; whether memory has stayed below the limit."""
    with tempfile.TemporaryDirectory() as work:
        for number, path in enumerate(sets):
            _packed(path, Path(work, f'{number:02d}-000.tar'))
            for time_ in range(1, times):
                Path(work, f'{number:02d}-{time_:03d}.tar').symlink_to(Path(work, f'{number:02d}-000.tar'))
        peaks = []
        for label, pattern in (('once', f'{work}/*-000.tar'), (f'{times} times', f'{work}/*.tar')):
            out = Path(work, label.replace(' ', '-'))
            rate, peak = embed(pattern, out, partition_size, runner)
            count = json.loads((out / 'manifest.json').read_text())['sample_count']
            print(f'{label}: {count:,} items in partitions of {partition_size:,}, {rate:.1f}/s, {peak:,.0f} MiB')
            peaks.append(peak)
        print(f'{times} times the items, {peaks[1] / peaks[0]:.2f} times the memory; the limit is {LIMIT:,} MiB')
        return max(peaks) < LIMIT


def _packed(source: Path, target: Path) -> None:
    """A WebDataset shard of what a zip file holds."""
    with zipfile.ZipFile(source) as given, tarfile.open(target, 'w') as shard:
        for name in given.namelist():
            member = tarfile.TarInfo(name)
            member.size = given.getinfo(name).file_size
            shard.addfile(member, given.open(name))


def alone(pattern: str) -> float:
    """Pictures a second of the session by itself."""
    import numpy as np
    from docarray import Document

    from clipflow.bulk.embed.items import Item
    from clipflow.bulk.embed.plan import parts
    from clipflow.bulk.embed.readers import open_input
    from clipflow.bulk.embed.tables import Columns
    from clipflow.bulk.embed.worker import items_of
    from clipflow.preparation import Preparation, check_pixels
    from clipflow.sessions.registry import open_session
    from clipflow.settings import EncoderSettings, PreprocessorSettings
    from clipflow.weights import load_spec
    from clipflow.work import share_of_cores

    encoding = EncoderSettings.load()
    spec = load_spec(encoding.model)
    reading, reader = PreprocessorSettings.load(), open_input(pattern, Columns())
    preparation, pixels = Preparation(spec, reading), []
    for item in items_of(reader, next(parts(reader.scan(), 20 * encoding.batch_size)), reading.max_bytes):
        assert isinstance(item, Item)
        doc = Document(blob=item.load().picture)
        preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
        pixels.append(check_pixels(doc, spec))
    session = open_session(spec, encoding, share_of_cores(encoding.threads, 1), shared=False).session
    session.encode_images(np.stack(pixels[: encoding.batch_size]))
    begun = time.perf_counter()
    for start in range(0, len(pixels), encoding.batch_size):
        session.encode_images(np.stack(pixels[start : start + encoding.batch_size]))
    return len(pixels) / (time.perf_counter() - begun)


def main() -> None:
    """Run the rounds, measure memory, or, called by itself, the session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--sets', default=SETS, help='zip files below DATA, separated by commas')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--memory', type=int, metavar='TIMES', help='measure the memory of so many times the items')
    parser.add_argument('--runner', choices=('local', 'ray'), default='local', help='of --memory')
    parser.add_argument('--partition-size', type=int, default=1000)
    parser.add_argument('--alone', metavar='INPUT', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(alone(given.alone))
        return
    sets = [given.data / name for name in given.sets.split(',')]
    if given.memory:
        sys.exit(not memory(sets, given.memory, given.partition_size, given.runner))
    with tempfile.TemporaryDirectory() as work:
        for number, path in enumerate(sets):
            Path(work, f'{number}.zip').symlink_to(path)
        pattern, ratios, peaks, rates = f'{work}/*.zip', [], [], []
        for number in range(given.rounds):
            rate, peak = embed(pattern, Path(work, f'out-{number}'), given.partition_size)
            command = [sys.executable, '-W', 'ignore', __file__, '--alone', pattern]
            model = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f'round {number + 1}: {rate:.1f} items/s, the model alone {model:.1f}, memory {peak:,.0f} MiB')
            ratios.append(rate / model)
            peaks.append(peak)
            rates.append(rate)
    share = spread(ratios, '.2f')
    print(f'items/s {statistics.median(rates):.1f}; of the model alone {share}; at most {max(peaks):,.0f} MiB')


if __name__ == '__main__':
    main()

"""One encoder with all cores, or several with a share each: photographs and texts through the Flow.

    python benchmarks/replicas.py [--data DIR] [--model DIR] [--rounds 3] [--runtime auto]

The ways take turns; each has a service of its own in every round.
"""

import argparse
import asyncio
import tempfile
import time
import zipfile
from pathlib import Path

import yaml
from docarray import Document

from clipflow import ROOT
from clipflow_client import AsyncClient, Client
from setups import LocalService, quantiles, spread, timed

PHOTOGRAPHS = 256
TEXTS = 640
CLIENTS = 32
WAYS = ((1, 0), (2, 0), (2, 2))
"""Replicas, and threads of each: 0 divides the cores."""


def flow_with(folder: Path, replicas: int) -> Path:
    """flow.yml with so many encoders."""
    flow = yaml.safe_load((ROOT / 'flow.yml').read_text(encoding='utf-8'))
    for part in [flow['gateway'], *flow['executors']]:
        part['uses'] = str(ROOT / part['uses'])
        if part.get('name') == 'encoder':
            part['replicas'] = replicas
    path = folder / 'flow.yml'
    path.write_text(yaml.safe_dump(flow, sort_keys=False), encoding='utf-8')
    return path


async def at_once(address: str) -> float:
    """Texts per second of clients that each send one after the other."""
    numbers = iter(range(TEXTS))
    async with AsyncClient(address) as client:

        async def one() -> None:
            for number in numbers:
                await client.encode([f'a photo of dog number {number}'])

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return TEXTS / (time.perf_counter() - begun)


def measured(blobs: list[bytes], settings: dict[str, str], replicas: int, threads: int) -> dict[str, float]:
    """Photographs and texts per second, and the median of one text alone in milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {'TEXT_CACHE': '0', 'THREADS': str(threads), **settings}
        with LocalService(folder / 'workspace', given, flow_with(folder, replicas)) as service:
            with Client(service.grpc) as client:
                client.index(Document(id=f'warm {i}', blob=blob) for i, blob in enumerate(blobs[:64]))
                begun = time.perf_counter()
                client.index(Document(id=str(i), blob=blob) for i, blob in enumerate(blobs))
                photographs = len(blobs) / (time.perf_counter() - begun)
                alone = quantiles(timed(lambda: client.encode(['a dog in the snow']), 40))[0]
            return {'photographs': photographs, 'texts': asyncio.run(at_once(service.grpc)), 'alone': alone}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--model', help='default: the bundled one')
    parser.add_argument('--runtime', default='auto')
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    settings = {'RUNTIME': given.runtime} | ({'MODEL': given.model} if given.model else {})
    with zipfile.ZipFile(given.data / 'unsplash' / 'photos.zip') as file:
        blobs = [file.read(name) for name in sorted(file.namelist())[:PHOTOGRAPHS]]
    found: dict[tuple[int, int], list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way, turns in found.items():
            turns.append(measured(blobs, settings, *way))
    print('\n| encoders x threads | photographs/s | beside one | 32 texts at once/s | beside one | one text, ms |')
    print('|---|---|---|---|---|---|')
    for (replicas, threads), turns in found.items():
        cells = []
        for figure in ('photographs', 'texts'):
            ratios = [turn[figure] / one[figure] for turn, one in zip(turns, found[WAYS[0]], strict=True)]
            cells += [spread([turn[figure] for turn in turns]), spread(ratios, '.2f')]
        cells.append(spread([turn['alone'] for turn in turns]))
        print(f'| {replicas} x {threads or "its share"} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()

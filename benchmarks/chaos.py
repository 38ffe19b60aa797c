"""A Flow with replicas and shards under load, whose stages are killed, stopped and frozen at random.

    python benchmarks/chaos.py [--minutes 10] [--seed 0] [--workspace FOLDER]

Two encoders and two shards of the index run on this host under `clipflow serve`, with the session `fake` (vectors
without a model: what is looked at is not the model). Three writers and four searchers use our client, which sends again
what may pass; a probe sends 20 searches a second and nothing again. Every few seconds one process is killed (SIGKILL),
told to stop (SIGTERM) or frozen for one to four seconds (SIGSTOP).

It fails when a document is not as it was acknowledged, when an error is not typed or says not to try again, or when
fewer than 99.5 % of the callers' requests succeed.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from chaos_load import Load, Tally
from clipflow import ROOT
from setups import LocalService

WANTED = 0.995
_WAYS = ('kill', 'terminate', 'freeze')
_MOST_DEATHS = 4
"""Of one process within a minute: the launcher gives up at six."""


def flow(folder: Path) -> Path:
    """flow.yml with two encoders and two shards, as a file in `folder`."""
    made = yaml.safe_load((ROOT / 'flow.yml').read_text(encoding='utf-8'))
    parts = {part['name']: part for part in made['executors']}
    for part in [made['gateway'], *parts.values()]:
        part['uses'] = str(ROOT / part['uses'])
    parts['encoder']['replicas'] = 2
    shards = [
        {
            **parts['indexer'],
            'name': f'indexer_{number}',
            'needs': 'encoder',
            'uses_with': {'shard': number, 'shards': 2},
        }
        for number in range(2)
    ]
    parts['ranker']['needs'] = [shard['name'] for shard in shards]
    made['executors'] = [parts['preprocessor'], parts['encoder'], *shards, parts['ranker']]
    path = folder / 'chaos.yml'
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding='utf-8')
    return path


class Disturbances:
    """Kills, stops and freezes processes of a service, one every few seconds.

    Args:
        service: that runs.
        seed: of what is done to whom.
    """

    def __init__(self, service: LocalService, seed: int) -> None:
        self._service = service
        self._chance = random.Random(seed)
        self._deaths: dict[str, list[float]] = {}
        self.done: Counter[tuple[str, str]] = Counter()

    async def run(self, until: float) -> None:
        """Go on until `until` (monotonic seconds); at the end nothing is frozen, and what died has been started."""
        while time.monotonic() < until:
            name = self._chance.choice([name for name in self._service.pids if self._may_die(name)])
            way = self._chance.choice(_WAYS)
            self.done[name.split('/')[0], way] += 1
            await self._disturb(name, way)
            await asyncio.sleep(self._chance.uniform(1.0, 4.0))

    def _may_die(self, name: str) -> bool:
        recent = [moment for moment in self._deaths.get(name, []) if moment > time.monotonic() - 60]
        return len(recent) < _MOST_DEATHS

    async def _disturb(self, name: str, way: str) -> None:
        pid = self._service.pids[name]
        if way == 'freeze':
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(self._chance.uniform(1.0, 4.0))
            finally:
                os.kill(pid, signal.SIGCONT)
            return
        self._deaths.setdefault(name, []).append(time.monotonic())
        os.kill(pid, signal.SIGKILL if way == 'kill' else signal.SIGTERM)
        async with asyncio.timeout(120):
            while self._service.pids[name] == pid:
                await asyncio.sleep(0.05)


async def run(service: LocalService, seconds: float, seed: int) -> tuple[Load, Disturbances]:
    """Load and disturbances for some seconds; both with what they have counted."""
    load, disturbances = Load(service.grpc, seed), Disturbances(service, seed)
    running = asyncio.create_task(load.run())
    try:
        await disturbances.run(time.monotonic() + seconds)
        await asyncio.sleep(1)
    finally:
        load.stop()
        await running
    return load, disturbances


def told(tally: Tally) -> list[str]:
    """Lines about the requests of one kind of caller."""
    lines = [
        f'{tally.requests.total():,} requests, {tally.success:.3%} succeeded, {tally.partial:,} partial; '
        f'slowest {tally.slowest:.1f} s, longest time without an answer {tally.outage:.1f} s'
    ]
    lines += [f'    {count:6,}  {kind}: {code}' for (kind, code), count in tally.failures.most_common()]
    return lines + [f'    FAULT {fault}' for fault in tally.faults[:20]]


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workspace', type=Path, help='empty folder for the documents; a temporary one by default')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = given.workspace or Path(folder) / 'workspace'
        with LocalService(workspace, {'RUNTIME': 'fake'}, flow(Path(folder))) as service:
            load, disturbances = asyncio.run(run(service, 60 * given.minutes, given.seed))
            broken, count = asyncio.run(load.broken())
    for (stage, way), times in sorted(disturbances.done.items()):
        print(f'{times:4}  {way} {stage}')
    print('\ncallers:', *told(load.callers), sep='\n')
    print('\nprobe, which sends nothing again:', *told(load.probe), sep='\n')
    print(f'\nnot as acknowledged: {len(broken)} of {count} documents', *list(broken.items())[:20], sep='\n')
    good = not broken and not load.callers.faults and not load.probe.faults and load.callers.success >= WANTED
    print('\nMet' if good else '\nMISSED')
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())

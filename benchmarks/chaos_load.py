"""Mixed load on a service, and a ledger of what it has promised: which documents have to be there, and how.

Every document belongs to one writer. After a write that failed nobody knows whether it was done, and it may still be
done later; so that document is never written again, and either state counts.
"""

import asyncio
import io
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from docarray import Document
from PIL import Image

from clipflow.errors import ClipflowError
from clipflow_client import AsyncClient

GONE = -1
"""The version of a document that is deleted."""
_PICTURES = 40


@dataclass
class Ledger:
    """For each document the versions that it may have at the end; one, unless a write of it failed."""

    allowed: dict[str, set[int]] = field(default_factory=dict)

    def done(self, name: str, version: int) -> None:
        """A write was acknowledged."""
        self.allowed[name] = {version}

    def unknown(self, name: str, version: int) -> None:
        """A write failed."""
        self.allowed.setdefault(name, {GONE}).add(version)

    def certain(self) -> list[str]:
        """Documents that may be written again."""
        return [name for name, versions in self.allowed.items() if len(versions) == 1 and GONE not in versions]

    async def broken(self, client: AsyncClient) -> dict[str, tuple[set[int], int]]:
        """Documents that are not as promised: what was allowed and what is there."""
        wrong, names = {}, list(self.allowed)
        for start in range(0, len(names), 500):
            found = await client.get(names[start : start + 500])
            for name in names[start : start + 500]:
                version = int(found[name].tags['version']) if name in found else GONE
                if version not in self.allowed[name]:
                    wrong[name] = (self.allowed[name], version)
        return wrong


@dataclass
class Tally:
    """What became of the requests of one kind of caller.

    Attributes:
        failures: by kind of request and code of the error.
        faults: errors that are not ours, or that say not to try again; with such a request.
        slowest: seconds of the slowest answer.
        outage: the longest time without any success, in seconds.
    """

    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    partial: int = 0
    slowest: float = 0.0
    outage: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    async def count(self, kind: str, call: Callable[[], Awaitable[None]]) -> bool:
        """Do one request; whether it succeeded."""
        begun = time.monotonic()
        self.requests[kind] += 1
        try:
            await call()
        except ClipflowError as error:
            self.failures[kind, error.code] += 1
            if not error.retryable:
                self.faults.append(f'{kind}: {error!r}')
            return False
        except Exception as error:  # that there are none is what this looks for
            self.failures[kind, type(error).__name__] += 1
            self.faults.append(f'{kind}: {error!r}')
            return False
        now = time.monotonic()
        self.slowest = max(self.slowest, now - begun)
        self.outage = max(self.outage, now - self._last)
        self._last = now
        return True

    @property
    def success(self) -> float:
        """Share of the requests that succeeded."""
        return 1 - sum(self.failures.values()) / max(1, self.requests.total())


class Load:
    """Callers that go on until `stop`.

    Args:
        address: gRPC of the service.
        seed: of what they ask.
    """

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._chance = random.Random(seed)
        self._pictures = [_picture(self._chance) for _ in range(_PICTURES)]
        self._ledgers: list[Ledger] = []
        self.callers = Tally()
        """Use the client as people do: it sends again what may pass."""
        self.probe = Tally()
        """Sends nothing again, so that it sees what the service itself lets through."""
        self._stop = asyncio.Event()

    async def broken(self) -> tuple[dict[str, tuple[set[int], int]], int]:
        """Documents that are not as promised: what was allowed, what is there; and how many documents there are."""
        promised = {name: versions for ledger in self._ledgers for name, versions in ledger.allowed.items()}
        async with AsyncClient(self._address, timeout=90, retries=30) as client:
            return await Ledger(promised).broken(client), len(promised)

    def stop(self) -> None:
        """Let running requests end, and begin no more."""
        self._stop.set()

    async def run(self, writers: int = 3, searchers: int = 4, rate: float = 20.0) -> None:
        """Ask until `stop`: the probe `rate` times a second, the others one request after the other."""
        patient, impatient = AsyncClient(self._address, timeout=90, retries=30), AsyncClient(self._address, retries=0)
        async with patient as client, impatient as once:
            tasks = [self._write(client, number) for number in range(writers)]
            tasks += [self._search(client) for _ in range(searchers)]
            await asyncio.gather(self._look(once, rate), *tasks)

    async def _write(self, client: AsyncClient, number: int) -> None:
        ledger = Ledger()
        self._ledgers.append(ledger)
        for serial in itertools.count():
            if self._stop.is_set():
                return
            known = ledger.certain()
            kind = self._chance.choice(('index', 'index', 'update', 'delete')) if known else 'index'
            name = f'{number}-{serial}' if kind == 'index' else self._chance.choice(known)
            good = await self.callers.count(kind, partial(self._change, client, kind, name, serial))
            (ledger.done if good else ledger.unknown)(name, GONE if kind == 'delete' else serial)

    async def _change(self, client: AsyncClient, kind: str, name: str, version: int) -> None:
        if kind == 'delete':
            await client.delete([name])
        elif kind == 'update':
            for outcome in await client.update({name: {'version': version}}):
                if outcome.error:
                    raise outcome.error
        else:
            content = {'text': f'text {name}'} if version % 2 else {'blob': self._chance.choice(self._pictures)}
            doc = Document(id=name, tags={'version': version}, **content)
            async for outcome in client.index([doc]):
                if outcome.error:
                    raise outcome.error

    async def _search(self, client: AsyncClient) -> None:
        async def ask() -> None:
            query = f'text {self._chance.randrange(1000)}'
            self.callers.partial += (await client.search(query, limit=5)).partial

        while not self._stop.is_set():
            await self.callers.count('search', ask)
            await asyncio.sleep(0.05)

    async def _look(self, client: AsyncClient, rate: float) -> None:
        async def ask() -> None:
            self.probe.partial += (await client.search('a probe', limit=1)).partial

        running: set[asyncio.Task[bool]] = set()
        while not self._stop.is_set():
            task = asyncio.create_task(self.probe.count('probe', ask))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*running)


def _picture(chance: random.Random) -> bytes:
    image = Image.effect_noise((96, 64), chance.uniform(20, 90)).convert('RGB')
    out = io.BytesIO()
    image.save(out, 'JPEG')
    return out.getvalue()

"""What tests send to the service, and what they measure meanwhile."""

import io
import itertools
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docarray import Document
from PIL import Image

from clipflow import ROOT
from clipflow_client import Client

from .cluster import Pods
from .inside import Search

PHOTOGRAPHS = Path(os.environ.get('CLIPFLOW_TEST_DATA', ROOT.parent / 'shared' / 'data')) / 'unsplash' / 'photos.zip'
COUNT = 200


def photographs() -> list[tuple[str, bytes]]:
    """Names and pictures; made ones where there are no photographs."""
    if PHOTOGRAPHS.exists():
        with zipfile.ZipFile(PHOTOGRAPHS) as archive:
            return [(name, archive.read(name)) for name in sorted(archive.namelist())[:COUNT]]
    return [(f'made-{number}', _made(number)) for number in range(COUNT)]


def _made(number: int) -> bytes:
    chance = random.Random(number)
    picture = Image.new('RGB', (320, 240), tuple(chance.randrange(256) for _ in range(3)))
    for _ in range(8):
        box = sorted(chance.randrange(240) for _ in range(4))
        picture.paste(tuple(chance.randrange(256) for _ in range(3)), (box[0], box[1], box[2], box[3]))
    out = io.BytesIO()
    picture.save(out, 'JPEG')
    return out.getvalue()


def index_photographs(address: str) -> tuple[list[str], list[str]]:
    """Errors of writing, and names that a search by the picture itself does not find first."""
    pictures = photographs()
    with Client(address) as client:
        outcomes = client.index([Document(id=name, blob=blob) for name, blob in pictures])
        errors = [repr(outcome.error) for outcome in outcomes if outcome.error]
        missed = [name for name, blob in pictures[::10] if client.search(blob, limit=1)[0].id != name]
        count = len(client.get([name for name, _ in pictures]))
    return errors, missed + ['some are not stored'] * (count != len(pictures))


def stored(address: str) -> int:
    """How many of the photographs are there."""
    with Client(address) as client:
        return len(client.get([name for name, _ in photographs()]))


def status_of(address: str) -> dict[str, dict[str, Any]]:
    """What a stage, or a whole service, says of itself."""
    with Client(address) as client:
        return client.status()


def status(pods: Pods, workload: str) -> list[dict[str, Any]]:
    """What each pod of a stage says of itself."""
    found = []
    for pod in pods.of(workload):
        told = pods.inside.call(status_of, f'{pod.address}:{pod.probes["readiness"].port}')
        found.append(next(iter(told.values())))
    return found


def encoded(pods: Pods) -> list[int]:
    """Documents that each encoder has encoded since it was started."""
    return [int(told['items']) for told in status(pods, 'encoder')]


def shares_since(pods: Pods, before: list[int]) -> list[float]:
    """The part that each encoder has had of the work since `before`."""
    done = [now - then for now, then in zip(encoded(pods), before, strict=True)]
    return [one / sum(done) for one in done]


def loaded(pods: Pods, disturb: Callable[[], None], rate: float = 20.0, retries: int = 0) -> list[Search]:
    """Searches, `rate` of them a second, while something is done; they go on for two seconds after it."""
    pods.load.start(pods.address('gateway', 'grpc'), rate, retries)
    try:
        disturb()
        pods.sleep(2)
    finally:
        searches = pods.load.stop()
    return sorted(searches, key=lambda one: one.at)


def until_all_are_used(pods: Pods) -> tuple[list[Search], float]:
    """Searches until each encoder has encoded something since they began; and how many seconds that took."""
    begun, before = time.monotonic(), encoded(pods)

    def used() -> bool:
        return all(now > then for now, then in zip(encoded(pods), before, strict=True))

    searches = loaded(pods, lambda: pods.wait(used, 'each encoder is used', 90))
    return searches, time.monotonic() - begun - 2


def failures(searches: list[Search]) -> list[str]:
    """Errors, with the second at which the search began."""
    return [f'{one.at - searches[0].at:.1f} s: {one.error}' for one in searches if one.error]


def slowest(searches: list[Search]) -> float:
    """Seconds of the slowest."""
    return max(one.seconds for one in searches)


def outage(searches: list[Search]) -> float:
    """The longest time without an answer, in seconds."""
    ends = sorted(one.at + one.seconds for one in searches if not one.error)
    return max(after - before for before, after in itertools.pairwise(ends))


def told(searches: list[Search]) -> str:
    """Figures in a line."""
    seconds = sorted(one.seconds for one in searches)
    return (
        f'{len(searches)} searches, {len(failures(searches))} failed, '
        f'median {seconds[len(seconds) // 2] * 1000:.0f} ms, '
        f'slowest {seconds[-1]:.2f} s, longest time without an answer {outage(searches):.1f} s'
    )

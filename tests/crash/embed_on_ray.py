"""A run of `clipflow embed` on a Ray cluster of its own, in which processes kill each other at one item.

    python embed_on_ray.py PATTERN OUT KEY DEATHS WHOM

Whoever reads the item KEY kills WHOM, itself or all that decode or embed, so many times. Prints what a user
would be told: warnings, the error, and how many items there were.
"""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clipflow.bulk.embed import ray, writer
from clipflow.bulk.embed.items import Fault, Item, Range, Reader
from clipflow.errors import ClipflowError
from unit.bulk.test_embed import begun

SIZE = 2


@dataclass(frozen=True)
class Deadly:
    """A reader that kills."""

    reader: Reader
    key: str
    deaths: int
    whom: str
    marks: Path

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        for item in self.reader.read(piece, most):
            if item.key == self.key and len(list(self.marks.iterdir())) < self.deaths:
                (self.marks / str(os.getpid())).touch()
                for process in workers() if self.whom == 'all' else [os.getpid()]:
                    os.kill(process, signal.SIGKILL)
            yield item


def workers() -> list[int]:
    """Processes that decode or embed, this one last."""
    siblings = Path(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read_text().split()
    busy = [
        int(one)
        for one in siblings
        if Path(f'/proc/{one}/cmdline').read_bytes().startswith((b'ray::FlatMap', b'ray::Map'))
    ]
    return [one for one in busy if one != os.getpid()] + [os.getpid()]


class Watch:
    """Counts items."""

    items = 0

    def moved(self, items: int, failed: int) -> None:
        self.items += items

    def warn(self, sentence: str) -> None:
        print(f'warning: {sentence}')


def main() -> None:
    """See the module."""
    pattern, out, key, deaths, whom = sys.argv[1:]
    marks = Path(f'{out}.marks')
    marks.mkdir()
    job, watch = begun(pattern, Path(out), SIZE), Watch()
    deadly = Deadly(job.reader, key, int(deaths), whom, marks)
    try:
        ray.run(replace(job, reader=deadly, processes=1), writer.unfinished(job.folder, job.plan), None, watch)
    except ClipflowError as error:
        print(f'error: {error}')
    print(f'items: {watch.items}, deaths: {len(list(marks.iterdir()))}')


if __name__ == '__main__':
    main()

"""Partitions dealt out to processes on this machine, each with a model of its own; some of them, if there are ranks."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from clipflow.bulk.embed.worker import Done, Failed, Job, Message, Progress, Ready, work
from clipflow.bulk.processes import deaf
from clipflow.errors import Internal, InvalidParameter, from_code

TRIES = 2
"""How often a partition is begun at which a process dies."""
# The innermost first: torchrun is often started by srun, once a node.
_RANKS = (('RANK', 'WORLD_SIZE'), ('SLURM_PROCID', 'SLURM_NTASKS'))
_SECONDS_TO_STOP = 5.0


class Watch(Protocol):
    """Who looks on."""

    def moved(self, items: int, failed: int) -> None:
        """So many more items are done, and so many of them failed."""
        ...

    def warn(self, sentence: str) -> None:
        """Something a person should know."""
        ...


@dataclass(frozen=True)
class Rank:
    """This one of `world` runs that share the work, counted from 0."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> 'Rank':
        """As SLURM or torchrun tell it.

        Raises:
            InvalidParameter: they do not.
        """
        for rank, world in _RANKS:
            if rank in environment and world in environment:
                return cls.checked(environment[rank], environment[world])
        named = ' nor '.join('/'.join(pair) for pair in _RANKS)
        raise InvalidParameter(f'--distributed reads the rank from the environment, which has neither {named}')

    @classmethod
    def checked(cls, rank: str | int, world: str | int) -> 'Rank':
        """Raises InvalidParameter unless it is a rank among the world's."""
        try:
            found = cls(int(rank), int(world))
        except ValueError:
            found = cls(0, 0)
        if not 0 <= found.rank < found.world:
            raise InvalidParameter(f'{rank} is no rank in a world of {world}; ranks are counted from 0')
        return found

    def share(self, numbers: Sequence[int]) -> list[int]:
        """The partitions that are this rank's."""
        return [number for number in numbers if number % self.world == self.rank]


@dataclass
class _Worker:
    process: Any
    connection: Connection
    number: int | None = None
    counted: tuple[int, int] = field(default=(0, 0))


def lost(numbers: Sequence[int]) -> Internal:
    """What is said of partitions that were given up."""
    return Internal(
        f'a process died {TRIES} times at partition {", ".join(map(str, numbers))}; the rest is done. Is there enough '
        'memory, or does a picture crash the decoder? The same command tries again'
    )


class _Run:
    def __init__(self, job: Job, numbers: Sequence[int], watch: Watch) -> None:
        self._job = job
        self._waiting = list(numbers)
        self._tries = dict.fromkeys(numbers, 0)
        self._watch = watch
        self._workers: list[_Worker] = []
        self._lost: list[int] = []

    def __call__(self, processes: int) -> None:
        try:
            for _ in range(min(processes, len(self._waiting))):
                self._start()
            while self._workers:
                self._step()
        finally:
            self._stop()
        if self._lost:
            raise lost(self._lost)

    def _start(self) -> None:
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._job), daemon=True)
        with deaf():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _step(self) -> None:
        ready = wait([worker.connection for worker in self._workers])
        for worker in [one for one in self._workers if one.connection in ready]:
            try:
                message: Message = worker.connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            self._take(worker, message)

    def _take(self, worker: _Worker, message: Message) -> None:
        match message:
            case Failed(code, text):
                raise from_code(code, text)
            case Progress(items, failed):
                worker.counted = (worker.counted[0] + items, worker.counted[1] + failed)
                self._watch.moved(items, failed)
            case Ready() | Done():
                self._deal(worker)

    def _deal(self, worker: _Worker) -> None:
        worker.number, worker.counted = None, (0, 0)
        if not self._waiting:
            self._dismiss(worker)
            return
        worker.number = self._waiting.pop(0)
        self._tries[worker.number] += 1
        try:
            worker.connection.send(worker.number)
        except OSError:
            self._died(worker)

    def _dismiss(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)

    def _died(self, worker: _Worker) -> None:
        self._dismiss(worker)
        code = worker.process.exitcode
        how = f'killed by signal {-code}' if code < 0 else f'exit code {code}'
        if worker.number is None:
            raise Internal(f'a process died before it could begin ({how}); is there enough memory for its model?')
        items, failed = worker.counted
        self._watch.moved(-items, -failed)
        if self._tries[worker.number] < TRIES:
            self._watch.warn(f'a process died ({how}) in partition {worker.number}, which begins again')
            self._waiting.insert(0, worker.number)
        else:
            self._watch.warn(f'a process died ({how}) in partition {worker.number} again; it is left out')
            self._lost.append(worker.number)
        if self._waiting:
            self._start()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + _SECONDS_TO_STOP
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()


def run(job: Job, numbers: Sequence[int], processes: int, watch: Watch) -> None:
    """Do some partitions; with one that dies, the rest is done first.

    Args:
        job: what all processes do.
        numbers: of the partitions.
        processes: how many at once.
        watch: is told how it goes.

    Raises:
        ClipflowError: what no process can go on from, such as a full disk; what is done stays.
        Internal: a process died twice at the same partition.
    """
    _Run(job, numbers, watch)(processes)


def own_device(environment: Mapping[str, str]) -> str | None:
    """The GPU of this rank among those of its machine, for CUDA_VISIBLE_DEVICES; None: the environment says enough.

    SLURM gives each task its own where it is asked to; torchrun leaves that to the program.
    """
    local, given = environment.get('LOCAL_RANK'), environment.get('CUDA_VISIBLE_DEVICES')
    if local is None or given == '':  # which hides all of them
        return None
    seen = [one for one in (given or '').split(',') if one]
    if not seen:
        return local
    return seen[int(local) % len(seen)]

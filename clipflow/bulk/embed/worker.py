"""One process of a run: it opens the model for itself, and does the partitions that it is told to do."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from clipflow.bulk.embed import plan as plans
from clipflow.bulk.embed import writer
from clipflow.bulk.embed.items import Fault, Item, Part, Reader
from clipflow.bulk.embed.mapper import Mapped, Mapper, Moved
from clipflow.bulk.embed.plan import Plan
from clipflow.bulk.embed.writer import Writer
from clipflow.errors import ClipflowError, InvalidDocument
from clipflow.settings import EncoderSettings, PreprocessorSettings
from clipflow.weights import load_spec


@dataclass(frozen=True)
class Job:
    """What a process has to know; it travels to it.

    Attributes:
        folder: of the output.
        plan: of the work.
        reader: of the input; without what only planning has to know.
        encoding: how the model runs.
        reading: limits of pictures and texts.
        processes: how many share the machine; with Ray, how many models there are, 0 for as many as GPUs.
    """

    folder: Path
    plan: Plan
    reader: Reader
    encoding: EncoderSettings
    reading: PreprocessorSettings
    processes: int = 1


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""


@dataclass(frozen=True)
class Progress:
    """So many more items are done, and so many of them failed."""

    items: int
    failed: int


@dataclass(frozen=True)
class Done:
    """A partition is on the disk."""

    number: int


@dataclass(frozen=True)
class Failed:
    """The work cannot go on; the error by its code."""

    code: str
    message: str


Message = Ready | Progress | Done | Failed


def items_of(reader: Reader, part: Part, most: int) -> Iterator[Item | Fault]:
    """What a partition consists of, files of `most` bytes; a source that cannot be read any more is one fault."""
    yield from part.faults
    for piece in part.ranges:
        count = 0
        try:
            for item in reader.read(piece, most):
                count += 1
                yield item
        except InvalidDocument as error:
            lost = piece.stop - piece.start - count
            yield Fault(piece.source, f'{error.message}; {lost:,} items from there are lost')


def embed(job: Job, mapper: Mapper, number: int, moved: Moved) -> None:
    """Embed one partition and write it."""
    begun = time.time()
    part = plans.part(job.folder, job.plan, number)
    mapped = mapper.map(items_of(job.reader, part, job.reading.max_bytes), job.plan.texts, moved)
    write(job, number, mapped, mapper.encoder.dimension, begun)


def write(job: Job, number: int, mapped: Mapped, dimension: int, begun: float) -> None:
    """Write a partition that was begun at a time; raises what `Writer` does."""
    ended = time.time()
    timings = {
        'start_time': begun,
        'end_time': ended,
        'read_duration': mapped.read_seconds,
        'inference_duration': mapped.encode_seconds,
        'total_duration': ended - begun,
    }
    Writer(job.folder, job.plan, dimension).write(number, mapped, timings)


def work(connection: Connection, job: Job) -> None:
    """Body of a process: a number comes in, messages go out, until the other side closes."""
    try:
        with Mapper(load_spec(job.encoding.model), job.encoding, job.reading, job.processes) as mapper:
            writer.agree(job.folder, mapper.encoder.description)
            connection.send(Ready())
            while True:
                number = connection.recv()
                embed(job, mapper, number, lambda items, failed: connection.send(Progress(items, failed)))
                connection.send(Done(number))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ClipflowError as error:
        connection.send(Failed(error.code, error.message))
    except Exception as error:  # of a package below; a trace would tell a user nothing
        connection.send(Failed('internal', f'{type(error).__name__}: {error}'))

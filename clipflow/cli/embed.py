"""`clipflow embed`: pictures and captions to embeddings on disk, as clip-retrieval lays them out."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import PRECISIONS, RUNTIMES, warn
from clipflow.errors import InvalidParameter

if TYPE_CHECKING:
    from clipflow.bulk.embed.plan import Plan
    from clipflow.bulk.embed.runner import Rank
    from clipflow.bulk.embed.worker import Job

_RUNNERS = ('local', 'ray')
_SHOWN = 5
_SECONDS = 60.0
"""Between lines of progress."""


def add_commands(commands: Any) -> None:
    """Add `embed`."""
    command = commands.add_parser(
        'embed',
        help='embed a large set of pictures into files',
        description="Embed pictures and their captions into files of clip-retrieval's layout, in partitions. What is "
        'done is not done again, so an interrupted run goes on where it stopped.',
    )

    def option(name: str, explained: str, **kind: Any) -> None:
        command.add_argument(name, help=explained, **kind)

    option('input', 'a folder, zip or tar files, tables, or a saved dataset; a path, or a URL that fsspec knows')
    option('--out', 'the output folder', type=Path, required=True, metavar='DIR')
    option('--partition-size', 'items of a partition', type=int, default=10_000, metavar='N')
    option('--runner', 'processes on this machine, or a Ray cluster', choices=_RUNNERS, default='local')
    option('--address', 'of the Ray cluster (RAY_ADDRESS); without one it is made here, for this run', metavar='A')
    option('--processes', 'how many with the model: 1, or one for each GPU of the Ray cluster', type=int, metavar='N')
    option('--batch-size', 'items that pass through the model at once (CLIPFLOW_BATCH_SIZE)', type=int, metavar='N')
    option('--model', 'a directory or a name (CLIPFLOW_MODEL)')
    option('--runtime', 'what the model runs on (CLIPFLOW_RUNTIME)', choices=RUNTIMES, default='auto')
    option('--precision', 'its number format (CLIPFLOW_PRECISION)', choices=PRECISIONS, default='auto')
    option('--image-column', 'of a table: pictures, or their URIs', metavar='NAME')
    option('--caption-column', 'of a table: captions', metavar='NAME')
    option('--no-text', 'embed pictures only', action='store_true')
    option('--keep-plan', 'go on though the input has changed: what is new is left out', action='store_true')
    option('--rank', 'the number of this run among --world-size that share the work', type=int, metavar='R')
    option('--world-size', 'how many share it', type=int, metavar='W')
    option('--distributed', 'both from the environment, as SLURM and torchrun set them', action='store_true')
    option('--quiet', 'no progress bar', action='store_true')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Embed, and print a summary; 130 after Ctrl-C."""
    from clipflow.bulk.embed import ray, runner, writer

    rank = _rank(given)
    job = _job(given)
    missing = writer.unfinished(job.folder, job.plan)
    mine, there = rank.share(missing), job.plan.partitions - len(missing)
    if there:
        warn(f'{there:,} of {job.plan.partitions:,} partitions are there already')
    try:
        with _watched(job, mine, given.quiet) as watch:
            if given.runner == 'ray':
                ray.run(job, mine, given.address, watch)
            else:
                runner.run(job, mine, job.processes, watch)
    except KeyboardInterrupt:
        warn('interrupted; the same command goes on where this one stopped')
        return 130
    if left := len(writer.unfinished(job.folder, job.plan)):
        print(f'{len(mine):,} partitions are done; {left:,} are left to other ranks')
        return 0
    writer.tidy(job.folder, job.plan)
    return _summary(job.folder, writer.finish(job.folder, job.plan, job.encoding.model))


def _rank(given: argparse.Namespace) -> 'Rank':
    from clipflow.bulk.embed import runner

    if given.distributed:
        if given.rank is not None or given.world_size is not None:
            raise InvalidParameter(
                '--distributed reads the rank from the environment; leave out --rank and --world-size'
            )
        device = runner.own_device(os.environ)
        if device is not None:
            os.environ['CUDA_VISIBLE_DEVICES'] = device
        return runner.Rank.of_environment(os.environ)
    if (given.rank is None) != (given.world_size is None):
        raise InvalidParameter('--rank and --world-size go together')
    return runner.Rank() if given.rank is None else runner.Rank.checked(given.rank, given.world_size)


def _job(given: argparse.Namespace) -> 'Job':
    from clipflow.bulk.embed import plan as plans
    from clipflow.bulk.embed.readers import open_input
    from clipflow.bulk.embed.tables import Columns
    from clipflow.bulk.embed.worker import Job
    from clipflow.settings import EncoderSettings, PreprocessorSettings
    from clipflow.weights import load_spec

    if given.address and given.runner != 'ray':
        raise InvalidParameter('--address goes with --runner ray')
    least = {'--partition-size': given.partition_size, '--processes': given.processes, '--batch-size': given.batch_size}
    if wrong := [f'{name} {value}' for name, value in least.items() if value is not None and value < 1]:
        raise InvalidParameter(f'{wrong[0]}: at least 1')
    wishes = {'model': given.model, 'runtime': given.runtime, 'precision': given.precision}
    wishes = {name: value for name, value in wishes.items() if value not in (None, 'auto')}
    encoding = EncoderSettings.load()
    encoding = encoding.model_copy(update=wishes | ({'batch_size': given.batch_size} if given.batch_size else {}))
    pattern = given.input if '://' in given.input else os.path.abspath(os.path.expanduser(given.input))
    _check_apart(given.out, pattern)
    columns = Columns(given.image_column, given.caption_column)
    reader = open_input(pattern, columns)
    fingerprint = load_spec(encoding.model).fingerprint
    options = columns.options() | ({'--no-text': ''} if given.no_text else {})
    wanted = plans.Plan(pattern, reader.digest(), fingerprint, given.partition_size, not given.no_text, options=options)
    plan = plans.planned(given.out.absolute(), wanted, reader, keep=given.keep_plan)
    processes = given.processes or (0 if given.runner == 'ray' else 1)
    return Job(given.out.absolute(), plan, reader, encoding, PreprocessorSettings.load(), processes)


def _check_apart(out: Path, pattern: str) -> None:
    """Raises InvalidParameter for an output that the next run would take for input; what is hidden it does not see."""
    place, source = out.resolve(), Path(pattern).resolve()
    if source.is_dir() and source in place.parents:
        inside = place.relative_to(source).parts
        if not any(part.startswith('.') for part in inside):
            raise InvalidParameter(f'{out} lies in the input {pattern}; name a folder outside of it')


def _summary(folder: Path, manifest: dict[str, Any]) -> int:
    from clipflow.bulk.arrow import parquet

    if manifest['failures'] or manifest['without_caption']:
        rows = parquet().ParquetFile(folder / 'failures.parquet').iter_batches(_SHOWN)
        for row in next(rows).to_pylist():
            warn(f'{row["key"]}: {row["reason"]}')
        warn(f'all that is missing is listed in {folder / "failures.parquet"}')
    without = f', {manifest["without_caption"]:,} without a caption' if manifest['without_caption'] else ''
    print(f'{manifest["sample_count"]:,} embedded{without}, {manifest["failures"]:,} failed; they are in {folder}')
    return 1 if manifest['failures'] else 0


@contextmanager
def _watched(job: 'Job', numbers: list[int], quiet: bool) -> Iterator['_Bar']:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn('embedding'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[rate]} items/s'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[failed]}'),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet, speed_estimate_period=60) as progress:
        yield _Bar(progress, _count(job.plan, numbers), lines=not (quiet or console.is_terminal))


def _count(plan: 'Plan', numbers: list[int]) -> int:
    """Items in some partitions: all are full but the last."""
    last = plan.items - plan.partition_size * (plan.partitions - 1)
    return sum(last if number == plan.partitions - 1 else plan.partition_size for number in numbers)


class _Bar:
    """See `runner.Watch`; in `lines` from time to time, where no bar can move, as in the log of a cluster."""

    def __init__(self, progress: Any, total: int, *, lines: bool = False) -> None:
        self._progress = progress
        self._task = progress.add_task('embed', total=total, rate='-', failed='')
        self._failed = 0
        self._lines = lines
        self._told = time.monotonic()

    def moved(self, items: int, failed: int) -> None:
        """See `runner.Watch`."""
        self._failed += failed
        speed = self._progress.tasks[0].speed
        shown = f'{self._failed:,} failed' if self._failed else ''
        rate = '-' if speed is None else f'{speed:.1f}'
        self._progress.update(self._task, advance=items, rate=rate, failed=shown)
        if self._lines and time.monotonic() - self._told >= _SECONDS:
            self._told = time.monotonic()
            task = self._progress.tasks[0]
            left = '-' if task.time_remaining is None else timedelta(seconds=int(task.time_remaining))
            warn(
                f'{task.completed:,.0f} of {task.total:,.0f} done, {rate} items/s, {left} left, {self._failed:,} failed'
            )

    def warn(self, sentence: str) -> None:
        """See `runner.Watch`."""
        self._progress.console.print(f'clipflow: {sentence}', markup=False, highlight=False)

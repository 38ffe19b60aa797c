"""The same work on a Ray cluster, by Ray Data.

    partitions -> tasks: read and decode -> minibatches -> actors: embed -> this process: gather and write

Tasks run on any core, actors hold a model each; they see the input, and not the output. The files are those of a run
without Ray, for partitions are cut into the same minibatches and written by the same writer.
"""

import logging
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any

from clipflow.bulk.embed import plan as plans
from clipflow.bulk.embed import worker, writer
from clipflow.bulk.embed.decoding import Decoder, Ready
from clipflow.bulk.embed.items import Fault, Part
from clipflow.bulk.embed.mapper import Encoder, Mapped
from clipflow.bulk.embed.runner import TRIES, Watch, lost
from clipflow.bulk.embed.worker import Failed, Job
from clipflow.errors import ClipflowError, Unavailable, from_code
from clipflow.settings import PreprocessorSettings
from clipflow.weights import load_spec
from clipflow.work import cores

_BLOCK = 16 * 2**20
"""Bytes of decoded pictures that travel together; Ray's own 128 MiB would keep the model waiting for the first."""
_STORE = 512 * 2**20
"""Bytes of shared memory for what is under way, in a cluster that ends with this process."""
_SECONDS = 10.0

Row = dict[str, Any]
"""What travels: `number` of the partition, `batch` in it, and a pickled `content`."""


@dataclass(frozen=True)
class _Decoded:
    """A minibatch that is decoded; `last` says that none follows."""

    found: list[Ready | Fault]
    begun: float
    seconds: float
    last: bool = False


@dataclass(frozen=True)
class _Encoded:
    """A minibatch that is embedded, by a model of this description and dimension."""

    mapped: Mapped
    begun: float
    last: bool
    description: dict[str, str]
    dimension: int


@cache
def _decoder(model: str, reading: str) -> Decoder:
    """One for all tasks of a process."""
    return Decoder(load_spec(model), PreprocessorSettings.model_validate_json(reading))


def _decoded(row: Row, job: Job) -> Iterator[Row]:
    """Body of a task: a partition to its minibatches."""
    number = int(row['number'])
    try:
        for batch, content in enumerate(_minibatches(pickle.loads(row['part']), job)):
            yield _row(number, batch, content)
    except Exception as error:
        yield _row(number, 0, _failed(error))


def _minibatches(part: Part, job: Job) -> Iterator[_Decoded]:
    decoder = _decoder(job.encoding.model, job.reading.model_dump_json())
    items, started = worker.items_of(job.reader, part, job.reading.max_bytes), time.time()
    while True:
        begun = time.perf_counter()
        found = [decoder.decode(item, job.plan.texts) for item in islice(items, job.encoding.batch_size)]
        yield _Decoded(found, started, time.perf_counter() - begun, last=not found)
        if not found:
            return


class _Actor:
    """Holds a model, and embeds minibatches."""

    def __init__(self, job: Job) -> None:
        self._texts = job.plan.texts
        self._number: int | None = None
        self._failed: Failed | None = None
        try:
            self._encoder = Encoder(load_spec(job.encoding.model), job.encoding, job.processes)
        except Exception as error:
            self._failed = _failed(error)

    def __call__(self, row: Row) -> Row:
        number, batch = int(row['number']), int(row['batch'])
        try:
            content: _Decoded | Failed = pickle.loads(row['content'])
            return _row(number, batch, self._failed or self._encoded(number, content))
        except Exception as error:
            return _row(number, batch, _failed(error))

    def _encoded(self, number: int, content: _Decoded | Failed) -> _Encoded | Failed:
        if isinstance(content, Failed):
            return content
        if number != self._number:
            self._number = number
            self._encoder.begin()
        mapped = self._encoder.encode(content.found, self._texts)
        mapped.read_seconds = content.seconds
        encoder = self._encoder
        return _Encoded(mapped, content.begun, content.last, encoder.description, encoder.dimension)


def _row(number: int, batch: int, content: _Decoded | _Encoded | Failed) -> Row:
    return {'number': number, 'batch': batch, 'content': pickle.dumps(content, pickle.HIGHEST_PROTOCOL)}


def _failed(error: Exception) -> Failed:
    """What Ray would raise as an error of its own, with a trace, travels as a result."""
    if isinstance(error, ClipflowError):
        return Failed(error.code, error.message)
    return Failed('internal', f'{type(error).__name__}: {error}')


@dataclass
class _Partition:
    """Minibatches that have come, in whatever order."""

    batches: dict[int, _Encoded] = field(default_factory=dict)

    def add(self, batch: int, encoded: _Encoded) -> bool:
        """Whether it is complete with this one."""
        self.batches[batch] = encoded
        return any(one.last and len(self.batches) == number + 1 for number, one in self.batches.items())

    def gathered(self) -> Mapped:
        whole = Mapped()
        for batch in sorted(self.batches):
            whole.add(self.batches[batch].mapped)
        return whole


def run(job: Job, numbers: Sequence[int], address: str | None, watch: Watch) -> None:
    """Do some partitions on a Ray cluster; with a partition at which processes die, the rest is done first.

    Args:
        job: what all processes do; `processes`: how many models, 0: one for each GPU of the cluster, or one.
        numbers: of the partitions.
        address: of the cluster; None: that of RAY_ADDRESS, or else one on this machine, for as long as this lasts.
        watch: is told how it goes.

    Raises:
        Unavailable: Ray is not installed, or there is no cluster.
        ClipflowError: what no process can go on from, such as a full disk; what is done stays.
        Internal: a process died twice at the same partition.
    """
    if not numbers:
        return
    with _cluster(address or os.environ.get('RAY_ADDRESS')) as ray:
        partitions: dict[int, _Partition] = {number: _Partition() for number in numbers}
        agreed = set[str]()
        for row in _embedded(ray, job, numbers).iter_rows():
            content: _Encoded | Failed = pickle.loads(row['content'])
            if isinstance(content, Failed):
                raise from_code(content.code, content.message)
            if (said := repr(content.description)) not in agreed:
                writer.agree(job.folder, content.description)
                agreed.add(said)
            number, rows = int(row['number']), len(content.mapped.rows)
            failed = sum(not fault.embedded for fault in content.mapped.faults)
            watch.moved(rows + failed, failed)
            if partitions[number].add(int(row['batch']), content):
                done = partitions.pop(number)
                worker.write(job, number, done.gathered(), content.dimension, content.begun)
    if partitions:
        raise lost(sorted(partitions))


def _embedded(ray: Any, job: Job, numbers: Sequence[int]) -> Any:
    """The Dataset of minibatches that are embedded, which runs when it is read."""
    gpus = int(ray.cluster_resources().get('GPU', 0)) if job.encoding.device in ('auto', 'cuda') else 0
    on_gpu = gpus > 0 or job.encoding.device == 'cuda'
    actors = job.processes or max(1, gpus)
    nodes = sum(node['Alive'] for node in ray.nodes())
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = _BLOCK
    # A task that has died for the last time costs its partition, and no other.
    context.max_errored_blocks = -1
    context.enable_progress_bars = context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        parts = [{'number': n, 'part': pickle.dumps(plans.part(job.folder, job.plan, n))} for n in numbers]
        # Ray would run tasks inside of the actors if both asked for the same: then decoding would wait for the model.
        return (
            ray.data.from_items(parts, override_num_blocks=len(parts))
            .flat_map(_decoded, fn_args=(job,), num_cpus=1, max_retries=TRIES - 1)
            .map(
                _Actor,
                fn_constructor_args=(replace(job, processes=-(-actors // nodes)),),
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=0,
                num_gpus=int(on_gpu),
                max_task_retries=TRIES - 1,
                scheduling_strategy='SPREAD',
            )
        )


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(':')
    if host and port.isdecimal() and '/' not in host:
        socket.create_connection((host, int(port)), _SECONDS).close()


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected."""
    os.environ |= {'RAY_USAGE_STATS_ENABLED': '0'}
    # What happens in the cluster is told by results; its own words, with traces, are in its logs.
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
    options: dict[str, Any] = {'log_to_driver': False, 'logging_level': logging.CRITICAL}
    with tempfile.TemporaryDirectory(prefix='ray-', ignore_cleanup_errors=True) as work, redirect_stdout(sys.stderr):
        if not address:
            # The name says what it was made for; elsewhere, too, it keeps Ray on 127.0.0.1.
            os.environ |= {'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '0'}
            options |= {'num_cpus': cores(), 'object_store_memory': _STORE}
            options |= {'include_dashboard': False, '_temp_dir': work}
        try:
            ray = import_module('ray')
            import_module('ray.data')
        except ImportError:
            raise Unavailable("--runner ray needs Ray; install it with: pip install 'clipflow[bulk,ray]'") from None
        logging.getLogger('ray.data').setLevel(logging.CRITICAL)
        try:
            _reach(address or '')
            ray.init(address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise Unavailable(f'no Ray cluster at {address or "this machine"}: {error}') from None
        try:
            yield ray
        except ray.exceptions.RayError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise Unavailable(f'Ray has failed ({reason}); what is done stays: the same command goes on') from None
        finally:
            ray.shutdown()

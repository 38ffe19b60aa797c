"""img2dataset as a process of its own: found, started with limits, watched, and asked again for what is missing.

pictures/N.tar, N.parquet, N_stats.json   a shard; the last is written when it is complete
pictures.log                              what img2dataset says
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipflow.bulk.arrow import parquet
from clipflow.bulk.fetch.urls import PER_SHARD, Listed
from clipflow.errors import Conflict, StorageFull, Unavailable
from clipflow.files import translated
from clipflow.work import cores

_SECONDS = 0.3
_STATS = '_stats.json'
_TAIL = 100_000
_QUIET = {'WANDB_MODE': 'disabled', 'WANDB_ERROR_REPORTING': 'false', 'NO_ALBUMENTATIONS_UPDATE': '1'}


@dataclass(frozen=True)
class Limits:
    """What one fetch may take.

    Attributes:
        seconds: of all of it, with redirects.
        bytes: that it answers.
        private: whether addresses that are not public may be fetched.
        threads: that fetch at once, of all processes.
        size: pictures are stored with this shorter side, in pixels; 0: as they come.
    """

    seconds: float
    bytes: int
    private: bool = False
    threads: int = 64
    size: int = 0


def interpreter() -> Path:
    """The Python that has img2dataset: this one, or that of the program of this name on PATH.

    Raises:
        Unavailable: there is none.
    """
    if find_spec('img2dataset') is not None:
        return Path(sys.executable)
    program = shutil.which('img2dataset')
    if program is not None:
        beside = Path(program).resolve().with_name('python')
        if os.access(beside, os.X_OK):
            return beside
    raise Unavailable(
        "a list of URLs is fetched by img2dataset, which is not there; install it with: pip install 'clipflow[fetch]', "
        'or into an environment of its own whose bin/ is on PATH'
    )


def fetch(folder: Path, listed: Listed, limits: Limits, moved: Callable[[int], None]) -> None:
    """Fetch what is missing of a list; shards that are complete stay.

    Args:
        folder: that holds `urls/` and gets `pictures/`.
        listed: the list in there.
        limits: of each fetch.
        moved: is told how many more URLs are through, those that failed among them.

    Raises:
        Conflict: another process fetches into the folder.
        Unavailable: there is no img2dataset, or it did not come to an end.
        StorageFull, ReadOnly: the folder cannot be written; the shards that are complete stay.
    """
    pictures, log = folder / 'pictures', folder / 'pictures.log'
    with translated(folder):
        pictures.mkdir(exist_ok=True)
        log.touch()
    with _alone(folder) as held:
        _fetch(folder, listed, limits, moved, held)


def _fetch(folder: Path, listed: Listed, limits: Limits, moved: Callable[[int], None], held: int) -> None:
    pictures, log = folder / 'pictures', folder / 'pictures.log'
    done = len(complete(pictures))
    moved(min(done * PER_SHARD, listed.count))
    if done >= listed.shards:
        return
    _forget(pictures)
    ticks = folder / '.ticks'
    ticks.unlink(missing_ok=True)
    told = {'seconds': limits.seconds, 'bytes': limits.bytes, 'private': limits.private, 'ticks': str(ticks)}
    guarded = Path(__file__).with_name('guarded.py')
    command = [str(interpreter()), str(guarded), json.dumps(told), json.dumps(_options(folder, listed, limits))]
    try:
        with log.open('wb') as said:
            code = _run(command, said.fileno(), ticks, moved, held)
    finally:
        ticks.unlink(missing_ok=True)
    left = listed.shards - len(complete(pictures))
    if left:
        if b'No space left on device' in log.read_bytes()[-_TAIL:]:
            raise StorageFull(
                f'no space is left for {pictures}; make some, and run the same command again: what is done stays'
            )
        raise Unavailable(
            f'img2dataset ended (exit code {code}) before {left:,} of {listed.shards:,} shards were complete; {log} '
            'says why, and the same command tries them again'
        )


def _options(folder: Path, listed: Listed, limits: Limits) -> dict[str, Any]:
    """Of img2dataset. Without a size nothing is decoded there: what is no sound picture is found by `embed`."""
    processes = max(1, min(cores(), limits.threads, listed.shards))
    shrunk = {'resize_mode': 'keep_ratio', 'resize_only_if_bigger': True, 'image_size': limits.size}
    return {
        'url_list': str(folder / 'urls'),
        'input_format': 'parquet',
        'caption_col': 'caption' if listed.captions else None,
        'save_additional_columns': list(listed.columns),
        'output_folder': str(folder / 'pictures'),
        'output_format': 'webdataset',
        'number_sample_per_shard': PER_SHARD,
        'processes_count': processes,
        'thread_count': max(1, limits.threads // processes),
        'timeout': limits.seconds,
        'retries': 1,
        'user_agent_token': 'clipflow',
        'extract_exif': False,
        'compute_hash': None,
        **(shrunk if limits.size else {'disable_all_reencoding': True}),
    }


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """The descriptor of a lock; raises Conflict if another process has it."""
    with translated(folder):
        descriptor = os.open(folder / '.fetching', os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise Conflict(f'another process fetches into {folder} already') from None
    finally:
        os.close(descriptor)


def _run(command: list[str], log: int, ticks: Path, moved: Callable[[int], None], held: int) -> int:
    """The exit code. A session of its own: Ctrl-C in a terminal ends it here, and not by a trace of each process."""
    seen = 0
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=_environment(os.environ),
        start_new_session=True,
        pass_fds=[held],  # it has the lock as well: killed, this process leaves it behind for a moment
    ) as process:
        try:
            while True:
                try:
                    return process.wait(_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    now = ticks.stat().st_size if ticks.exists() else 0
                    moved(now - seen)
                    seen = now
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Nothing of ours, such as keys of the service, and no report of img2dataset's packages to anybody."""
    return {name: value for name, value in given.items() if not name.startswith('CLIPFLOW_')} | _QUIET


def complete(pictures: Path) -> list[str]:
    """Names of the shards that are complete."""
    return [path.name.removesuffix(_STATS) for path in sorted(pictures.glob(f'*{_STATS}')) if _is_whole(path)]


def _is_whole(stats: Path) -> bool:
    """img2dataset goes on after an item that it could not write, and counts it all the same."""
    shard = stats.with_name(stats.name.removesuffix(_STATS))
    try:
        count = json.loads(stats.read_bytes())['count']
        rows = parquet().ParquetFile(shard.with_suffix('.parquet')).metadata.num_rows
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(rows == count and shard.with_suffix('.tar').is_file())


def forget(folder: Path) -> None:
    """Let the next run fetch everything again."""
    shutil.rmtree(folder / 'pictures')


def _forget(pictures: Path) -> None:
    """Remove what an interrupted run has left of shards that are not complete, and its temporary files."""
    whole = set(complete(pictures))
    for path in pictures.glob('[0-9]*'):
        if path.name.partition('.')[0].removesuffix('_stats') not in whole:
            path.unlink()
    shutil.rmtree(pictures / '_tmp', ignore_errors=True)

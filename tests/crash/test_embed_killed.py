"""`clipflow embed` in processes: killed, interrupted, or shared by ranks, it gives the files of a run in one go."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from clipflow import ROOT
from clipflow.bulk.embed import runner, worker, writer
from clipflow.bulk.embed.items import Fault, Item, Range, Reader
from clipflow.bulk.embed.mapper import Mapper
from clipflow.bulk.embed.worker import Job
from clipflow.cli import main
from clipflow.cli.embed import _Bar
from clipflow.errors import Internal
from clipflow.settings import PreprocessorSettings
from forms import long
from service import until
from unit.bulk import embed_inputs as inputs
from unit.bulk.test_embed import ENCODING, SPEC, begun, contents

PICTURES = 60
SIZE = 2
PARTITIONS = PICTURES // SIZE


@pytest.fixture(scope='module')
def album(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures for thirty partitions, a damaged one among them."""
    folder = tmp_path_factory.mktemp('killed')
    files = inputs.files(PICTURES) | {'041.jpg': b'damaged'}
    return inputs.shards(folder / 'shards', files, (25, 35))


@pytest.fixture(scope='module')
def mapper() -> Iterator[Mapper]:
    with Mapper(SPEC, ENCODING, PreprocessorSettings()) as opened:
        yield opened


@pytest.fixture(scope='module')
def expected(album: str, mapper: Mapper, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run in this process and in one go gives."""
    out = tmp_path_factory.mktemp('expected') / 'out'
    job = begun(album, out, SIZE)
    writer.agree(out, mapper.encoder.description)
    for number in range(PARTITIONS):
        worker.embed(job, mapper, number, lambda items, failed: None)
    writer.finish(out, job.plan, ENCODING.model)
    return contents(out)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    monkeypatch.setenv('CLIPFLOW_BATCH_SIZE', str(ENCODING.batch_size))


@dataclass(frozen=True)
class Held:
    """A reader that does not come past an item: whoever waits for it is killed meanwhile."""

    reader: Reader
    key: str

    def read(self, piece: Range, most: int) -> Iterator[Item | Fault]:
        for item in self.reader.read(piece, most):
            if item.key == self.key:
                threading.Event().wait()
            yield item


class Watch:
    """Kills the process that does a partition, the first so many times that one tells of its progress."""

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self.items = 0
        self.warned: list[str] = []

    def moved(self, items: int, failed: int) -> None:
        self.items += items
        if items > 0 and self.kills:
            self.kills -= 1
            for process in children(os.getpid()):
                os.kill(process, signal.SIGKILL)

    def warn(self, sentence: str) -> None:
        self.warned.append(sentence)


def children(process: int) -> list[int]:
    """The processes of a run, without Python's own helper."""
    found = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    return [int(child) for child in found if b'spawn_main' in Path(f'/proc/{child}/cmdline').read_bytes()]


def command(album: str, out: Path, *options: str) -> list[str]:
    return ['embed', album, '--out', str(out), '--partition-size', str(SIZE), '--quiet', *options]


def done(out: Path) -> int:
    return len(list(out.glob('stats/*.json')))


def test_after_a_kill_the_rest_is_done_by_two_processes_and_everything_is_the_same(
    album: str, expected: dict[str, str], tmp_path: Path
) -> None:
    for attempt in range(10):
        out = tmp_path / f'out {attempt}'
        call = [sys.executable, '-W', 'ignore', '-m', 'clipflow.cli.main', *command(album, out)]
        with subprocess.Popen(call, cwd=ROOT, start_new_session=True) as running:
            until(lambda out=out: done(out) >= 3, 120, 'three partitions are done')
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        before = {path.name: path.stat().st_mtime_ns for path in (out / 'stats').iterdir()}
        if len(before) < PARTITIONS:  # else it had come to its end before the kill: then once more
            break
    assert 3 <= len(before) < PARTITIONS
    assert not (out / 'manifest.json').exists()
    assert main.main(command(album, out, '--processes', '2')) == 1
    assert contents(out) == expected
    assert {name: (out / 'stats' / name).stat().st_mtime_ns for name in before} == before


def job(album: str, out: Path) -> Job:
    return begun(album, out, SIZE)


def test_a_partition_at_which_a_process_dies_is_tried_twice_and_costs_no_other(
    album: str, expected: dict[str, str], mapper: Mapper, tmp_path: Path
) -> None:
    out, watch = tmp_path / 'out', Watch(kills=2)
    one_by_one = replace(job(album, out), encoding=ENCODING.model_copy(update={'batch_size': 1}))
    # The first item of partition 0 is done when the process is killed, and the second does not come.
    held = replace(one_by_one, reader=Held(one_by_one.reader, '001'))
    with pytest.raises(Internal, match='died 2 times at partition 0; the rest is done'):
        runner.run(held, range(PARTITIONS), 1, watch)
    assert [sentence.rpartition(' partition ')[2] for sentence in watch.warned] == [
        '0, which begins again',
        '0 again; it is left out',
    ]
    assert all('killed by signal 9' in sentence for sentence in watch.warned)
    assert watch.items == PICTURES - SIZE
    assert writer.unfinished(out, job(album, out).plan) == [0]
    worker.embed(job(album, out), mapper, 0, lambda items, failed: None)
    writer.finish(out, job(album, out).plan, ENCODING.model)
    assert contents(out) == expected


def test_two_ranks_share_the_work(
    album: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / 'out'
    monkeypatch.setenv('SLURM_PROCID', '0')
    monkeypatch.setenv('SLURM_NTASKS', '2')
    assert main.main(command(album, out, '--distributed')) == 0
    assert f'{PARTITIONS // 2} are left to other ranks' in capsys.readouterr().out
    assert writer.unfinished(out, job(album, out).plan) == list(range(1, PARTITIONS, 2))
    assert main.main(command(album, out, '--rank', '1', '--world-size', '2')) == 1
    assert f'{PICTURES - 1} embedded, 1 failed' in capsys.readouterr().out
    assert contents(out) == expected


def test_processes_do_not_hear_ctrl_c_from_their_first_moment_on(album: str, tmp_path: Path) -> None:
    run = runner._Run(job(album, tmp_path / 'out'), [0], Watch(0))
    run._start()
    try:
        (one,) = run._workers
        assert one.connection.recv() == worker.Ready()
        status = Path(f'/proc/{one.process.pid}/status').read_text()
        blocked = next(line.split()[1] for line in status.splitlines() if line.startswith('SigBlk'))
        assert int(blocked, 16) >> signal.SIGINT - 1 & 1
    finally:
        run._stop()


@long
def test_ctrl_c_ends_all_processes_and_costs_a_partition_each(
    album: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'out'
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(_Bar, 'moved', interrupted)
        assert main.main(command(album, out, '--processes', '2')) == 130
    assert children(os.getpid()) == []
    assert main.main(command(album, out)) == 1
    assert contents(out) == expected

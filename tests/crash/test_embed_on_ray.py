"""`clipflow embed --runner ray` on a cluster of its own: whoever is killed, the files are those of a local run."""

import os
import subprocess
from pathlib import Path

import pytest

from clipflow import ROOT
from clipflow.bulk.embed import worker, writer
from clipflow.bulk.embed.mapper import Mapper
from clipflow.settings import PreprocessorSettings
from crash.embed_on_ray import SIZE
from environments import beside
from forms import long
from unit.bulk import embed_inputs as inputs
from unit.bulk.test_embed import ENCODING, SPEC, begun, contents

pytestmark = long

PICTURES = 60
SECONDS = 240


@pytest.fixture(scope='module')
def python() -> Path:
    """The interpreter with Ray beside everything that is pinned here."""
    return beside('ray', ROOT / 'clipflow' / 'bulk' / 'embed' / 'ray.txt')


@pytest.fixture(scope='module')
def album(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures for thirty partitions, a damaged one among them."""
    files = inputs.files(PICTURES) | {'041.jpg': b'damaged'}
    return inputs.shards(tmp_path_factory.mktemp('ray') / 'shards', files, (25, 35))


@pytest.fixture(scope='module')
def expected(album: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run in this process gives."""
    out = tmp_path_factory.mktemp('expected') / 'out'
    job = begun(album, out, SIZE)
    with Mapper(SPEC, ENCODING, PreprocessorSettings()) as mapper:
        writer.agree(out, mapper.encoder.description)
        for number in range(job.plan.partitions):
            worker.embed(job, mapper, number, lambda items, failed: None)
    writer.finish(out, job.plan, ENCODING.model)
    return contents(out)


def run(python: Path, *arguments: str) -> list[str]:
    """What a script or module says, errors last; Ray may have a word, too."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('CLIPFLOW_', 'RAY_'))}
    environment |= {'CLIPFLOW_RUNTIME': 'fake', 'CLIPFLOW_BATCH_SIZE': str(ENCODING.batch_size)}
    environment |= {'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run([str(python), *arguments], env=environment, capture_output=True, timeout=SECONDS, check=False)
    return (done.stdout + done.stderr).decode().splitlines()


def embed_on_ray(python: Path, *arguments: str) -> list[str]:
    return run(python, str(ROOT / 'tests' / 'crash' / 'embed_on_ray.py'), *arguments)


def test_everything_is_killed_in_the_middle_and_nothing_is_lost(
    python: Path, album: str, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / 'out'
    assert embed_on_ray(python, album, str(out), '031', '1', 'all')[0] == f'items: {PICTURES}, deaths: 1'
    writer.finish(out, begun(album, out, SIZE).plan, ENCODING.model)
    assert contents(out) == expected


def test_a_partition_at_which_a_process_dies_twice_costs_no_other_and_the_command_tries_again(
    python: Path, album: str, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / 'out'
    error, counts, *_ = embed_on_ray(python, album, str(out), '031', '2', 'self')
    assert error.startswith('error: a process died 2 times at partition 15; the rest is done')
    assert counts == f'items: {PICTURES - SIZE}, deaths: 2'
    assert writer.unfinished(out, begun(album, out, SIZE).plan) == [15]
    options = ('--out', str(out), '--partition-size', str(SIZE), '--runner', 'ray', '--quiet')
    said = run(python, '-m', 'clipflow.cli.main', 'embed', album, *options)
    assert said[0] == f'{PICTURES - 1} embedded, 1 failed; they are in {out}'
    assert '29 of 30 partitions are there already' in said
    assert contents(out) == expected


def test_a_cluster_that_is_not_there_is_said_in_one_sentence(python: Path, album: str, tmp_path: Path) -> None:
    options = ('--out', str(tmp_path / 'out'), '--runner', 'ray', '--address', '127.0.0.1:1', '--quiet')
    said = run(python, '-m', 'clipflow.cli.main', 'embed', album, *options)
    assert 'no Ray cluster at 127.0.0.1:1' in said[-1]
    assert 'Traceback' not in '\n'.join(said)

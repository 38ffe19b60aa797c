"""What travels through Ray, without Ray: the same minibatches, the same errors, in any order."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipflow.bulk.embed import plan as plans
from clipflow.bulk.embed import ray, worker
from clipflow.bulk.embed.mapper import Mapped, Mapper
from clipflow.bulk.embed.worker import Failed, Job
from clipflow.cli import main
from clipflow.settings import PreprocessorSettings
from unit.bulk import embed_inputs as inputs
from unit.bulk.test_embed import ENCODING, SPEC, begun


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two partitions, of four minibatches and two; a picture is damaged."""
    files = inputs.files() | {'005.jpg': b'damaged'}
    return begun(str(inputs.zipped(tmp_path / 'x.zip', files)), tmp_path / 'out', size=15)


def decoded(job: Job, number: int) -> list[ray.Row]:
    part = pickle.dumps(plans.part(job.folder, job.plan, number))
    return list(ray._decoded({'number': number, 'part': part}, pickle.loads(pickle.dumps(job))))


def plain(mapped: Mapped) -> Any:
    return (np.concatenate(mapped.images).tobytes(), np.concatenate(mapped.texts).tobytes(), mapped.rows, mapped.faults)


def test_minibatches_that_come_in_any_order_are_the_partition_of_a_local_run(job: Job) -> None:
    rows = [row for number in (0, 1) for row in decoded(job, number)]
    assert [(row['number'], row['batch']) for row in rows] == [(0, n) for n in range(5)] + [(1, n) for n in range(3)]
    actor, gathered = ray._Actor(job), {0: ray._Partition(), 1: ray._Partition()}
    complete = []
    for place in np.random.default_rng(3).permutation(len(rows)):
        row = actor(rows[place])
        if gathered[row['number']].add(row['batch'], pickle.loads(row['content'])):
            complete.append((row['number'], place))
    assert sorted(number for number, _ in complete) == [0, 1]
    with Mapper(SPEC, ENCODING, PreprocessorSettings()) as mapper:
        for number, partition in gathered.items():
            items = worker.items_of(job.reader, plans.part(job.folder, job.plan, number), 10**6)
            expected = mapper.map(items, True, lambda items, failed: None)
            assert plain(partition.gathered()) == plain(expected)


def test_a_partition_is_not_complete_before_its_last_minibatch_and_all_before_it(job: Job) -> None:
    actor = ray._Actor(job)
    contents = {row['batch']: pickle.loads(actor(row)['content']) for row in decoded(job, 1)}
    partition = ray._Partition()
    assert [partition.add(batch, contents[batch]) for batch in (2, 0, 0, 1)] == [False, False, False, True]


def test_what_cannot_go_on_comes_back_as_a_result(job: Job, tmp_path: Path) -> None:
    (row,) = list(ray._decoded({'number': 3, 'part': b'no pickle'}, job))
    failed = pickle.loads(ray._Actor(job)(row)['content'])
    assert (row['number'], failed.code) == (3, 'internal')
    nowhere = replace(job, encoding=ENCODING.model_copy(update={'model': str(tmp_path / 'nowhere')}))
    answer = pickle.loads(ray._Actor(nowhere)(decoded(job, 0)[0])['content'])
    assert isinstance(answer, Failed)
    assert 'nowhere' in answer.message


def test_a_folder_travels_without_the_list_of_its_files(tmp_path: Path) -> None:
    job = begun(str(inputs.folder(tmp_path / 'folder', inputs.files())), tmp_path / 'out')
    assert b'007' in pickle.dumps(plans.part(job.folder, job.plan, 1))
    assert b'007' not in pickle.dumps(job)
    assert len(decoded(job, 1)) == 3


def test_ray_that_is_not_installed_and_an_address_without_it_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(ray, 'import_module', missing)
    monkeypatch.setenv('CLIPFLOW_RUNTIME', 'fake')
    given = [
        'embed',
        str(inputs.zipped(tmp_path / 'x.zip', inputs.files(1))),
        '--out',
        str(tmp_path / 'out'),
        '--quiet',
    ]
    assert main.main([*given, '--runner', 'ray']) != 0
    assert "pip install 'clipflow[bulk,ray]'" in capsys.readouterr().err
    assert main.main([*given, '--address', 'auto']) != 0
    assert '--address goes with --runner ray' in capsys.readouterr().err

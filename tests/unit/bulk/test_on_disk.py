"""An index for others that is larger than the memory for it: the same index, made of parts."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from folders import unit, written

from clipflow import ROOT
from clipflow.bulk import index_file, on_disk
from clipflow.bulk.mapped import Mapped
from clipflow.errors import Conflict, InvalidParameter
from clipflow.index.choice import Wanted

COUNT, DIMENSION = 30_000, 16
VECTORS = unit(np.random.default_rng(0).normal(size=(COUNT, DIMENSION)))
QUERIES = unit(np.random.default_rng(1).normal(size=(50, DIMENSION)))
MAPPED = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
LITTLE = 4 * DIMENSION * 64 * 256
"""As many vectors as the clusters are learnt from."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {'image_path': [f'/photos/{n}.jpg' for n in range(COUNT)]}
    return written(tmp_path_factory.mktemp('folder'), VECTORS.astype(np.float16), columns)


def made(folder: Path, file: Path, kind: str, memory: int) -> None:
    told: list[int] = []
    index_file.write(Mapped(folder), file, Wanted(kind, memory=memory, recall=0.5), lambda _, count: told.append(count))
    assert sum(told) == COUNT


@pytest.mark.parametrize('kind', ['ivf', 'PCA8,IVF64,SQ8'])
def test_an_index_of_parts_is_the_one_that_is_made_in_memory(
    folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same sample, so that the clusters are the same too.
    monkeypatch.setattr(on_disk, '_SHARE_OF_SAMPLE', 1)
    made(folder, tmp_path / 'whole', kind, 1 << 32)
    merged: list[int] = []
    merge = on_disk._merge

    def counted(main: Any, parts: Any, file: Path) -> Any:
        merged.append(len(parts))
        return merge(main, parts, file)

    monkeypatch.setattr(on_disk, '_merge', counted)
    made(folder, tmp_path / 'parts', kind, LITTLE)
    assert merged[0] > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['parts', 'whole']
    expected = faiss.read_index(str(tmp_path / 'whole'))
    scores, places = expected.search(QUERIES, 10)
    assert faiss.extract_index_ivf(expected).nprobe > 1
    for flags in (0, MAPPED):
        found = faiss.read_index(str(tmp_path / 'parts'), flags)
        assert (found.ntotal, found.metric_type) == (COUNT, faiss.METRIC_INNER_PRODUCT)
        assert faiss.extract_index_ivf(found).nprobe == faiss.extract_index_ivf(expected).nprobe
        more_scores, more_places = found.search(QUERIES, 10)
        assert np.array_equal(more_places, places)
        assert np.allclose(more_scores, scores, atol=1e-6)


def test_a_kind_whose_parts_cannot_be_merged_is_refused_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match='cannot be merged on disk'):
        made(folder, tmp_path / 'index', 'IVF64,PQ8x4fs', LITTLE)
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from clipflow.bulk import index_file
from clipflow.bulk.mapped import Mapped
from clipflow.index.choice import Wanted

os.cpu_count = lambda: 1  # all in this process
wanted = Wanted('ivf', memory=int(sys.argv[3]))
index_file.write(Mapped(Path(sys.argv[1])), Path(sys.argv[2]), wanted, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_process_has_left_is_gone_with_the_next(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / 'index'
    command = [sys.executable, '-W', 'ignore', '-c', _KILLED, str(folder), str(file), str(LITTLE)]
    assert subprocess.run(command, check=False, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob('*'))) > 1
    made(folder, file, 'ivf', LITTLE)
    assert list(tmp_path.iterdir()) == [file]


def test_two_do_not_make_one_file(folder: Path, tmp_path: Path) -> None:
    refused: list[Conflict] = []

    def another(phase: str, count: int) -> None:
        with pytest.raises(Conflict, match='another process makes') as error:
            index_file.write(Mapped(folder), tmp_path / 'index', Wanted('flat'), lambda *_: None)
        refused.append(error.value)

    index_file.write(Mapped(folder), tmp_path / 'index', Wanted('flat'), another)
    assert refused
    assert faiss.read_index(str(tmp_path / 'index')).ntotal == COUNT
    assert [path.name for path in tmp_path.iterdir()] == ['index']


_GROWTH = """
import json, os, sys, threading
from pathlib import Path
import faiss, numpy as np
from clipflow.bulk import index_file
from clipflow.bulk.mapped import Mapped
from clipflow.index.choice import Wanted

os.cpu_count = lambda: 1  # all in this process
source, file, memory = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def held():
    (line,) = [line for line in open('/proc/self/status') if line.startswith('RssAnon')]
    return int(line.split()[1]) * 1024

# What both libraries of linear algebra keep for themselves is of one size, whatever they are given.
warm = np.random.default_rng(0).normal(size=(2000, 128)).astype('float32')
faiss.knn(warm, warm, 10)
warm @ warm.T
before, most, ended = held(), [0], threading.Event()

def watch():
    while not ended.wait(0.002):
        most[0] = max(most[0], held())

watching = threading.Thread(target=watch)
watching.start()
index_file.write(Mapped(source), file, Wanted('ivf', memory=memory, recall=0.2), lambda *_: None)
ended.set()
watching.join()
print(json.dumps(most[0] - before))
"""


def test_memory_stays_within_the_limit_and_the_answers_are_those_of_an_index_in_memory(tmp_path: Path) -> None:
    count, dimension, limit = 80_000, 128, 12 << 20
    vectors = unit(np.random.default_rng(0).normal(size=(count, dimension)))
    source = written(tmp_path / 'vectors', vectors.astype(np.float16), size=count // 2)
    grown = {}
    for name, memory in (('whole', 1 << 32), ('parts', limit)):
        command = [sys.executable, '-W', 'ignore', '-c', _GROWTH, str(source), str(tmp_path / name), str(memory)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300)
        grown[name] = json.loads(done.stdout)
    assert grown['whole'] > 4 * count * dimension > 3 * limit
    assert grown['parts'] < limit
    found = []
    for name in ('whole', 'parts'):
        index = faiss.read_index(str(tmp_path / name), MAPPED)
        lists = faiss.extract_index_ivf(index)
        lists.nprobe = lists.nlist
        found.append(index.search(vectors[:: count // 50], 10)[1])
    assert np.array_equal(*found)

"""Near-duplicates against every pair compared, and the files of groups."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from folders import unit, written
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipflow import ROOT
from clipflow.bulk import dedup, groups
from clipflow.bulk.dedup import Components
from clipflow.bulk.mapped import Mapped
from clipflow.errors import InvalidParameter, ReadOnly, StorageFull

THRESHOLD = 0.95


def oracle(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The smallest of what hangs together, by walking from each one not yet seen."""
    near: dict[int, set[int]] = {n: set() for n in range(count)}
    for one, other in pairs:
        near[one].add(other)
        near[other].add(one)
    labels = [-1] * count
    for first in range(count):
        front = [first] if labels[first] < 0 else []
        while front:
            n = front.pop()
            if labels[n] < 0:
                labels[n] = first
                front += near[n]
    return labels


def near_pairs(vectors: NDArray[np.float32]) -> list[tuple[int, int]]:
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    # No cosine lies where rounding decides.
    assert not (np.abs(cosines - THRESHOLD) < 1e-5).any()
    return [(int(i), int(j)) for i, j in np.argwhere(cosines >= THRESHOLD)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_a_walk_in_whatever_order_pairs_come(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    found = Components(count)
    for some in (pairs[::2], pairs[1::2]):
        places = np.array(some, dtype=np.int64).reshape(-1, 2)
        found.join(places[:, 0], places[:, 1])
    assert found.labels().tolist() == oracle(count, pairs)


def collection(seed: int, count: int = 700) -> NDArray[np.float32]:
    """Vectors of which many are near others, equal to them, or links of chains whose ends are far apart."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(count, 12)))
    for n in rng.integers(1, count, count // 3).tolist():
        rows[n] = unit(rows[rng.integers(0, n)][None] + rng.normal(scale=0.05, size=(1, 12)))[0]
    for n in rng.integers(1, count, count // 10).tolist():
        rows[n] = rows[rng.integers(0, n)]
    angles = np.arange(30) * 0.25  # a cosine of 0.97 to the next, and of any value to others
    chain = np.zeros((30, 12), dtype=np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angles / 3), np.sin(angles / 3)
    rows[rng.choice(count, 30, replace=False)] = chain
    return rows


@pytest.mark.parametrize('way', ['pairs', 'index'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_groups_are_those_of_every_pair_compared(
    seed: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, '_EXACT_BLOCK', 100)
    if way == 'index':
        monkeypatch.setattr(dedup, 'EXACT', 0)
        monkeypatch.setattr(dedup, '_PROBES', 10_000)
        # As if it were large: the kind that a collection of millions gets.
        monkeypatch.setattr('clipflow.index.choice.MOST_FLAT', 10)
        monkeypatch.setattr('clipflow.index.choice.LEAST', 10)
    source = Mapped(written(tmp_path / 'in', collection(seed)))
    told: list[int] = []
    labels = dedup.components(source, THRESHOLD, 1 << 30, told.append)
    _, rows = source.vectors_of(np.arange(source.count()))
    expected = oracle(source.count(), near_pairs(rows))
    assert labels.tolist() == expected
    assert sum(told) == source.count()
    count, removable = dedup.counted(labels)
    assert (count, removable) == (sum(expected.count(n) > 1 for n in set(expected)), 700 - len(set(expected)))
    assert max(expected.count(n) for n in set(expected)) >= 30  # the chain


def test_an_index_in_eight_bits_proposes_and_the_vectors_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, 'EXACT', 0)
    monkeypatch.setattr(dedup, '_PROBES', 10_000)
    monkeypatch.setattr('clipflow.index.choice.MOST_FLAT', 10)
    monkeypatch.setattr('clipflow.index.choice.LEAST', 10)
    source = Mapped(written(tmp_path / 'in', collection(3)))
    labels = dedup.components(source, THRESHOLD, 48_000, lambda count: None)
    _, rows = source.vectors_of(np.arange(source.count()))
    assert labels.tolist() == oracle(source.count(), near_pairs(rows))
    with pytest.raises(InvalidParameter, match='do not fit in 10,000 bytes'):
        dedup.components(source, THRESHOLD, 10_000, lambda count: None)


PICTURES = unit(np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 1, 0.1], [0, 0, 1], [1, 0.05, 0]]))
COLUMNS = {
    'image_path': [f'/p/{n}, "x".jpg' for n in range(6)],
    'width': [10, 10, 20, 10, 10, 10],
    'height': [10, 10, 10, 10, 10, 10],
}
EXPECTED = [
    {'group': 0, 'id': '/p/2, "x".jpg', 'kept': True},
    {'group': 0, 'id': '/p/0, "x".jpg', 'kept': False},
    {'group': 0, 'id': '/p/5, "x".jpg', 'kept': False},
    {'group': 1, 'id': '/p/1, "x".jpg', 'kept': True},
    {'group': 1, 'id': '/p/3, "x".jpg', 'kept': False},
]


@pytest.mark.parametrize('ending', groups.FORMATS)
def test_the_largest_of_a_group_is_kept_and_files_say_so(ending: str, tmp_path: Path) -> None:
    source = Mapped(written(tmp_path / 'in', PICTURES, COLUMNS, size=4))
    labels = dedup.components(source, THRESHOLD, 1 << 30, lambda count: None)
    file = tmp_path / 'new' / f'groups{ending}'
    groups.write(groups.members(source, labels), file)
    if ending == '.parquet':
        rows = pyarrow.parquet.read_table(file).to_pylist()
    elif ending == '.jsonl':
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        with file.open(newline='') as text:
            rows = [{**row, 'group': int(row['group']), 'kept': row['kept'] == 'True'} for row in csv.DictReader(text)]
    assert [{name: row[name] for name in ('group', 'id', 'kept')} for row in rows] == EXPECTED
    assert [row['uri'] for row in rows] == [row['id'] for row in EXPECTED]
    cosines = [PICTURES[2] @ PICTURES[n] for n in (2, 0, 5)] + [PICTURES[1] @ PICTURES[n] for n in (1, 3)]
    assert [float(row['cosine']) for row in rows] == pytest.approx(cosines, abs=1e-5)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_without_sizes_the_first_is_kept_and_without_metadata_places_are_the_ids(tmp_path: Path) -> None:
    source = Mapped(written(tmp_path, PICTURES, size=4))
    found = list(groups.members(source, dedup.components(source, THRESHOLD, 1 << 30, lambda count: None)))
    assert [(one.id, one.kept) for one in found] == [('0', True), ('2', False), ('5', False), ('1', True), ('3', False)]


def test_what_cannot_be_written_or_is_out_of_range_is_said(tmp_path: Path) -> None:
    source = Mapped(written(tmp_path / 'in', PICTURES))
    with pytest.raises(InvalidParameter, match='threshold'):
        dedup.components(source, 1.5, 1 << 30, lambda count: None)
    with pytest.raises(InvalidParameter, match=r'\.jsonl'):
        groups.check_file(tmp_path / 'groups.txt')
    with pytest.raises(ReadOnly, match='cannot be written'):
        groups.write([], tmp_path / 'in' / 'img_emb' / 'img_emb_00.npy' / 'groups.csv')
    with pytest.raises(StorageFull, match=r'groups\.jsonl cannot be written'):
        groups.write(full(), tmp_path / 'groups.jsonl')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


def full() -> list[groups.Member]:
    class Full(list[groups.Member]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise OSError(28, 'No space left on device')

    return Full()


def test_the_command_writes_groups_and_lists_what_could_be_removed(tmp_path: Path) -> None:
    folder = written(tmp_path / 'in', PICTURES, COLUMNS)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, '-m', 'clipflow.cli.main', 'dedup', *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    done = run(str(folder), '--out', str(tmp_path / 'groups.csv'), '--list-removable')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [row['id'] for row in EXPECTED if not row['kept']]
    assert '2 groups; 3 of 6 could be removed' in done.stderr
    assert (tmp_path / 'groups.csv').is_file()
    refused = run(str(tmp_path), '--list-removable')
    assert (refused.returncode, 'no collection of vectors' in refused.stderr) == (1, True)
    assert '--out FILE' in run(str(folder)).stderr

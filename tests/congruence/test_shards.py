"""Several shards and the ranker answer as one index does, whatever is asked of them."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from docarray import Document
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipflow import wire
from clipflow.border.indexing import Indexing
from clipflow.filters import compile_filter
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Snapshots
from clipflow.index.live import LiveIndex
from clipflow.rank import scores
from clipflow.sharding import shard_of
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store
from clipflow.wire import SearchParameters
from forms import LONG

DIMENSION = 4
SHARDS = 3
IN_MEMORY = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None


class Shard(Indexing):
    """What an indexer asks of its index and sends to the ranker, without a process around it."""

    def __init__(self, live: LiveIndex, number: int, of: int, **_: Any) -> None:
        self._index, self.shard, self.shards = live, number, of

    def compiled(self, query: dict[str, Any]) -> Any:
        return compile_filter(query)

    def answer(self, doc: Document, parameters: SearchParameters) -> None:
        query = doc.embedding[None]
        (hits,) = self._nearest(query, self._query(parameters, texts=False))
        doc.matches.extend([self._match(hit, parameters) for hit in hits])
        if self._tells_sample(parameters):
            wire.attach(doc, wire.BACKGROUND, tensor=self._index.background(query)[0])


@contextmanager
def stored(records: Sequence[Record], shards: int) -> Iterator[list[Shard]]:
    """The documents in so many shards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=IN_MEMORY)))
        found = []
        for number in range(shards):
            live = LiveIndex(Store(folder / str(number), 'abc', 'm'), Wanted('flat'), Snapshots(10**9, 10**9))
            stack.callback(live.close)
            live.upsert([record for record in records if shard_of(record.id, shards) == number])
            found.append(Shard(live, number, shards))
        yield found


def answer(shards: Sequence[Shard], query: NDArray[np.float32], asked: dict[str, Any]) -> list[tuple[str, Any]]:
    """Ids and scores of the page that the ranker makes."""
    parameters = SearchParameters.parse(asked)
    doc = Document(text='query', embedding=query)
    for shard in shards:
        shard.answer(doc, parameters)
    scores.merge(doc, parameters)
    return [(match.id, {name: score.value for name, score in match.scores.items()}) for match in doc.matches]


def documents(count: int, seed: int) -> list[Record]:
    """Some are copies of others, some nearly so; few groups, some without; prices that tie."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIMENSION))
    rows[1::3] = rows[rng.integers(0, count, len(rows[1::3]))]
    rows[2::5] = rows[rng.integers(0, count, len(rows[2::5]))] + 0.2 * rng.normal(size=(len(rows[2::5]), DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    records = []
    for number, row in enumerate(rows.astype(np.float32)):
        tags = {'group': int(rng.integers(0, 12)), 'price': int(rng.integers(0, 9)), 'on': bool(rng.integers(0, 2))}
        kept = {name: value for name, value in tags.items() if rng.random() < 0.9}
        records.append(Record(f'{number}', '', '', json.dumps(kept), row))
    return records


def vector(seed: int) -> NDArray[np.float32]:
    row = np.random.default_rng(seed).normal(size=DIMENSION)
    return (row / np.linalg.norm(row)).astype(np.float32)


ORDERS = st.one_of(
    st.fixed_dictionaries({}, optional={'min_score': st.sampled_from([-0.5, 0.0, 0.6])}),
    st.fixed_dictionaries({'relevance': st.sampled_from([0.0, 0.5, 0.9])}),
    st.fixed_dictionaries({'diversity': st.sampled_from([0.3, 1.0])}),
    st.fixed_dictionaries(
        {'sort_by': st.sampled_from(['price', '-price', 'nothing']), 'min_score': st.sampled_from([-0.5, 0.0, 0.6])}
    ),
)
OTHERS = st.fixed_dictionaries(
    {},
    optional={
        'group_by': st.just('group'),
        'dedup': st.sampled_from([0.8, 0.95, 1.0]),
        'filter': st.just({'on': True}),
        'include': st.just(['percentile', 'tags']),
    },
)


@settings(max_examples=400 if LONG else 40, deadline=None, derandomize=True)
@given(count=st.sampled_from([5, 60, 200]), seed=st.integers(0, 10**6), order=ORDERS, others=OTHERS)
def test_shards_answer_as_one_index_does_and_few_are_the_beginning_of_more(
    count: int, seed: int, order: dict[str, Any], others: dict[str, Any]
) -> None:
    records, query = documents(count, seed), vector(seed + 1)
    with stored(records, 1) as one, stored(records, SHARDS) as several:
        everything = answer(one, query, {'limit': 40, **order, **others})
        for limit, offset in ((40, 0), (1, 0), (5, 0), (12, 0), (5, 12)):
            asked = {'limit': limit, 'offset': offset, **order, **others}
            assert answer(several, query, asked) == everything[offset : offset + limit]
            assert answer(one, query, asked) == everything[offset : offset + limit]


NUMBERS = [
    '1',
    '1.0',
    'true',
    '0',
    '-0.0',
    'false',
    '2',
    '2.5',
    '1e300',
    '1E300',
    '"1"',
    '[1, 0]',
    '[1.0, false]',
    '{"a": 1}',
]
GROUPS = [[0, 1, 2], [3, 4, 5], [6], [7], [8, 9], [10], [11, 12], [13]]
"""Which of them are equal."""


def test_values_that_a_filter_takes_for_equal_are_one_group() -> None:
    records = [
        Record(f'{n:02}', '', '', f'{{"group": {number}}}', vector(n)) for n, number in enumerate([*NUMBERS, *NUMBERS])
    ]
    query = vector(99)
    expected = set()
    with stored(records, 1) as one, stored(records, SHARDS) as several:
        best = [int(name) % len(NUMBERS) for name, _ in answer(one, query, {'limit': 100})]
        for group in GROUPS:
            expected.add(next(n for n in best if n in group))
        for shards in (one, several):
            shown = [int(name) % len(NUMBERS) for name, _ in answer(shards, query, {'limit': 100, 'group_by': 'group'})]
            assert sorted(shown) == sorted(expected)
        for value, group in ((1, GROUPS[0]), (0, GROUPS[1]), (1e300, GROUPS[4])):
            told = answer(one, query, {'limit': 100, 'filter': {'group': value}})
            assert {int(name) % len(NUMBERS) for name, _ in told} == set(group)


def test_what_a_shard_leaves_out_for_a_better_one_is_shown_if_that_one_is_left_out_for_a_still_better_one() -> None:
    # Along a circle: the second is near the first and the third, which are apart. The second and third share a shard.
    def at(degrees: float) -> NDArray[np.float32]:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0, 0], np.float32)

    names = iter(f'd{number}' for number in range(100))
    first = next(name for name in names if shard_of(name, 2) == 0)
    second, third = (next(name for name in names if shard_of(name, 2) == 1) for _ in range(2))
    records = [
        Record(name, '', '', '{"group": 1}' if name == third else '{"group": 2}', at(degrees))
        for name, degrees in ((first, 10), (second, 20), (third, 30))
    ]
    with stored(records, 1) as one, stored(records, 2) as two:
        for more in ({}, {'sort_by': 'group', 'min_score': 0.0}):
            asked = {'limit': 2, 'dedup': float(np.cos(np.radians(15))), **more}
            expected = [third, first] if more else [first, third]
            assert [name for name, _ in answer(one, at(0), asked)] == expected
            assert [name for name, _ in answer(two, at(0), asked)] == expected

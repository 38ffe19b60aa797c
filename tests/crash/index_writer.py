"""A process that changes an index without pause until it is killed, and says on stdout what it does.

    python index_writer.py FOLDER KIND SEED

One JSON line each: {"start": ...} when the index is open, {"begin": n, "what": ..., ...} before an operation, with all
that is needed to know what it would do, and {"done": n} after it returned.
"""

import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipflow.index import choice, keeper
from clipflow.index.base import Effort
from clipflow.index.choice import Wanted
from clipflow.index.keeper import Snapshots
from clipflow.index.live import LiveIndex, Query
from clipflow.store.reading import Record
from clipflow.store.sqlite import Store

DIMENSION = 16
LEAST = 300
"""Product quantisation cannot learn its 256 centres from fewer than as many vectors."""
_MOST = 700
_BATCH = 50
_SHARES = {'upsert': 10, 'delete': 5, 'tags': 3, 'snapshot': 1, 'search': 2}
HARDEST = Effort(nprobe=4096, ef_search=4096)
"""More than there are documents: what is missed was lost, and not just overlooked by an approximate search."""


def vectors(seed: int, count: int) -> NDArray[np.float32]:
    """[N, D] of unit length, the same for the same numbers."""
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    units: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return units


def hasten() -> None:
    """Let the index change its kind, merge and clean up after few changes, so that a kill hits these often."""
    choice.LEAST = LEAST
    keeper.MERGE_AT = 64
    keeper.DEAD_LEAST = 20


class IndexWriter:
    """Does one random operation after another."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        hasten()
        self._chance = random.Random(seed)
        self._live = LiveIndex(Store(folder, 'abc', 'm'), Wanted(kind), Snapshots(changes=300, seconds=0.2))
        store = self._live.store
        records = store.by_keys(store.keys().tolist())
        self._ids = sorted(record.id for record in records.values())
        # Ids of earlier lives of this folder do not come again, so that a deleted one that comes back is told apart.
        self._fresh: Iterator[str] = (f'{seed}/{number}' for number in range(10**9))
        _say({'start': self._live.status()['start']})

    def run(self) -> None:
        """Until the process is killed, or nobody reads what it says."""
        names, shares = list(_SHARES), list(_SHARES.values())
        number = 0
        threading.Thread(target=self._keep_snapshotting, daemon=True).start()
        while True:
            number += 1
            name = self._chance.choices(names, shares)[0]
            if name == 'delete' and len(self._ids) < LEAST + _BATCH:
                name = 'upsert'
            elif name == 'upsert' and len(self._ids) > _MOST:
                name = 'delete'
            act: Callable[[int], dict[str, Any]] = getattr(self, f'_{name}')
            _say({'done': number, **act(number)})

    def _keep_snapshotting(self) -> None:
        """As another request may, at any moment of a write; what the loop asks for itself comes between writes."""
        chance = random.Random()
        try:
            while True:
                time.sleep(chance.uniform(0.005, 0.05))
                self._live.keeper.snapshot()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _upsert(self, number: int) -> dict[str, Any]:
        count = self._chance.randint(1, _BATCH)
        old = self._some(self._chance.randint(0, count // 2))
        ids = [*old, *(next(self._fresh) for _ in range(count - len(old)))]
        seed, tags = self._chance.getrandbits(40), {'written': number, 'shade': self._chance.choice(['red', 'blue'])}
        _say({'begin': number, 'what': 'upsert', 'ids': ids, 'seed': seed, 'tags': tags})
        rows = vectors(seed, len(ids))
        text = json.dumps(tags)
        self._live.upsert([Record(name, '', '', text, row) for name, row in zip(ids, rows, strict=True)])
        self._ids += ids[len(old) :]
        return {}

    def _delete(self, number: int) -> dict[str, Any]:
        ids = self._some(self._chance.randint(1, _BATCH))
        _say({'begin': number, 'what': 'delete', 'ids': ids})
        count = self._live.delete(ids)
        assert count == len(ids), f'{count} of {len(ids)} were there to delete'
        self._ids = sorted(set(self._ids) - set(ids))
        return {}

    def _tags(self, number: int) -> dict[str, Any]:
        ids = self._some(self._chance.randint(1, 10))
        patch = {'changed': number, 'shade': None}
        _say({'begin': number, 'what': 'tags', 'ids': ids, 'patch': patch})
        assert all(self._live.store.merge_tags([(name, json.dumps(patch)) for name in ids]))
        return {}

    def _snapshot(self, number: int) -> dict[str, Any]:
        _say({'begin': number, 'what': 'snapshot'})
        return {'sequence': self._live.keeper.snapshot()['sequence']}

    def _search(self, number: int) -> dict[str, Any]:
        _say({'begin': number, 'what': 'search'})
        for record in self._live.store.by_ids(self._some(3), vectors=True).values():
            assert record.vector is not None
            hits = self._live.search(record.vector[None], Query(10, effort=HARDEST))[0]
            found = [(hit.record.id, hit.score) for hit in hits[:1]]
            assert found == [(record.id, 1.0)], f'{record.id} was asked for, the first is {found}'
        return {}

    def _some(self, count: int) -> list[str]:
        return self._chance.sample(self._ids, min(count, len(self._ids)))


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == '__main__':
    IndexWriter(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).run()

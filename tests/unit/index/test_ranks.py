"""How much is found at an effort is known without a search, where the lists of the true best are known."""

import numpy as np
import pytest

from clipflow.index.approximate import Approximate
from clipflow.index.tuning import Best


def test_the_share_of_lists_that_are_searched_is_the_recall_of_a_search() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rng.normal(size=(50, 16)).astype(np.float32)
    main = Approximate.create('IVF64,Flat', 16)
    main.train(rows)
    main.fill(rows)
    best = Best(queries)
    best.look(np.arange(len(rows)), rows)
    ranks = main.ranks(queries, best.keys)
    assert main.mapped
    for effort in (1, 4, 16, 64):
        _, found, _ = main.search(queries, 10, effort)
        recall = np.mean([np.isin(real, some).mean() for real, some in zip(best.keys, found, strict=True)])
        assert (ranks < effort).mean() == pytest.approx(recall)

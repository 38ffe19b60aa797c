"""Pictures in an index: the places that it gives are those of the vectors."""

import numpy as np
import pytest

from clipflow.relevance.nearest import LIMIT, Nearest


@pytest.mark.parametrize('kind', ['auto', 'hnsw', 'ivf', 'IVF32,SQ8'])
def test_a_vector_is_found_at_its_place_and_the_next_ones_by_their_cosine(kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = rng.permutation(1500)[:600]
    nearest = Nearest(vectors, kind)
    found = nearest.search(vectors[chosen])
    assert [int(places[0]) for places, _ in found] == chosen.tolist()
    places, scores = found[-1]
    assert len(places) == LIMIT
    assert scores == pytest.approx(vectors[places] @ vectors[chosen[-1]], abs=1e-5)
    assert (np.diff(scores) <= 0).all()
    best = np.argsort(-(vectors @ vectors[chosen[-1]]))[:10]
    assert len(set(best.tolist()) & set(places.tolist())) >= 9

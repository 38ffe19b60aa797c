"""What a head gains from simulated clicks, on captions that nobody searched for: the table in docs/relevance.md.

People search flickr8k's photographs with captions of the splits train and val, see the 20 nearest, and click with the
probability 1 / place x relevance: 0.9 for the photograph that the caption describes, 0.02 for any other. The head
learns from the log of these clicks alone, and is measured with captions of the split test, over all photographs. The
second head learns from the captions themselves.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipflow import ROOT
from clipflow.clicks import PLACES, Feedback, counted, propensities
from clipflow.rank.fit import Lists
from clipflow.rank.head import Head
from clipflow.relevance.bootstrap import difference, estimate
from clipflow.relevance.captions import CaptionSet, read_captions
from clipflow.relevance.embedding import Embedding
from clipflow.settings import EncoderSettings
from clipflow.tuning.head import Recipe, from_feedback, from_pairs, train
from clipflow.weights import load_spec

SHOWN = 20
RIGHT, WRONG = 0.9, 0.02
CUTS = (1, 5, 10)

Rows = NDArray[np.float32]


def embedded(model: str, chosen: CaptionSet) -> tuple[Rows, Rows, str]:
    """Vectors of all photographs, of all captions, and the fingerprint of the model."""
    spec = load_spec(model)
    with Embedding(spec, EncoderSettings.load()) as embedding:
        texts = embedding.texts([text for _, text in chosen.captions], spec.templates, lambda count: None)
        pictures = embedding.pictures(chosen.pictures, lambda count: None)
    assert len(texts.kept) == len(chosen.captions)
    assert len(pictures.kept) == len(chosen.pictures)
    return pictures.vectors, texts.vectors, spec.fingerprint


def clicked(queries: Rows, right: NDArray[np.int64], pictures: Rows, model: str, seed: int) -> list[Feedback]:
    """The log of one search a caption."""
    rng = np.random.default_rng(seed)
    log = []
    for number, (query, own) in enumerate(zip(queries, right, strict=True)):
        scores = pictures @ query
        shown = np.argsort(-scores)[:SHOWN]
        chance = np.where(shown == own, RIGHT, WRONG) / np.arange(1, SHOWN + 1)
        hits = tuple(str(n) for n in shown[rng.random(SHOWN) < chance])
        if hits:
            ids = tuple(str(n) for n in shown)
            log.append(Feedback(str(number), query, model, ids, hits, (), tuple(scores[shown].tolist())))
    return log


def recalls(
    queries: Rows, right: NDArray[np.int64], pictures: Rows, head: Head | None
) -> dict[int, NDArray[np.float64]]:
    """For each caption whether its photograph is among the first; a head orders the best 100, as in the ranker."""
    order = np.argsort(-(queries @ pictures.T), axis=1, kind='stable')[:, :100]
    if head is not None:
        moved = (1 - head.blend) * queries + head.blend * head.moved(queries)
        scores = np.stack([pictures[row] @ query for row, query in zip(order, moved, strict=True)])
        order = np.take_along_axis(order, np.argsort(-scores, axis=1, kind='stable'), axis=1)
    return {cut: (order[:, :cut] == right[:, None]).any(axis=1).astype(np.float64) for cut in CUTS}


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long it took."""
    begun = time.perf_counter()
    yield
    print(f'{what}: {time.perf_counter() - begun:.1f} s')


def show(
    name: str, before: dict[int, NDArray[np.float64]], after: dict[int, NDArray[np.float64]], own: NDArray[np.int64]
) -> None:
    """A row for each measure."""
    for cut in CUTS:
        one, other = estimate('recall', before[cut], own), estimate('recall', after[cut], own)
        change = difference('recall', before[cut], after[cut], own)
        print(
            f'| {name} | R@{cut} | {one.value:.3f} | {other.value:.3f} '
            f'| {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] |'
        )


def learned(name: str, lists: Lists, model: str, recipe: Recipe) -> Head:
    """A head, and how its own check went."""
    with timed(f'{name}: {len(lists):,} lists'):
        head, figures = train(lists, model, name, recipe, lambda *told: None)
    for measure, figure in figures.items():
        print(f'  held out, {measure}: {figure.cosine.value:.3f} to {figure.head.value:.3f}')
    print(f'  passed: {head.passed}')
    return head


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--model', default=str(ROOT / 'models' / 'clip-mini'))
    parser.add_argument('--searches', type=int, default=1, help='of each caption')
    parser.add_argument('--rank', type=int, default=32)
    given = parser.parse_args()
    table = given.data / 'flickr8k' / 'captions.jsonl'
    chosen = read_captions(table)
    tests = {picture.name for picture in read_captions(table, split='test').pictures}
    pictures, texts, model = embedded(given.model, chosen)
    own = np.array([place for place, _ in chosen.captions], dtype=np.int64)
    held = np.array([chosen.pictures[place].name in tests for place in own])
    print(f'{len(pictures):,} photographs, {(~held).sum():,} captions searched, {held.sum():,} held out')
    log = [
        entry for seed in range(given.searches) for entry in clicked(texts[~held], own[~held], pictures, model, seed)
    ]
    theta = propensities(counted((entry.shown, entry.scores, entry.clicked, entry.head) for entry in log))
    truth = np.maximum(1 / np.arange(1, PLACES + 1), 0.05)
    off = np.abs(theta - truth)[:10].max()
    print(f'{len(log):,} searches with a click; propensities of the first 10 places: off by {off:.3f} at most')
    rows = {str(number): row for number, row in enumerate(pictures)}
    recipe = Recipe(rank=given.rank)
    heads = {
        'clicks': learned('clicks', from_feedback(log, rows, model), model, recipe),
        'captions': learned('captions', from_pairs(texts[~held], [str(n) for n in own[~held]], rows), model, recipe),
    }
    print('| head from | measure | cosine | head | difference |\n|---|---|---|---|---|')
    before = recalls(texts[held], own[held], pictures, None)
    for name, head in heads.items():
        show(name, before, recalls(texts[held], own[held], pictures, head), own[held])


if __name__ == '__main__':
    main()

"""How close each runtime comes to float32 on PyTorch, on real photographs and captions, and what that does to recall.

    python benchmarks/parity.py [--data DIR] [--limit N] [--model DIR]

All photographs of quality.py are encoded by every session that is installed, in one process. Recall@5 is that of
flickr8k's test captions, encoded by the same session, against all photographs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from clipflow import ROOT
from clipflow.pictures import decode, prepare
from clipflow.sessions.base import Options, Session
from clipflow.sessions.machine import this_machine
from clipflow.sessions.parity import closeness
from clipflow.sessions.registry import load
from clipflow.tokens import Tokenizer
from clipflow.weights import ModelSpec, load_spec
from quality import captions, photographs
from sessions import WAYS

BATCH = 32


def images(session: Session, pixels: NDArray[np.uint8], title: str) -> NDArray[np.float32]:
    """Vectors of all photographs, [N, D]."""
    starts = track(range(0, len(pixels), BATCH), f'{title}: photographs')
    return np.concatenate([session.encode_images(pixels[start : start + BATCH]) for start in starts])


def texts(session: Session, spec: ModelSpec, sentences: list[str]) -> NDArray[np.float32]:
    """Vectors of all captions, [N, D]."""
    tokenizer, rows = Tokenizer(spec), []
    for start in range(0, len(sentences), BATCH):
        tokens = tokenizer(sentences[start : start + BATCH])
        rows.append(session.encode_texts(tokens.ids, tokens.mask))
    return np.concatenate(rows)


def main() -> None:
    """Encode everything with every session and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--limit', type=int, help='photographs of each set; all by default')
    parser.add_argument('--model', default=str(ROOT / 'models' / 'clip-mini'))
    parser.add_argument('--cache', type=Path, default=Path('~/.cache/clipflow'))
    given = parser.parse_args()
    spec = load_spec(given.model)
    names, pixels = [], []
    for name, blob in track(list(photographs(given.data, given.limit)), 'decoding'):
        names.append(name)
        pixels.append(prepare(decode(blob, 100_000_000), spec.picture))
    place = {name: row for row, name in enumerate(names)}
    asked = captions(given.data, given.limit)
    right = np.array([place[name] for _, name in asked])
    reference: Any = None
    print('| session | photographs: worst, mean cosine | captions: worst, mean cosine | recall@5 (change) |')
    print('|---|---|---|---|')
    for way in WAYS:
        runtime, precision = way.split()
        if runtime != 'torch' and runtime not in this_machine().packages:
            continue
        session = load(runtime, spec, Options('cpu', precision, 2, False, given.cache))
        found = images(session, np.stack(pixels), way), texts(session, spec, [caption for caption, _ in asked])
        session.close()
        scores = found[1] @ found[0].T
        ranks = (scores > scores[np.arange(len(right)), right][:, None]).sum(axis=1)
        recall = float((ranks < 5).mean())
        reference = reference or (*found, recall)
        picture, text = (closeness(one, other) for one, other in zip(found, reference[:2], strict=True))
        cells = f'{picture.worst:.5f}, {picture.mean:.5f} | {text.worst:.5f}, {text.mean:.5f}'
        print(f'| {way} | {cells} | {recall:.4f} ({recall - reference[2]:+.4f}) |')


if __name__ == '__main__':
    main()

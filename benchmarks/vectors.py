"""Vectors with the geometry of a real model, at any size, for the benchmarks of the index.

Photographs of `shared/data` (about 15,000) and flickr8k's captions (5,745) are encoded once by clip-mini and kept. A
larger collection is made of them: each vector is a real one plus half the difference of two other real ones, of unit
length. So clusters, the anisotropy of CLIP and the gap between texts and pictures stay. Queries are real captions.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from clipflow import ROOT
from clipflow.pictures import decode, prepare
from clipflow.sessions.base import Options
from clipflow.sessions.registry import load
from clipflow.tokens import Tokenizer
from clipflow.weights import load_spec
from quality import SETS

DATA = ROOT.parent / 'shared' / 'data'
CACHE = Path('~/.cache/clipflow/benchmarks').expanduser()
_BATCH = 32


def real(data: Path = DATA) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of the photographs and of the captions, [N, D] and [M, D]."""
    file = CACHE / 'clip-mini.npz'
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        photographs, captions = _encoded(data)
        np.savez(file, photographs=photographs, captions=captions)
    found = np.load(file)
    return found['photographs'], found['captions']


def _encoded(data: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    spec = load_spec(str(ROOT / 'models' / 'clip-mini'))
    session = load('torch', spec, Options('cpu', 'float32', 2, False, CACHE))
    blobs = []
    for folder, archive in (*SETS, ('tiny-imagenet', 'images.zip')):
        with zipfile.ZipFile(data / folder / archive) as file:
            blobs += [file.read(name) for name in sorted(file.namelist())]
    photographs = []
    for start in track(range(0, len(blobs), _BATCH), 'encoding photographs'):
        pixels = [prepare(decode(blob, 100_000_000), spec.picture) for blob in blobs[start : start + _BATCH]]
        photographs.append(session.encode_images(np.stack(pixels)))
    lines = (data / 'flickr8k' / 'captions.jsonl').read_text().splitlines()
    sentences = [sentence for line in lines for sentence in json.loads(line)['captions']][:5745]
    tokenizer, captions = Tokenizer(spec), []
    for start in track(range(0, len(sentences), _BATCH), 'encoding captions'):
        tokens = tokenizer(sentences[start : start + _BATCH])
        captions.append(session.encode_texts(tokens.ids, tokens.mask))
    session.close()
    return np.concatenate(photographs), np.concatenate(captions)


def widened(rows: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """[N, D] in a space of more dimensions, turned at random: every cosine stays; a search costs what that costs."""
    if dimension == rows.shape[1]:
        return rows
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(dimension, rows.shape[1])))
    wide: NDArray[np.float32] = (rows @ axes.T).astype(np.float32)
    return wide


def made(count: int, photographs: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """[count, D]: the real ones first, then made ones."""
    rng = np.random.default_rng(seed)
    rows = np.empty((count, photographs.shape[1]), dtype=np.float32)
    rows[: len(photographs)] = photographs[:count]
    for start in range(len(photographs), count, 50_000):
        size = min(50_000, count - start)
        one, two, three = (photographs[rng.integers(0, len(photographs), size)] for _ in range(3))
        some = one + 0.5 * (two - three)
        rows[start : start + size] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return rows

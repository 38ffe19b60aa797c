"""Does anything get lost on the way? The same photographs through the service and through the bare model.

    python benchmarks/quality.py [--data DIR] [--limit N] [--precision float32]

Indexes flickr8k, unsplash and human-action (about 7,100 photographs) through the Flow, then measures text-to-image
recall of flickr8k's test captions against all of them, and zero-shot top-1 on human-action's val part, both through
the service; then the same with transformers' own processor and model in one process. The differences are to stay
within 0.002 in float32.
"""

import argparse
import csv
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from docarray import Document, DocumentArray
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from clipflow import ROOT
from clipflow_client import Client
from setups import LocalService

SETS = (
    ('flickr8k', 'images.zip'),
    ('unsplash', 'photos.zip'),
    ('unsplash', 'labelled.zip'),
    ('human-action', 'images.zip'),
)
TEMPLATE = 'a photo of a person {}'
PLACES = (1, 5, 10)


def photographs(data: Path, limit: int | None) -> Iterator[tuple[str, bytes]]:
    """Names (set/file) and encoded pictures, each name once."""
    seen: set[str] = set()
    for folder, archive in SETS:
        with zipfile.ZipFile(data / folder / archive) as file:
            for member in sorted(file.namelist())[:limit]:
                name = f'{folder}/{member}'
                if name not in seen:
                    seen.add(name)
                    yield name, file.read(member)


@cache
def indexed(data: Path, limit: int | None) -> frozenset[str]:
    """Names of all photographs."""
    return frozenset(name for name, _ in photographs(data, limit))


def captions(data: Path, limit: int | None) -> list[tuple[str, str]]:
    """(caption, name of its photograph) of flickr8k's test part, as far as the photograph is indexed."""
    lines = (data / 'flickr8k' / 'captions.jsonl').read_text(encoding='utf-8').splitlines()
    rows = [row for row in map(json.loads, lines) if row['image'] and row['split'] == 'test']
    found = [(caption, f'flickr8k/{row["file"]}') for row in rows for caption in row['captions']]
    return [item for item in found if item[1] in indexed(data, limit)]


def actions(data: Path, limit: int | None) -> list[tuple[str, str]]:
    """(name of the photograph, label) of human-action's val part, as far as the photograph is indexed."""
    with (data / 'human-action' / 'labels.csv').open(encoding='utf-8') as file:
        rows = [row for row in csv.DictReader(file) if row['split'] == 'val']
    found = [(f'human-action/{row["file"]}', row['label'].replace('_', ' ')) for row in rows]
    return [item for item in found if item[0] in indexed(data, limit)]


def recall(ranks: list[int]) -> dict[str, float]:
    """Share of queries whose photograph is among the first 1, 5, 10; a rank counts from 0."""
    return {f'recall@{k}': float(np.mean([rank < k for rank in ranks])) for k in PLACES}


def through_the_service(data: Path, limit: int | None, precision: str) -> dict[str, float]:
    """Index, search and classify over gRPC."""
    with (
        tempfile.TemporaryDirectory() as workspace,
        LocalService(Path(workspace), {'PRECISION': precision}) as service,
        Client(service.grpc) as client,
    ):
        total = sum(1 for _ in photographs(data, limit))
        begun = time.perf_counter()
        items = (Document(id=name, blob=blob) for name, blob in photographs(data, limit))
        outcomes = list(track(client.index_iter(items), 'service: indexing', total))
        seconds = time.perf_counter() - begun
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        assert not failed, failed[:3]
        asked = captions(data, limit)
        ranks = []
        for start in track(range(0, len(asked), 64), 'service: captions'):
            some = asked[start : start + 64]
            found = client.search_many([caption for caption, _ in some], limit=max(PLACES), include=[])
            for (_, name), matches in zip(some, found, strict=True):
                ids = [match.id for match in matches]
                ranks.append(ids.index(name) if name in ids else len(outcomes))
        right = _classified(client, data, limit)
    return {'photographs': len(outcomes), 'photographs/s': len(outcomes) / seconds, **recall(ranks), 'top-1': right}


def _classified(client: Client, data: Path, limit: int | None) -> float:
    wanted = dict(actions(data, limit))
    labels = sorted({label for _, label in actions(data, None)})
    right = []
    with zipfile.ZipFile(data / 'human-action' / 'images.zip') as file:
        names = list(wanted)
        for start in track(range(0, len(names), 32), 'service: classes'):
            some = names[start : start + 32]
            docs = DocumentArray([Document(id=name, blob=file.read(name.partition('/')[2])) for name in some])
            reply = client.post('/classify', docs, {'labels': labels, 'templates': [TEMPLATE]})
            right += [doc.tags['label'] == wanted[doc.id] for doc in reply]
    return float(np.mean(right))


def bare(data: Path, limit: int | None) -> dict[str, float]:
    """The same with transformers alone."""
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    directory = str(ROOT / 'models' / 'clip-mini')
    model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    images: Any = AutoImageProcessor
    processor, tokenizer = images.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)

    def unit(features: Any) -> NDArray[np.float32]:
        return torch.nn.functional.normalize(features.pooler_output, dim=-1).numpy()

    def texts(sentences: list[str]) -> NDArray[np.float32]:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(sentences), 32):
                some = sentences[start : start + 32]
                inputs = tokenizer(some, padding=True, truncation=True, return_tensors='pt')
                rows.append(unit(model.get_text_features(**inputs)))
        return np.concatenate(rows)

    names, rows = [], []
    all_photographs = list(photographs(data, limit))
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in track(range(0, len(all_photographs), 32), 'bare model: photographs'):
            some = all_photographs[start : start + 32]
            pictures = [Image.open(io.BytesIO(blob)).convert('RGB') for _, blob in some]
            rows.append(unit(model.get_image_features(**processor(images=pictures, return_tensors='pt'))))
            names += [name for name, _ in some]
    seconds = time.perf_counter() - begun
    matrix = np.concatenate(rows)
    place = {name: row for row, name in enumerate(names)}
    asked = captions(data, limit)
    scores = texts([caption for caption, _ in asked]) @ matrix.T
    ranks = [int((row > row[place[name]]).sum()) for row, (_, name) in zip(scores, asked, strict=True)]
    labels = sorted({label for _, label in actions(data, None)})
    classes = texts([TEMPLATE.replace('{}', label) for label in labels])
    wanted = [(place[name], label) for name, label in actions(data, limit)]
    guesses = (matrix[[row for row, _ in wanted]] @ classes.T).argmax(axis=1)
    right = [labels[guess] == label for guess, (_, label) in zip(guesses, wanted, strict=True)]
    return {
        'photographs': len(names),
        'photographs/s': len(names) / seconds,
        **recall(ranks),
        'top-1': float(np.mean(right)),
    }


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--limit', type=int, help='photographs of each set; all by default')
    parser.add_argument('--precision', default='float32', help='of the service; the bare model computes in float32')
    given = parser.parse_args()
    served = through_the_service(given.data, given.limit, given.precision)
    direct = bare(given.data, given.limit)
    print('\n| figure | service | bare model | difference |\n|---|---:|---:|---:|')
    for name, value in served.items():
        shown = '.0f' if name == 'photographs' else '.1f' if name.endswith('/s') else '.4f'
        print(f'| {name} | {value:{shown}} | {direct[name]:{shown}} | {value - direct[name]:+{shown}} |')
    worst = max(abs(served[name] - direct[name]) for name in served if not name.startswith('photographs'))
    if worst > 0.002:
        raise SystemExit(f'the service loses quality: {worst:.4f} is more than 0.002')


if __name__ == '__main__':
    main()

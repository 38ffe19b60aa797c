"""Are our vectors those of the original? Photographs through clipflow, beside features that OpenAI's own code made.

    python benchmarks/original_features.py --model DIR [--data DIR] [--limit N]

For people who have OpenAI's CLIP ViT-B/32 at hand, in the Hugging Face format (`ViT-B-32::openai`, or what
convert_openai.py makes with `--activation quick_gelu`). The 1,000 photographs of unsplash/photos.zip pass the
preprocessor and the float32 session on PyTorch; printed are the cosines to unsplash/clip-vit-b32-features.npy, and how
many photographs are nearest to their own row of it. That file was made from copies of 512 pixels and is kept in
float16. The photographs at hand are smaller copies of those, saved as JPEG again (shorter side 320): cosines near 1,
but below it, are right, and nearly every photograph has itself as its nearest neighbour.
"""

import argparse
import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from docarray import Document
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from clipflow import ROOT
from clipflow.errors import ClipflowError
from clipflow.preparation import Preparation
from clipflow.sessions.base import Options
from clipflow.sessions.torch import load
from clipflow.settings import PreprocessorSettings
from clipflow.weights import ModelSpec, load_spec
from clipflow.wire import error_of

BATCH = 32
VIT_B_32 = {'patch_size': 32, 'image_size': 224, 'hidden_size': 768, 'num_hidden_layers': 12}
DIMENSION = 512


def features(folder: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Ids of the photographs, and their original features as unit vectors, [N, 512], in the same order."""
    with (folder / 'clip-vit-b32-ids.csv').open(encoding='utf-8', newline='') as file:
        ids = [row['photo_id'] for row in csv.DictReader(file)]
    rows = np.load(folder / 'clip-vit-b32-features.npy').astype(np.float64)
    if rows.shape != (len(ids), DIMENSION):
        raise SystemExit(
            f'{folder} has features of shape {rows.shape} for {len(ids)} ids; it is not the data set meant'
        )
    return ids, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def checked(model: str) -> ModelSpec:
    """The specification of a CLIP ViT-B/32; SystemExit if the model is another one."""
    from transformers import AutoConfig

    spec = load_spec(model)
    config: Any = AutoConfig.from_pretrained(str(spec.directory))
    dimension = getattr(config, 'projection_dim', None)
    found = {name: getattr(config.vision_config, name, None) for name in VIT_B_32}
    if spec.family != 'clip' or found != VIT_B_32 or dimension != DIMENSION:
        raise SystemExit(
            f'{model} is not a CLIP ViT-B/32 with {DIMENSION} dimensions, so there is nothing to compare: it is of '
            f'type {spec.family!r}, with {dimension} dimensions and a patch size of {found["patch_size"]}'
        )
    return spec


def pixels(spec: ModelSpec, archive: Path, ids: list[str]) -> Iterator[NDArray[np.uint8]]:
    """The input of the model for each photograph, as the preprocessor makes it."""
    preparation = Preparation(spec, PreprocessorSettings())
    with zipfile.ZipFile(archive) as file:
        for name in ids:
            doc = Document(id=name, blob=file.read(f'{name}.jpg'))
            preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
            if error := error_of(doc):
                raise error
            yield doc.tensor


def encoded(spec: ModelSpec, archive: Path, ids: list[str], threads: int) -> NDArray[np.float64]:
    """Unit vectors of the photographs, [N, 512]."""
    session = load(spec, Options('cpu', 'float32', threads, False, Path('~/.cache/clipflow')))
    prepared, rows = pixels(spec, archive, ids), []
    starts = range(0, len(ids), BATCH)
    for start in track(starts, 'photographs', console=Console(stderr=True), total=len(starts)):
        some = [next(prepared) for _ in ids[start : start + BATCH]]
        rows.append(session.encode_images(np.stack(some)))
    return np.concatenate(rows).astype(np.float64)


def main() -> None:
    """Encode, compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help="OpenAI's CLIP ViT-B/32: a directory, or a name that is known")
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--limit', type=int, help='photographs; all by default')
    parser.add_argument('--threads', type=int, default=2)
    given = parser.parse_args()
    folder = given.data / 'unsplash'
    try:
        spec = checked(given.model)
        ids, originals = features(folder)
        vectors = encoded(spec, folder / 'photos.zip', ids[: given.limit], given.threads)
    except FileNotFoundError as error:
        raise SystemExit(f'{error.filename} is not there; --data names the directory that holds unsplash/') from None
    except ClipflowError as error:
        raise SystemExit(str(error)) from None
    cosines = (vectors * originals[: len(vectors)]).sum(axis=1)
    own = int(((vectors @ originals.T).argmax(axis=1) == np.arange(len(vectors))).sum())
    print('| photographs | worst cosine | median | mean | own nearest neighbour |\n|---:|---:|---:|---:|---:|')
    figures = f'{cosines.min():.5f} | {np.median(cosines):.5f} | {cosines.mean():.5f}'
    print(f'| {len(vectors)} | {figures} | {own} of {len(vectors)} |')
    print(f'\nThe worst: {ids[int(cosines.argmin())]}.jpg. The neighbours are sought among all {len(ids)}.')


if __name__ == '__main__':
    main()

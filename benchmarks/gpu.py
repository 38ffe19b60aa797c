"""What a GPU gives: pictures a second from arrays and from JPEG files, and what is left of it after decoding.

    python benchmarks/gpu.py --model DIR [--photographs ARCHIVE.zip] [--batches 32,128,512] [--rounds 3]

Each way runs in a fresh process, and a round takes all of them in turn. "Bare" is the image tower as PyTorch runs it on
pixels that lie on the device already, called one after the other without waiting: what the card could give in that
number format. For "session" the pixels are in this machine's memory, and the vectors come back to it. For "from JPEG"
all cores decode beside the session. What is not installed is named and left out.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from clipflow import ROOT
from setups import median_seconds, spread

WAYS = (
    'torch float32',
    'torch bfloat16',
    'torch float16',
    'torch float16 compiled',
    'onnx float16',
    'tensorrt float16',
)
BATCHES = '32,128,256,512,1024'
SECONDS = 2.0


def measure(way: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second: of each size of batch, bare and through the session, and from JPEG with the best of them."""
    import numpy as np

    from clipflow.sessions.base import Options
    from clipflow.sessions.registry import load
    from clipflow.weights import load_spec
    from clipflow.work import share_of_cores

    spec = load_spec(given.model)
    runtime, precision, *compiled = way
    threads = share_of_cores(0, 1)
    begun = time.perf_counter()
    session = load(
        runtime, spec, Options(given.device, precision, threads, False, given.cache, compiled=bool(compiled))
    )
    ready = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (max(given.batches), spec.picture.height, spec.picture.width, 3), dtype=np.uint8)
    through = {
        batch: batch / median_seconds(partial(session.encode_images, pixels[:batch]), given.seconds)
        for batch in given.batches
    }
    best = max(through, key=through.__getitem__)
    found: dict[str, Any] = {'ready': ready, 'session': through, 'best': best}
    if runtime == 'torch' and not compiled:
        found['bare'] = _bare(spec, precision, given, pixels)
    decode, blobs = _decoder(spec), _photographs(given.photographs)
    found['decoding'], found['from JPEG'] = (
        _from_files(decode, blobs, encode, best, given.seconds) for encode in (None, session.encode_images)
    )
    return found


def _bare(spec: Any, precision: str, given: argparse.Namespace, pixels: Any) -> dict[int, float]:
    import torch

    from clipflow.sessions.towers import FORMATS, load_towers

    tower = load_towers(spec)[0]
    tower.convert(FORMATS[precision])
    tower = tower.to(given.device)
    wait: Callable[[], None] = torch.cuda.synchronize if given.device == 'cuda' else lambda: None
    rates = {}
    with torch.inference_mode():
        for batch in given.batches:
            on_device = torch.from_numpy(pixels[:batch]).to(given.device)

            def several(on_device: Any = on_device) -> None:
                for _ in range(8):
                    tower(on_device)
                wait()

            rates[batch] = 8 * batch / median_seconds(several, given.seconds)
    return rates


def _photographs(archive: Path | None) -> list[bytes]:
    """Those of an archive; without one, 64 noisy pictures with a longer side of 770."""
    if archive is not None:
        with zipfile.ZipFile(archive) as file:
            return [file.read(name) for name in sorted(file.namelist()) if name.lower().endswith(('.jpg', '.jpeg'))]
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    blobs = []
    for _ in range(64):
        shapes = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((770, 513))
        noisy = np.asarray(shapes, np.int16) + rng.normal(0, 6, (513, 770, 3)).astype(np.int16)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, 'JPEG', quality=85)
        blobs.append(out.getvalue())
    return blobs


def _decoder(spec: Any) -> Callable[[bytes], Any]:
    """A file to the model's input, as the preprocessor does it."""
    from docarray import Document

    from clipflow.preparation import Preparation
    from clipflow.settings import PreprocessorSettings

    preparation = Preparation(spec, PreprocessorSettings())

    def decoded(blob: bytes) -> Any:
        doc = Document(blob=blob)
        preparation.prepare(doc, needs_content=True, trust_embedding=False, thumbnail=False, keep=False)
        return doc.tensor

    return decoded


def _from_files(
    decode: Callable[[bytes], Any],
    blobs: list[bytes],
    encode: Callable[[Any], object] | None,
    batch: int,
    enough: float,
) -> float:
    """Pictures a second that all cores decode, and that are encoded beside it if there is something to do so."""
    import numpy as np

    count, begun = 0, time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for tensors in _ahead(pool, decode, chain.from_iterable(repeat(blobs)), batch):
            if encode is not None:
                encode(np.stack(tensors))
            count += len(tensors)
            if time.perf_counter() - begun >= enough:
                break
        rate = count / (time.perf_counter() - begun)
        pool.shutdown(cancel_futures=True)
    return rate


def _ahead(pool: ThreadPoolExecutor, call: Callable[[bytes], Any], blobs: Iterator[bytes], batch: int) -> Iterator[Any]:
    """Batches of what `call` gives, of which the next two are worked at while one is used."""
    waiting = [[pool.submit(call, blob) for blob in islice(blobs, batch)] for _ in range(2)]
    while True:
        waiting.append([pool.submit(call, blob) for blob in islice(blobs, batch)])
        yield [future.result() for future in waiting.pop(0)]


def main() -> None:
    """Run the rounds, or, called by itself, one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=str(ROOT / 'models' / 'clip-mini'))
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'), help='cpu: only to try this script')
    parser.add_argument('--photographs', type=Path, help='a zip with JPEG files; made pictures without it')
    parser.add_argument('--batches', type=lambda text: [int(part) for part in text.split(',')], default=BATCHES)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=SECONDS, help='of each figure of a round')
    parser.add_argument('--cache', type=Path, default=Path('~/.cache/clipflow').expanduser())
    parser.add_argument('--ways', default=','.join(WAYS), help='a comma-separated part of the default')
    parser.add_argument('--one', nargs='+', metavar='WORD', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    if given.device == 'cuda':
        _check_card()
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.rounds):
        for way in given.ways.split(','):
            command = [sys.executable, '-W', 'ignore', *sys.argv, '--one', *way.split()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f'{way}: {done.stderr.strip().splitlines()[-1]}', file=sys.stderr)
            else:
                found.setdefault(way, []).append(json.loads(done.stdout.splitlines()[-1]))
    if not found:
        raise SystemExit(f'nothing ran on {given.device}; what each said is above')
    _print(found, given)


def _check_card() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit('PyTorch sees no CUDA device; is there a driver, and is it the CUDA build of torch?')


def _print(found: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> None:
    batches = [str(batch) for batch in given.batches]
    cores = len(os.sched_getaffinity(0))
    print(f'\n{Path(given.model).name} on {given.device}, {cores} cores; pictures a second, median (range)\n')
    print('| way | ' + ' | '.join(f'batch {batch}' for batch in batches) + ' | ready after s |')
    print('|---|' + '---|' * (len(batches) + 1))
    for way, rounds in found.items():
        ready = statistics.median(one['ready'] for one in rounds)
        for row in ('bare', 'session'):
            if row in rounds[0]:
                cells = [spread([one[row][batch] for one in rounds], ',.0f') for batch in batches]
                print(f'| {way}, {row} | {" | ".join(cells)} | {ready:.1f} |')
    print('\n| way, best batch | decoding alone | from JPEG | of decoding | of the session |\n|---|---|---|---|---|')
    for way, rounds in found.items():
        decoding, files = ([one[name] for one in rounds] for name in ('decoding', 'from JPEG'))
        alone = [one['session'][str(one['best'])] for one in rounds]
        shares = ([part / of for part, of in zip(files, whole, strict=True)] for whole in (decoding, alone))
        cells = [spread(decoding, ',.0f'), spread(files, ',.0f'), *(spread(share, '.2f') for share in shares)]
        print(f'| {way}, {statistics.mode(one["best"] for one in rounds)} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()

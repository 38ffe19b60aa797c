"""How fast each runtime runs a model by itself: pictures and short texts, one at a time and in batches.

    python benchmarks/sessions.py [--model DIR] [--rounds 3] [--threads 2]

Each session runs in a fresh process; a round takes all of them in turn, beginning with float32 on torch, to which the
ratios of that round refer. What is not installed is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clipflow import ROOT
from setups import median_seconds, spread

WAYS = (
    'torch float32',
    'torch float32 compiled',
    'torch bfloat16',
    'onnx float32',
    'onnx int8',
    'openvino float32',
    'openvino bfloat16',
)
CASES = ('1 picture', '16 pictures', '1 text', '64 texts')
SENTENCE = 'a photo of a dog in the snow'
SECONDS = 1.5


def measure(way: list[str], model: str, threads: int, cache: Path) -> dict[str, float]:
    """Seconds of one call in each case (median), and until the session was ready."""
    from importlib import import_module

    import numpy as np

    from clipflow.sessions.base import Options
    from clipflow.tokens import Tokenizer
    from clipflow.weights import load_spec

    spec = load_spec(model)
    begun = time.perf_counter()
    runtime, precision, *compiled = way
    options = Options('cpu', precision, threads, False, cache, compiled=bool(compiled))
    session = import_module(f'clipflow.sessions.{runtime}').load(spec, options)
    ready = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, spec.picture.height, spec.picture.width, 3), dtype=np.uint8)
    tokens = Tokenizer(spec)([SENTENCE] * 64)
    calls: dict[str, Callable[[], object]] = {
        '1 picture': lambda: session.encode_images(pixels[:1]),
        '16 pictures': lambda: session.encode_images(pixels),
        '1 text': lambda: session.encode_texts(tokens.ids[:1], tokens.mask[:1]),
        '64 texts': lambda: session.encode_texts(tokens.ids, tokens.mask),
    }
    return {name: median_seconds(call, SECONDS) for name, call in calls.items()} | {'ready': ready}


def main() -> None:
    """Run the rounds, or, called by itself, one session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=str(ROOT / 'models' / 'clip-mini'))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', type=Path, default=Path('~/.cache/clipflow'))
    parser.add_argument('--ways', default=','.join(WAYS), help='a comma-separated part of the default')
    parser.add_argument('--one', nargs='+', metavar='WORD', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.model, given.threads, given.cache)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.rounds):
        for way in given.ways.split(','):
            command = [sys.executable, '-W', 'ignore', __file__, '--model', given.model, '--cache', str(given.cache)]
            command += ['--threads', str(given.threads), '--one', *way.split()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f'{way}: {done.stderr.strip().splitlines()[-1]}', file=sys.stderr)
            else:
                found.setdefault(way, []).append(json.loads(done.stdout))
    print(f'\n{Path(given.model).name}, {given.threads} threads; ms of a call, and times as fast as torch float32\n')
    print('| session | ' + ' | '.join(CASES) + ' | ready after s |\n|---|' + '---|' * (len(CASES) + 1))
    for way, rounds in found.items():
        cells = []
        for case in CASES:
            milliseconds = statistics.median(one[case] for one in rounds) * 1000
            ratios = [base[case] / one[case] for base, one in zip(found['torch float32'], rounds, strict=False)]
            cells.append(f'{milliseconds:.1f}; {spread(ratios, ".2f")}')
        print(f'| {way} | ' + ' | '.join(cells) + f' | {statistics.median(one["ready"] for one in rounds):.1f} |')


if __name__ == '__main__':
    main()

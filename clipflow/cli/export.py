"""`clipflow export`: a model in the form that another runtime needs."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add `export`."""
    command = commands.add_parser(
        'export',
        help='write a model for another runtime',
        description='onnx: write both towers of the model (CLIPFLOW_MODEL) into the cache, where the runtimes "onnx" '
        'and "openvino" look for them, and measure how close each is to PyTorch. A service does this by itself at its '
        'first start. triton: write a model repository for a Triton server, which the runtime "kserve" calls.',
    )
    command.add_argument('format', choices=('onnx', 'triton'))
    command.add_argument(
        '--out', type=Path, default=Path('triton'), help='triton: the model repository (default: triton)'
    )
    command.add_argument('--gpu', action='store_true', help='triton: run on GPUs')
    command.add_argument('--instances', type=int, default=1, help='triton: copies of each tower that run at once')
    command.add_argument('--model', help='a directory or a name (default: CLIPFLOW_MODEL)')
    command.add_argument('--cache', type=Path, help='where to (default: CLIPFLOW_CACHE)')
    command.add_argument(
        '--precision',
        choices=('float32', 'float16', 'int8'),
        default='float32',
        help='of the files; those in float32 are always written too',
    )
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Export, compare, and print where the files are and how close they come."""
    from clipflow.sessions.base import Options
    from clipflow.sessions.export import exported, put
    from clipflow.sessions.parity import compare
    from clipflow.sessions.registry import load, this_machine
    from clipflow.sessions.triton import Serving, write_repository
    from clipflow.settings import EncoderSettings
    from clipflow.weights import load_spec

    settings = EncoderSettings.load(**({'model': given.model} if given.model else {}))
    spec = load_spec(given.model or settings.model)
    cache = given.cache or settings.cache
    directory = exported(spec, cache, given.precision)
    if given.format == 'triton':
        session = load('torch', spec, Options('cpu', 'float32', 1, False, cache))
        serving = Serving(given.precision, given.gpu, given.instances)
        folders = write_repository(spec, cache, given.out, session.dimension, serving)
        print(f'{spec.name}: {", ".join(str(folder) for folder in folders)}')
        return 0
    print(f'{spec.name}: {directory}')
    installed = this_machine().packages
    ways = [('onnx', 'float32'), ('openvino', 'float32'), ('openvino', 'bfloat16')]
    ways += [('onnx', given.precision)] if given.precision != 'float32' else []
    reference = load('torch', spec, Options('cpu', 'float32', 1, False, cache))
    report = {}
    for runtime, precision in ways:
        if runtime in installed:
            session = load(runtime, spec, Options('cpu', precision, 1, False, cache))
            found = compare(spec, session, reference)
            report[f'{runtime} {precision}'] = {tower: asdict(one) for tower, one in found.items()}
            shown = ', '.join(f'{tower} {one.worst:.6f} (mean {one.mean:.6f})' for tower, one in found.items())
            print(f'  {runtime} {precision}: cosine to float32 torch at worst: {shown}')
    put(directory / 'parity.json', (json.dumps(report, indent=2) + '\n').encode())
    return 0

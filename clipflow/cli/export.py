"""`clipflow export`: a model in the form that another runtime needs, or a Flow in the form that Kubernetes needs."""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow import ROOT

if TYPE_CHECKING:
    from clipflow.sessions.base import Session
    from clipflow.weights import ModelSpec


def add_commands(commands: Any) -> None:
    """Add `export`."""
    command = commands.add_parser(
        'export',
        help='write a model for another runtime, or manifests of a Flow',
        description='onnx: write both towers of the model (CLIPFLOW_MODEL) into the cache, where the runtimes "onnx" '
        'and "openvino" look for them, and measure how close each is to PyTorch. A service does this by itself at its '
        'first start. tensorrt: build the engines of the runtime "tensorrt" for the GPU of this machine, which takes '
        'minutes, and measure them. triton: write a model repository for a Triton server, which the runtime "kserve" '
        'calls. k8s: write what has to agree between a Flow and its Kubernetes manifests: names, ports, shards and '
        'replicas.',
    )
    command.add_argument('format', choices=('onnx', 'tensorrt', 'triton', 'k8s'))
    command.add_argument(
        '--out', type=Path, help='triton: the model repository (default: triton); k8s: the component (k8s/base/flow)'
    )
    command.add_argument('--flow', type=Path, default=ROOT / 'flow.yml', help='k8s: the Flow (default: flow.yml)')
    command.add_argument(
        '--base',
        type=Path,
        default=ROOT / 'k8s' / 'base',
        help='k8s: the manifests that it belongs to (default: k8s/base)',
    )
    command.add_argument('--gpu', action='store_true', help='triton: run on GPUs')
    command.add_argument('--instances', type=_positive, default=1, help='triton: copies of each tower that run at once')
    command.add_argument('--model', help='a directory or a name (default: CLIPFLOW_MODEL)')
    command.add_argument('--cache', type=Path, help='where to (default: CLIPFLOW_CACHE)')
    command.add_argument(
        '--precision',
        choices=('float32', 'float16', 'int8'),
        help='of the files; those in float32 are always written too (default: float32, for tensorrt float16)',
    )
    command.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is no number of 1 or more')
    return int(text)


def run(given: argparse.Namespace) -> int:
    """Export, compare, and print where the files are and how close they come."""
    if given.format == 'k8s':
        return _write_component(given.flow, given.out or given.base / 'flow', given.base)
    from clipflow.errors import InvalidParameter
    from clipflow.sessions.base import Options
    from clipflow.sessions.export import exported, locked, put
    from clipflow.sessions.machine import this_machine
    from clipflow.sessions.registry import load
    from clipflow.sessions.triton import Serving, write_repository
    from clipflow.settings import EncoderSettings
    from clipflow.weights import load_spec

    settings = EncoderSettings.load(**({'model': given.model} if given.model else {}))
    spec = load_spec(given.model or settings.model)
    cache = given.cache or settings.cache
    if given.format == 'tensorrt':
        return _build_engines(spec, given.precision or 'float16', cache)
    precision = given.precision or 'float32'
    if given.format == 'triton' and given.gpu and precision == 'int8':
        raise InvalidParameter('int8 is for CPUs; with --gpu take --precision float16')
    directory = exported(spec, cache, precision)
    if given.format == 'triton':
        # Of int8 it tells which tower is not close enough.
        runtime, number = ('onnx', 'int8') if precision == 'int8' else ('torch', 'float32')
        session = load(runtime, spec, Options('cpu', number, 1, False, cache))
        exact = session.description.get('float32_towers', '')
        if exact:
            print(f'the {exact.replace(", ", " and the ")} tower stays in float32, from which int8 takes it too far')
        serving = Serving(precision, given.gpu, given.instances, frozenset(exact.split(', ')))
        folders = write_repository(spec, cache, given.out or Path('triton'), session.dimension, serving)
        print(f'{spec.name}: {", ".join(str(folder) for folder in folders)}')
        return 0
    print(f'{spec.name}: {directory}')
    installed = this_machine().packages
    ways = [('onnx', 'float32'), ('openvino', 'float32'), ('openvino', 'bfloat16')]
    ways += [('onnx', precision)] if precision != 'float32' else []
    reference = load('torch', spec, Options('cpu', 'float32', 1, False, cache))
    report: dict[str, Any] = {}
    for runtime, number in ways:
        if runtime in installed:
            session = load(runtime, spec, Options('cpu', number, 1, False, cache))
            report |= _closeness(f'{runtime} {number}', spec, session, reference)
    with locked(directory):
        put(directory / 'parity.json', (json.dumps(report, indent=2) + '\n').encode())
    return 0


def _write_component(path: Path, out: Path, base: Path) -> int:
    from clipflow.deploy.kubernetes import component, write
    from clipflow.flows import Flow

    shown = [_from_checkout(one) for one in (path, out)]
    files = component(Flow.read(path), out, base, 'clipflow export k8s --flow {} --out {}'.format(*shown))
    write(files, out)
    print(f'{out}: {len(files)} files')
    return 0


def _from_checkout(path: Path) -> str:
    return str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else str(path)


def _build_engines(spec: 'ModelSpec', precision: str, cache: Path) -> int:
    from clipflow.sessions.base import Options
    from clipflow.sessions.export import exported, locked, put
    from clipflow.sessions.registry import load

    # The log tells how far a build is.
    logging.basicConfig(format='%(message)s')
    logging.getLogger('clipflow').setLevel(logging.INFO)
    session = load('tensorrt', spec, Options('cuda', precision, 1, False, cache))
    directory = exported(spec, cache, precision) / 'tensorrt'
    print(f'{spec.name}: {directory}')
    reference = load('torch', spec, Options('cpu', 'float32', 1, False, cache))
    report = _closeness(f'tensorrt {precision}', spec, session, reference)
    with locked(directory):
        put(directory / 'parity.json', (json.dumps(report, indent=2) + '\n').encode())
    return 0


def _closeness(name: str, spec: 'ModelSpec', session: 'Session', reference: 'Session') -> dict[str, Any]:
    """Print how close a session comes, and return it by its name."""
    from clipflow.sessions.parity import compare

    found = compare(spec, session, reference)
    shown = ', '.join(f'{tower} {one.worst:.6f} (mean {one.mean:.6f})' for tower, one in found.items())
    print(f'  {name}: cosine to float32 torch at worst: {shown}')
    return {name: {tower: asdict(one) for tower, one in found.items()}}

"""`clipflow calibrate`: what a score means as a probability."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import warn

if TYPE_CHECKING:
    from clipflow.relevance.calibrate import Calibrated

_SHOWN = 5


def add_commands(commands: Any) -> None:
    """Add `calibrate`."""
    command = commands.add_parser(
        'calibrate',
        help='learn what a score means as a probability',
        description='Learn from captioned pictures how probable it is that a result with some score is what was asked '
        'for, and say how well that holds for captions that were held out. The ranker takes the file as '
        'CLIPFLOW_CALIBRATION. What was embedded is kept in CLIPFLOW_CACHE, so an interrupted run goes on where it '
        'stopped.',
    )
    command.add_argument('captions', type=Path, help='captions as .jsonl, .csv or .json')
    command.add_argument(
        '--images',
        type=Path,
        metavar='P',
        help='folder or zip file of the pictures (images.zip or images/ beside them)',
    )
    command.add_argument('--split', metavar='NAME', help='only the entries of this split')
    command.add_argument('--model', help='a directory or a name (CLIPFLOW_MODEL)')
    command.add_argument(
        '--out', type=Path, default=Path('calibration.json'), metavar='FILE', help='(calibration.json)'
    )
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Fit, measure, write, and print the reliability."""
    from clipflow.cli.collection import progress
    from clipflow.relevance.calibrate import calibrate
    from clipflow.relevance.captions import read_captions
    from clipflow.settings import EncoderSettings
    from clipflow.weights import load_spec

    encoding = EncoderSettings.load()
    chosen = read_captions(given.captions, given.images, given.split)
    found = calibrate(load_spec(given.model or encoding.model), encoding, chosen, progress)
    found.calibration.write(given.out)
    _print(found)
    for fault in found.faults[:_SHOWN]:
        warn(f'{fault.name}: {fault.reason}')
    if found.faults:
        warn(f'{len(found.faults):,} faults in all were left out')
    print(
        f'{given.out} is for the model {found.calibration.name}; start the ranker with CLIPFLOW_CALIBRATION={given.out}'
    )
    return 0


def _print(found: 'Calibrated') -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table('probability', 'results', 'mean probability', 'share right', box=box.SIMPLE_HEAD)
    for each in found.bins:
        span = f'{each.low:.1f} to {each.high:.1f}'
        table.add_row(span, f'{each.count:,}', f'{each.probability:.3f}', f'{each.right:.3f}')
    Console().print(table)
    made = found.calibration
    print(
        f'expected calibration error {made.error:.4f}, on results of the held-out half of {made.captions:,} captions '
        f'of {made.pictures:,} pictures'
    )

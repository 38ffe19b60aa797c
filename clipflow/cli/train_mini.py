"""`clipflow train-mini`: the training of a small model such as the bundled one."""

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add `train-mini`."""
    command = commands.add_parser(
        'train-mini',
        help='train a small model such as the bundled one',
        description='Train the projections of a small model on features of its frozen towers, from one configuration '
        'file (models/clip-mini.yml is one). Features are kept in the folder. Interrupted, the same command goes on '
        'where it stopped; what is already computed is not computed again.',
    )
    command.add_argument('config', type=Path, help='YAML file, such as models/clip-mini.yml')
    command.add_argument('--data', type=Path, required=True, help='folder that the paths in the file are relative to')
    command.add_argument('--out', type=Path, default=Path('runs/mini'), help='the folder of the training (runs/mini)')
    command.add_argument(
        '--check',
        action='store_true',
        help='check the file, the tables, the start, the classifier and the folder; decode no picture, train nothing',
    )
    command.add_argument('--quiet', action='store_true', help='no progress bar')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Check, train, and print the figures on the validation data; 130 after Ctrl-C."""
    from clipflow.cli.service import warn
    from clipflow.tuning.mini import MODEL, Training
    from clipflow.tuning.mini_config import MiniConfig

    training = Training(MiniConfig.load(given.config, given.data), given.out, not given.quiet)
    if given.check:
        data = training.data
        for fault in data.faults[:5]:
            warn(f'{fault.name}: {fault.reason}')
        print(
            f'{given.config} can be trained: {len(data.learned_from):,} of {len(data.pictures):,} pictures to learn '
            f'from, {len(data.texts):,} texts, {len(data.faults):,} entries left out'
        )
        return 0
    try:
        before, after = training.run()
    except KeyboardInterrupt:
        warn('interrupted; the same command goes on where this one stopped')
        return 130
    print('| on the validation data | before | after |\n|---|---:|---:|')
    for title, value in before.figures.items():
        print(f'| {title} | {value:.3f} | {after.figures[title]:.3f} |')
    print(f'the model is in {given.out / MODEL}')
    return 0

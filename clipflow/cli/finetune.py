"""`clipflow finetune`: a checkpoint that learns from captions, labels or clicks."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipflow.errors import InvalidParameter

_SHOWN = 5


def add_commands(commands: Any) -> None:
    """Add `finetune`."""
    command = commands.add_parser(
        'finetune',
        help='train a model on your captions, labels or clicks',
        description='Train a checkpoint on pictures with captions, on labelled pictures, or on what people clicked. '
        'The result is a folder with the model, its card, curves and figures before and after, of the old task too. '
        'All options are checked first. Interrupted, the same command goes on where it stopped. '
        'Several processes share the work under torchrun.',
    )

    def option(name: str, explained: str, **kind: Any) -> None:
        command.add_argument(name, help=explained, **kind)

    option('--config', 'YAML with any of the options; those of the command line win', type=Path, metavar='FILE')
    option('--model', 'the start: a directory or a name', metavar='MODEL')
    option('--out', 'the run folder (runs/finetune)', metavar='DIR')
    option('--captions', 'pictures with captions: .jsonl, .csv, .tsv or Karpathy .json', metavar='FILE')
    option('--labelled', 'a folder for each class, or a table of labels', metavar='PATH')
    option('--feedback', 'what `clipflow feedback export` wrote', metavar='FILE')
    option('--images', 'folder or zip file of the pictures', metavar='PATH')
    option('--splits', 'of the data: to learn from, to choose on, to report on', metavar='A,B[,C]')
    option('--old-task', 'captions or labelled pictures on which nothing may be forgotten', metavar='PATH')
    option('--old-images', 'folder or zip file of its pictures', metavar='PATH')
    option('--old-split', 'only this split of the old task', metavar='A')
    option('--strategy', 'full, last-n-layers, projection or lora (full)', metavar='NAME')
    option('--towers', 'both, image or text (both)', metavar='NAME')
    option('--loss', 'clip, siglip, triplet or ranking (clip)', metavar='NAME')
    option('--learning-rate', 'by default that of the strategy', metavar='X')
    option('--epochs', 'passes over the pictures (5)', metavar='N')
    option('--batch', 'pairs that are compared with each other (64)', metavar='N')
    option('--seed', 'of everything that is drawn (0)', metavar='N')
    option('--set', 'any other option of the YAML file', action='append', default=[], metavar='NAME=VALUE')
    option('--check', 'check all options and data, and train nothing', action='store_true')
    option('--quiet', 'no progress bar', action='store_true')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Check, train, and print the table; 130 after Ctrl-C."""
    from clipflow.cli.service import warn
    from clipflow.tuning.config import TuneConfig

    config = TuneConfig.load(given.config, _options(given))
    try:
        return _run(config, given)
    except KeyboardInterrupt:
        warn('interrupted; the same command goes on where this one stopped')
        return 130


def _options(given: argparse.Namespace) -> dict[str, Any]:
    import yaml

    own = {'config', 'set', 'check', 'quiet', 'run', 'command'}
    found = {name: value for name, value in vars(given).items() if name not in own and value is not None}
    for pair in given.set:
        name, equals, value = pair.partition('=')
        if not equals:
            raise InvalidParameter(f'--set takes NAME=VALUE, such as --set warmup=0.2; {pair!r} is none')
        try:
            found[name.strip().replace('-', '_')] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name.strip().replace('-', '_')] = value
    return found


def _warn_of(faults: Sequence[Any]) -> None:
    from clipflow.cli.service import warn

    for fault in faults[:_SHOWN]:
        warn(f'left out: {fault.name}: {fault.reason}')
    if len(faults) > _SHOWN:
        warn(f'left out: {len(faults) - _SHOWN:,} more')


def _run(config: Any, given: argparse.Namespace) -> int:
    from clipflow.tuning import folder
    from clipflow.tuning.journal import Journal
    from clipflow.tuning.parallel import joined, processes
    from clipflow.tuning.run import Run, check

    if (done := folder.report(config.out)) is not None:
        folder.check(config)
        print(folder.table(done))
        print(f'\nthe run in {config.out} is finished; the model is in {config.out / folder.MODEL}')
        return 0
    ready = check(config, processes())
    if given.check:
        _warn_of(ready.data.faults)
        print(
            f'all is well: {len(ready.data.examples):,} pairs, {ready.device}, {ready.precision}; '
            f'{len(ready.data.faults):,} entries left out'
        )
        return 0
    with joined(ready.device.type) as group, ExitStack() as held:
        first = group.rank == 0
        if first:
            held.enter_context(folder.claimed(config))
        group.wait()
        journal = Journal(config.out, first, not given.quiet)
        work = Run(ready, group, journal)
        try:
            found = work.finetune()
            if first:
                folder.finish(config, found, journal)
        finally:
            work.close()
            journal.close()
    if first:
        _warn_of(work.faults)
        print(folder.table(found))
        print(f'\nthe model is in {config.out / folder.MODEL}, its card in {config.out / folder.CARD}')
    return 0

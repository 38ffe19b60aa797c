"""`clipflow backup` and `clipflow restore`."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import warn

if TYPE_CHECKING:
    from clipflow.backup.contents import Moved
    from clipflow.backup.target import Target


def add_commands(commands: Any) -> None:
    """Add them."""
    place = 'a folder, or s3://bucket/prefix'
    backup = commands.add_parser(
        'backup',
        help='back up an index, while it serves',
        description='Back up documents, vectors, thumbnails, feedback and heads of the ranker into TARGET, under a '
        'name with the time. A service may run, and does not wait. What is acknowledged before is in it.',
    )
    backup.add_argument('target', metavar='TARGET', help=place)
    backup.add_argument('--keep', type=int, metavar='N', help='remove all but the latest N of this workspace')
    backup.add_argument('--list', action='store_true', help='show what there is in TARGET instead')
    backup.set_defaults(run=_backup)
    restore = commands.add_parser(
        'restore',
        help='put a backup back',
        description='Put a backup in the place of what is in the workspace. It is compared with its checksums before '
        'anything changes. No service may have the workspace open.',
    )
    restore.add_argument(
        'source', metavar='SOURCE', help=f'{place}: a backup, or the target, of which it is the latest'
    )
    restore.add_argument('--force', action='store_true', help='replace what is in the workspace')
    restore.set_defaults(run=_restore)
    for command in (backup, restore):
        command.add_argument('--workspace', type=Path, metavar='DIR', help='instead of CLIPFLOW_WORKSPACE')


def _backup(given: argparse.Namespace) -> int:
    from clipflow.backup.take import keep, take
    from clipflow.backup.target import Target
    from clipflow.errors import InvalidParameter

    target = Target(given.target)
    if given.list:
        return _list(target)
    if given.keep is not None and given.keep < 1:
        raise InvalidParameter('--keep must be 1 or more')
    with _progress('backing up') as begun:
        taken = take(_workspace(given), target, begun)
    print(f'{target.at(taken.name).address}: {taken.manifest.documents:,} documents, {_size(taken.manifest.size)}')
    if given.keep is not None:
        for name in keep(target, taken, given.keep):
            print(f'removed {name}')
    return 0


def _list(target: 'Target') -> int:
    """All of them; 1 if one cannot be read."""
    from clipflow.backup.manifest import Manifest
    from clipflow.backup.take import complete
    from clipflow.errors import ClipflowError

    code, found = 0, complete(target)
    if not found:
        warn(f'there is no complete backup in {target.address}')
    for name, data in found.items():
        try:
            told = Manifest.parse(data, target.at(name).address)
        except ClipflowError as error:
            warn(error.message)
            code = 1
            continue
        part = '' if len(told.shards) == told.of else f', shard {", ".join(map(str, told.shards))} of {told.of}'
        print(f'{name}  {told.documents:,} documents, {_size(told.size)}, {told.model.name or "no model"}{part}')
    return code


def _restore(given: argparse.Namespace) -> int:
    from clipflow.backup.restore import found, restore
    from clipflow.settings import IndexerSettings
    from clipflow.weights import load_spec

    backup, told = found(given.source)
    spec = load_spec(IndexerSettings.load().model)
    workspace = _workspace(given)
    with _progress('restoring') as begun:
        restore(workspace, backup, told, spec.fingerprint, begun, force=given.force)
    print(f'{told.documents:,} documents of {told.time:%Y-%m-%d %H:%M:%S} UTC are in {workspace}')
    if told.of > 1:
        print(f'they are {len(told.shards)} of {told.of} shards')
    return 0


def _workspace(given: argparse.Namespace) -> Path:
    from clipflow.settings import IndexerSettings

    return Path(given.workspace.absolute() if given.workspace else IndexerSettings.load().workspace)


def _size(count: int) -> str:
    return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


@contextmanager
def _progress(title: str) -> 'Iterator[Callable[[int], Moved]]':
    """A bar with rate and remaining time, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def begun(total: int) -> 'Moved':
            task = bar.add_task(title, total=total)
            return lambda count: bar.update(task, advance=count)

        yield begun

"""`clipflow index`: walk folders, send what is new or has changed, say what failed and why."""

import argparse
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import add_address, opened, warn
from clipflow.files import PICTURES, located

if TYPE_CHECKING:
    from docarray import Document

    from clipflow_client import Client, Outcome

_FILES_PER_CHECK = 512
_MAX_ID_BYTES = 512

Fail = Callable[[Path, str], None]
"""Takes a file or folder that cannot be read, and why."""


def add_commands(commands: Any) -> None:
    """Add `index`."""
    command = commands.add_parser(
        'index',
        help='store pictures so that they can be found',
        description='Walk folders and store their pictures. Files that are stored already and have not changed are '
        'skipped, so an interrupted run goes on where it stopped. Links to folders are not followed.',
    )
    command.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='a folder, or a file')
    command.add_argument('--force', action='store_true', help='store unchanged files again')
    command.add_argument('--quiet', action='store_true', help='no progress bar')
    add_address(command)
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Index and print a summary; 1 if any file failed."""
    tally = Tally()
    files = list(dict.fromkeys(itertools.chain.from_iterable(walk(path, tally.fail) for path in given.paths)))
    with opened(given) as client:
        try:
            _index(client, files, tally, force=given.force, quiet=given.quiet)
        except KeyboardInterrupt:
            warn('interrupted; the same command goes on where this one stopped')
            return 130
        finally:
            for name, reason in tally.failed:
                warn(f'{name}: {reason}')
            print(tally.summary())
    return 1 if tally.failed else 0


class Tally:
    """What has become of the files so far."""

    def __init__(self) -> None:
        self.stored = 0
        self.unchanged = 0
        self.failed: list[tuple[str, str]] = []

    def take(self, outcome: 'Outcome') -> None:
        """Count one outcome."""
        if outcome.error is None:
            self.stored += 1
        else:
            self.failed.append((outcome.id, outcome.error.message.removeprefix(f'{outcome.id!r}: ')))

    def fail(self, path: Path, reason: str) -> None:
        """Count one that was not sent."""
        self.failed.append((str(path), reason))

    def summary(self) -> str:
        """One line."""
        return f'{self.stored} stored, {self.unchanged} unchanged, {len(self.failed)} failed'


def walk(path: Path, fail: Fail) -> Iterator[Path]:
    """The file itself, or the pictures below a folder by their suffix, in order, without hidden ones."""
    path = located(path)
    if not os.path.isdir(path):  # a path where nothing is, too: it fails when it is read
        yield path
        return

    def unread(error: OSError) -> None:
        fail(Path(error.filename), f'the folder cannot be read: {error.strerror}')

    for folder, folders, names in os.walk(path, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(names):
            if not name.startswith('.') and Path(name).suffix[1:].lower() in PICTURES:
                found = Path(folder, name)
                if os.path.exists(found) and not os.path.isfile(found):
                    fail(found, 'it is no file')  # a pipe would be waited for
                else:
                    yield found


def identifier(path: Path) -> str:
    """The id of a file: its absolute path; a path longer than an id may be is shortened to a hash and its end."""
    name = str(path)
    if len(name.encode('utf-8', 'surrogateescape')) <= _MAX_ID_BYTES and all(map(_is_shown, name)):
        return name
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    return f'{digest}:{os.fsencode(path)[-200:].decode("utf-8", "replace")}'


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == 'Zs'  # spaces, which are more than ' '


def _index(client: 'Client', files: list[Path], tally: Tally, *, force: bool, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn('indexing'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[rate]} files/s'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[failed]}'),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet, speed_estimate_period=60) as progress:
        task = progress.add_task('index', total=len(files), rate='-', failed='')

        def advance(count: int = 1) -> None:
            speed = progress.tasks[0].speed
            failed = f'{len(tally.failed)} failed' if tally.failed else ''
            progress.update(task, advance=count, rate='-' if speed is None else f'{speed:.1f}', failed=failed)

        def fail(path: Path, reason: str) -> None:
            tally.fail(path, reason)
            advance()

        for start in range(0, len(files), _FILES_PER_CHECK):
            some = files[start : start + _FILES_PER_CHECK]
            changed = some if force else _changed(client, some)
            tally.unchanged += len(some) - len(changed)
            advance(len(some) - len(changed))
            for outcome in client.index_iter(_documents(changed, fail)):
                tally.take(outcome)
                advance()


def _changed(client: 'Client', files: list[Path]) -> list[Path]:
    """The files whose size or time of change is not the one that is stored."""
    stored = client.get([identifier(path) for path in files], include=['tags'])
    return [path for path in files if (name := identifier(path)) not in stored or _differs(path, stored[name].tags)]


def _differs(path: Path, tags: Any) -> bool:
    try:
        found = path.stat()
    except OSError:
        return True
    return bool(tags.get('size') != found.st_size or tags.get('modified') != found.st_mtime)


def _documents(files: Iterable[Path], fail: Fail) -> Iterator['Document']:
    """Read one file after the other."""
    from clipflow.errors import InvalidDocument
    from clipflow_client import document

    for path in files:
        try:
            found = path.stat()  # before it is read: what is written meanwhile is a change
            doc = document(path)
        except OSError as error:
            fail(path, f'cannot be read: {error.strerror}')
            continue
        except InvalidDocument as error:
            fail(path, error.message.removeprefix(f'{path} '))
            continue
        doc.id = identifier(path)
        # A name may hold bytes that are no text.
        filename, folder = (os.fsencode(name).decode('utf-8', 'replace') for name in (path.name, path.parent))
        doc.tags = {'filename': filename, 'folder': folder, 'size': found.st_size, 'modified': found.st_mtime}
        yield doc

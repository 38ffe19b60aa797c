"""`clipflow end2end`: from pictures or URLs to a running service, by the commands that do each step."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli import build, embed, serve
from clipflow.cli.collection import progress
from clipflow.cli.service import warn

if TYPE_CHECKING:
    from clipflow.bulk.fetch.urls import Listed


def add_commands(commands: Any) -> None:
    """Add `end2end`."""
    command = commands.add_parser(
        'end2end',
        help='from pictures, or a list of URLs, to a running service',
        description='Fetch pictures if the input is a list of URLs, then `clipflow embed`, `build` and `serve`. '
        'Interrupted at any point, the same command goes on where it stopped.',
    )

    def option(name: str, explained: str, **kind: Any) -> None:
        command.add_argument(name, help=explained, **kind)

    option('input', 'pictures, as `clipflow embed` reads them; or URLs: a .txt file, or a table with a column of them')
    option('--out', 'the folder for everything that is made', type=Path, required=True, metavar='DIR')
    option('--model', 'a directory or a name (CLIPFLOW_MODEL)')
    option('--image-column', 'of a table: pictures, or their URLs', metavar='NAME')
    option('--caption-column', 'of a table: captions', metavar='NAME')
    option('--keep-plan', 'go on though pictures have changed: what is new is left out', action='store_true')
    option('--threads', 'fetches at once', type=int, default=64, metavar='N')
    option('--image-size', 'shrink what is fetched to this shorter side', type=int, default=0, metavar='PIXELS')
    option('--allow-private', 'fetch from addresses that are not public too', action='store_true')
    option('--no-serve', 'stop before the service', action='store_true')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Every step that is not done yet, then the service; 130 after Ctrl-C."""
    from clipflow.bulk import build as built
    from clipflow.bulk.embed.tables import Columns
    from clipflow.bulk.fetch import failures, urls
    from clipflow.errors import InvalidParameter

    if given.threads < 1 or given.image_size < 0:
        raise InvalidParameter('--threads: at least 1; --image-size: at least 1')
    folder = given.out.absolute()
    if folder.exists() and not folder.is_dir():
        raise InvalidParameter(f'{folder} is a file; name a folder')
    if model := given.model or os.environ.get('CLIPFLOW_MODEL'):
        # The service may be started anywhere.
        os.environ['CLIPFLOW_MODEL'] = os.path.abspath(model) if os.path.isdir(model) else model
    pattern = given.input if '://' in given.input else os.path.abspath(os.path.expanduser(given.input))
    columns = Columns(given.image_column, given.caption_column)
    source = urls.opened(pattern, columns)
    options = [f'{name}={value}' for name, value in columns.options().items()]
    options += ['--keep-plan'] if given.keep_plan else []
    if source is not None:
        kept = columns.options() | ({'--image-size': str(given.image_size)} if given.image_size else {})
        try:
            _fetch(given, folder, urls.prepared(folder / 'urls', pattern, source, kept))
        except KeyboardInterrupt:
            warn('interrupted; the same command goes on where this one stopped')
            return 130
        pattern, options = str(folder / 'pictures'), []
    embeddings, workspace = folder / 'embeddings', folder / 'workspace'
    os.environ['CLIPFLOW_WORKSPACE'] = str(workspace)
    code = _step(embed, 'embed', pattern, '--out', str(embeddings), *options)
    if code == 130:
        return code
    failures.gather(folder)
    if there := built.documents_in(workspace):
        warn(f'{there:,} documents are in {workspace} already')
    elif code := _step(build, 'build', str(embeddings), '--workspace', str(workspace)):
        return code
    settings = _settings(folder)
    if given.no_serve:
        print(f'Everything is in {folder}; it is served by: {" ".join(settings)} clipflow serve')
        return 0
    return _step(serve, 'serve')


def _step(command: Any, *arguments: str) -> int:
    """Run a command as if it had been typed, and show it."""
    warn(f'$ {shlex.join(["clipflow", *arguments])}')
    parser = argparse.ArgumentParser(prog='clipflow')
    command.add_commands(parser.add_subparsers())
    given = parser.parse_args(arguments)
    return int(given.run(given))


def _fetch(given: argparse.Namespace, folder: Path, listed: 'Listed') -> None:
    from clipflow.bulk.fetch import failures, runner
    from clipflow.errors import NotFound
    from clipflow.settings import PreprocessorSettings

    reading = PreprocessorSettings.load()
    limits = runner.Limits(
        reading.http_timeout, reading.max_bytes, given.allow_private, given.threads, given.image_size
    )
    with progress('fetching', listed.count) as moved:
        runner.fetch(folder, listed, limits, moved)
    failures.gather(folder)
    failed, first = 0, ''
    for url, reason in failures.of_fetching(folder):
        failed, first = failed + 1, first or f'{url}: {reason}'
    print(f'{listed.count - failed:,} of {listed.count:,} URLs are fetched')
    if failed == listed.count:
        runner.forget(folder)
        raise NotFound(f'none of the URLs could be fetched: {first}; all are listed in {folder}/failures.parquet')


def _settings(folder: Path) -> list[str]:
    """What the service has to be told, as assignments of a shell; `service.env` has them too."""
    from clipflow.files import replaced
    from clipflow.settings import PREFIX, EncoderSettings, IndexerSettings

    names = sorted(PREFIX + name.upper() for name in EncoderSettings.model_fields | IndexerSettings.model_fields)
    settings = [f'{name}={shlex.quote(os.environ[name])}' for name in names if name in os.environ]
    replaced(folder / 'service.env', '\n'.join([*settings, '']).encode())
    return settings

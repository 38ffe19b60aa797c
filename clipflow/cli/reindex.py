"""`clipflow reindex`: every stored document under another model, while the service goes on."""

import argparse
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.collection import progress
from clipflow.cli.service import warn

if TYPE_CHECKING:
    from clipflow.border.control import Caller
    from clipflow.bulk.reindex import Reindexing
    from clipflow.store.reading import Documents
    from clipflow.weights import ModelSpec

_FEW = 100
"""So many changes are followed while writes wait."""
_SHOWN = 5


def add_commands(commands: Any) -> None:
    """Add `reindex`."""
    command = commands.add_parser(
        'reindex',
        help='embed all stored documents again, with another model',
        description='Embed all stored documents again with MODEL, from what is stored of them: the text, the file or '
        'URL (as far as CLIPFLOW_FILE_ROOTS and CLIPFLOW_ALLOW_HTTP allow), or else the thumbnail. A service may run '
        'meanwhile; at the end it changes to the new model and the new vectors at once, without a pause for searches. '
        'Interrupted, the same command goes on where it stopped.',
    )
    command.add_argument('model', metavar='MODEL', help='a directory or a name, as in CLIPFLOW_MODEL')
    command.add_argument(
        '--prefer',
        choices=('text', 'picture'),
        default='',
        help='of documents with a text and a URI: which of them their vector is of. Vectors that were stored with '
        '/index are of the text; those of a folder that was loaded or built are mostly of pictures, with captions',
    )
    command.add_argument(
        '--drop-missing', action='store_true', help='give up documents of which nothing is stored to embed again'
    )
    command.add_argument(
        '--prepare',
        action='store_true',
        help='embed what is there and change nothing; the same command without this then takes seconds',
    )
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Fill the new generation, then switch; meanwhile no other command makes one."""
    from clipflow.settings import IndexerSettings
    from clipflow.store import generations
    from clipflow.weights import load_spec

    spec = load_spec(given.model)
    place = IndexerSettings.load().workspace
    with generations.alone(place) as folder:
        return _run(given, spec, place, folder)


def _run(given: argparse.Namespace, spec: 'ModelSpec', place: Path, folder: Path) -> int:
    from clipflow.border.control import service_in
    from clipflow.bulk import workspace
    from clipflow.bulk.encoding import LocalEncoder
    from clipflow.bulk.reindex import Reindexing
    from clipflow.errors import Conflict, InvalidParameter
    from clipflow.store import generations, shard_count
    from clipflow.store.reading import Documents

    shards = workspace.shards_in(folder)
    with ExitStack() as held, ExitStack() as open_:
        numbers = _numbers(folder, shards)
        sources = [Documents(path) for path in numbers.values()]
        for source in sources:
            open_.callback(source.close)
        fingerprint, name = sources[0].model()
        if fingerprint == spec.fingerprint:
            raise InvalidParameter(f'the documents in {place} are under the model {name!r} already')
        _check_preference(sources, given.prefer)
        target = generations.free(place, spec.fingerprint)
        if shard_count.of(target) != shards:  # of a run before `clipflow reshard`
            shutil.rmtree(target, ignore_errors=True)
        targets = open_.enter_context(workspace.being_made(target, spec, shards, numbers))
        work = Reindexing(sources, targets, open_.enter_context(LocalEncoder(spec)), given.prefer)
        work.retry()
        with progress('embedding', sum(source.count() for source in sources)) as moved:
            moved(sum(store.count() for store in targets))
            while work.follow(moved) > _FEW:
                pass
            if given.prepare:
                # What came just now is not there yet, but it is no reason to complain.
                missing = set(work.finish())
                work.follow(moved)
                _complain(work, sorted(missing & set(work.finish())), drop_missing=given.drop_missing)
                count = sum(store.count() for store in targets)
                print(f'{count:,} documents are embedded with {spec.name}; without --prepare they are changed to')
                return 0
            service = service_in(place)
            _hold(service, folder, held)
            if _numbers(folder, shards) != numbers:
                raise Conflict(f'there are other shards in {folder} than before; call this command again')
            work.follow(moved)
        _complain(work, work.finish(), drop_missing=given.drop_missing)
        count = sum(store.count() for store in targets)
        open_.close()
        if service is None:
            generations.switch(place, target, gone=folder)
        else:
            model = str(Path(given.model).absolute()) if Path(given.model).is_dir() else given.model
            service.ask('switch', model=model, folder=str(target))
        generations.clear(place)
    thumbnails = f', {work.tally.from_thumbnails:,} of them from thumbnails' if work.tally.from_thumbnails else ''
    print(f'{count:,} documents are under the model {spec.name}{thumbnails}')
    print(
        f'{"The service runs it; at its next start set" if service else "Start the service with"} '
        f'CLIPFLOW_MODEL={given.model}'
    )
    return 0


def _numbers(folder: Path, shards: int) -> dict[int, Path]:
    """The shards that are there, by their numbers: in a cluster each has a volume of its own."""
    from clipflow.store import layout

    return {number: path for number, path in layout.shards(folder).items() if number < shards}


def _check_preference(sources: 'Sequence[Documents]', prefer: str) -> None:
    from clipflow.errors import InvalidParameter

    if not prefer and (either := sum(source.count_of_either() for source in sources)):
        raise InvalidParameter(
            f'{either:,} documents have a text and a URI, and their vectors may be of either; say --prefer text '
            '(what /index does) or --prefer picture (captions of pictures, as in folders that were loaded)'
        )


def _hold(service: 'Caller | None', folder: Path, held: ExitStack) -> None:
    """From here on nothing is written: writes to the service wait, or nobody else can open the documents."""
    from clipflow.bulk import workspace
    from clipflow.errors import Conflict

    if service is not None:
        held.enter_context(service)
        service.ask('hold')
        return
    try:
        held.enter_context(workspace.locked(folder))
    except Conflict:
        raise Conflict(
            f'the service that has {folder} open is not run by `clipflow serve` on this host, so it cannot change to '
            'the new vectors; stop it and call this command again, which goes on where it is'
        ) from None


def _complain(work: 'Reindexing', missing: list[str], *, drop_missing: bool) -> None:
    from clipflow.errors import NotFound

    for name in missing[:_SHOWN]:
        warn(f'{name}: {work.tally.reasons.get(name, "could not be embedded again")}')
    if missing and not drop_missing:
        raise NotFound(
            f'{len(missing):,} documents cannot be embedded again, so nothing was changed; open their files with '
            'CLIPFLOW_FILE_ROOTS, index them again, or give them up with --drop-missing'
        )

"""`clipflow load`, `dump` and `reshard`: whole collections, while no service has the workspace open."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipflow.cli.service import warn


def add_commands(commands: Any) -> None:
    """Add them."""
    load = commands.add_parser(
        'load',
        help='load vectors that are there already',
        description="Load vectors and metadata: clip-retrieval's layout, or vectors.npy with documents.jsonl. They are "
        'of the model that CLIPFLOW_MODEL names. All are checked first; of a folder that is refused nothing is stored. '
        'Interrupted, what is loaded stays; begin again.',
    )
    load.add_argument('folder', type=Path)
    load.add_argument('--shards', type=int, help='into so many shards (as many as there are, else 1)')
    load.set_defaults(run=_load)
    dump = commands.add_parser('dump', help='write all vectors and metadata out', description='The other way round.')
    dump.add_argument('folder', type=Path, help='is made; must not hold anything')
    dump.add_argument('--layout', choices=('clip-retrieval', 'plain'), default='clip-retrieval')
    dump.set_defaults(run=_dump)
    quantizer = commands.add_parser(
        'quantizer',
        help='learn the clusters that all shards will share',
        description='Learn from the documents of all shards; give the file to each as CLIPFLOW_INDEX_TRAINED.',
    )
    quantizer.add_argument('file', type=Path)
    quantizer.add_argument(
        '--kind', default='auto', help='a kind of CLIPFLOW_INDEX_KIND, such as ivf or IVF1024,SQ8 (auto)'
    )
    quantizer.set_defaults(run=_quantizer)
    reshard = commands.add_parser(
        'reshard', help='move documents to another number of shards', description='Nothing is encoded again.'
    )
    reshard.add_argument('--to', type=int, required=True, metavar='N', help='how many shards there are to be')
    reshard.set_defaults(run=_reshard)


def _load(given: argparse.Namespace) -> int:
    from clipflow.bulk import exchange, workspace
    from clipflow.bulk.mapped import Mapped
    from clipflow.errors import NotFound, StorageFull
    from clipflow.settings import IndexerSettings
    from clipflow.store.sqlite import other_precision

    folder, spec = _place()
    mixed = IndexerSettings.load().mix_precisions
    source = Mapped(given.folder)
    source.check_model(spec)
    try:
        shards = workspace.shards_in(folder) if given.shards is None else given.shards
    except NotFound:
        shards = 1
    count = source.count()
    with workspace.opened(folder, spec, shards) as stores, bars(count, 'checking', 'loading') as moved:
        before, done = sum(store.count() for store in stores), 0
        for store in stores:
            if store.count() and not mixed and store.precision() != source.precision:
                raise other_precision(store.precision(), source.precision)
        for records, unnamed in exchange.read_named(given.folder):
            workspace.check_numbered(stores, unnamed)
            moved('checking', len(records))
        try:
            for records in exchange.read(given.folder):
                workspace.put(stores, records, source.precision, mixed=mixed)
                done += len(records)
                moved('loading', len(records))
        except StorageFull:
            raise StorageFull(
                f'no space is left in {folder}; the first {done:,} of {count:,} documents are stored. Free some, '
                'and the same command stores all'
            ) from None
        replaced = count - sum(store.count() for store in stores) + before
    again = f', {replaced:,} of them in the place of others with the same id' if replaced else ''
    print(f'{count:,} documents of {given.folder} are in {folder}{again}')
    return 0


def _dump(given: argparse.Namespace) -> int:
    from clipflow.bulk import exchange, workspace

    folder, spec = _place()
    with workspace.opened(folder, spec, workspace.shards_in(folder)) as stores:
        count = sum(store.count() for store in stores)
        with progress('writing', count) as moved:
            exchange.write(stores, given.folder, given.layout, moved)
    print(f'{count:,} documents are in {given.folder}')
    return 0


def _quantizer(given: argparse.Namespace) -> int:
    from clipflow.bulk import workspace
    from clipflow.errors import InvalidParameter, NotFound
    from clipflow.index.approximate import Approximate, cause_of
    from clipflow.index.build import sampled
    from clipflow.index.choice import NAMED, Wanted, choose, memory_for_vectors
    from clipflow.index.trial import check_kind

    folder, spec = _place()
    with workspace.opened(folder, spec, workspace.shards_in(folder)) as stores:
        count = sum(store.count() for store in stores)
        if not count:
            raise NotFound(f'there are no documents in {folder} to learn from')
        dimension, factory = max(store.dimension() for store in stores), given.kind
        if factory in NAMED:
            factory = choose(Wanted(factory, memory=memory_for_vectors()), count, dimension).factory
        if not factory:
            raise InvalidParameter(
                f'for {count:,} documents {given.kind} would be flat, which learns nothing; name a --kind such as '
                'IVF1024,SQ8'
            )
        check_kind(given.kind, dimension)
        main = Approximate.create(factory, dimension)
        main.train(sampled(stores, main))
    try:
        main.write(given.file)
    except (OSError, RuntimeError) as error:
        reason = cause_of(error) if isinstance(error, RuntimeError) else error
        raise InvalidParameter(f'{given.file} cannot be written: {reason}') from None
    print(f'{factory}, learnt from {count:,} documents of {len(stores)} shards, is in {given.file}')
    return 0


def _reshard(given: argparse.Namespace) -> int:
    from clipflow.bulk import workspace
    from clipflow.errors import InvalidParameter
    from clipflow.store import generations, layout

    if given.to < 1:
        raise InvalidParameter('there is at least one shard')
    folder, spec = _place()
    with progress('moving', None) as moved:
        before, count = workspace.reshard(folder.parent, spec, given.to, moved)
    print(f'{count:,} documents moved from {before} to {given.to} shards in {generations.current(folder.parent)}')
    log = folder.parent / layout.FEEDBACK
    if left := [f'{n}.db' for n in range(given.to, before) if (log / f'{n}.db').is_file()]:
        warn(f'{", ".join(left)} in {log} are of shards that are no more; they count again with {before} shards')
    return 0


def _place() -> tuple[Path, Any]:
    """Where the shards are, and the model that their vectors are of."""
    from clipflow.settings import IndexerSettings
    from clipflow.store import generations
    from clipflow.weights import load_spec

    settings = IndexerSettings.load()
    return generations.current(settings.workspace), load_spec(settings.model)


@contextmanager
def progress(title: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time on standard error, unless `quiet`; the function is told how many are done."""
    with bars(total, title, quiet=quiet) as moved:
        yield lambda count: moved(title, count)


@contextmanager
def bars(total: int | None, *titles: str, quiet: bool = False) -> Iterator[Callable[[str, int], None]]:
    """The same for several phases, each of `total`; the function is told which, and how many more."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[rate]} documents/s'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        tasks = {title: progress.add_task(title, total=total, rate='-') for title in titles}

        def moved(title: str, count: int) -> None:
            speed = progress.tasks[tasks[title]].speed
            progress.update(tasks[title], advance=count, rate=f'{speed:,.0f}' if speed else '-')

        yield moved

"""`clipflow build`: a folder of vectors to a workspace that indexers open at once, or to an index for others."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from clipflow.cli.collection import bars
from clipflow.cli.service import warn


def add_commands(commands: Any) -> None:
    """Add `build`."""
    command = commands.add_parser(
        'build',
        help='make the workspace of a service from vectors that are there already',
        description="From vectors and metadata, in clip-retrieval's layout or as vectors.npy with documents.jsonl, to "
        'a workspace whose indexers start at once: documents stored, index trained, filled, tuned and written. '
        'Nothing is encoded. Interrupted, the same command goes on where it stopped.',
    )
    command.add_argument('folder', type=Path)
    command.add_argument('--workspace', type=Path, metavar='DIR', help='is made (default: CLIPFLOW_WORKSPACE)')
    command.add_argument('--kind', help='of index (default: CLIPFLOW_INDEX_KIND)')
    command.add_argument('--memory', type=int, metavar='BYTES', help='for one indexer (default: CLIPFLOW_INDEX_MEMORY)')
    command.add_argument('--shards', type=int, help='how many indexers there will be (default: CLIPFLOW_SHARDS)')
    command.add_argument('--recall', type=float, help='of the ten best (default: CLIPFLOW_INDEX_RECALL)')
    command.add_argument(
        '--faiss', type=Path, metavar='FILE', help='write an index that clip-retrieval reads; no workspace by itself'
    )
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Build, and say how the service is to be started."""
    from clipflow.bulk import build, index_file
    from clipflow.bulk.mapped import Mapped
    from clipflow.index.choice import Wanted, memory_for_vectors
    from clipflow.settings import IndexerSettings
    from clipflow.weights import load_spec

    asked = {
        'CLIPFLOW_WORKSPACE': given.workspace and given.workspace.absolute(),
        'CLIPFLOW_INDEX_KIND': given.kind,
        'CLIPFLOW_INDEX_MEMORY': given.memory,
        'CLIPFLOW_SHARDS': given.shards,
        'CLIPFLOW_INDEX_RECALL': given.recall,
    }
    # An option is the setting of this name, checked alike.
    changed = {name: str(value) for name, value in asked.items() if value is not None}
    os.environ.update(changed)
    settings = IndexerSettings.load()
    wanted = Wanted(
        settings.index_kind,
        settings.index_vectors,
        memory_for_vectors(settings.index_memory),
        settings.index_recall,
    )
    source = Mapped(given.folder)
    count = source.count()
    if given.workspace is not None or given.faiss is None:
        spec = load_spec(settings.model)
        try:
            with bars(count, build.STORING, build.INDEXING) as told:
                choice = build.build_workspace(
                    source, settings.workspace, spec, wanted, shards=settings.shards, told=told
                )
        except KeyboardInterrupt:
            warn('interrupted; the same command goes on where this one stopped')
            return 130
        stored = build.documents_in(settings.workspace)
        parts = f' in {settings.shards} shards' if settings.shards > 1 else ''
        if stored < count:
            warn(
                f'{count - stored:,} of {count:,} vectors have an id that comes again, of which the last one counts; '
                'give each its own in a column `id` of the metadata'
            )
        print(f'{stored:,} documents are in {settings.workspace}{parts}, {choice.factory or "flat"} ({choice.why})')
        if changed:
            options = (f'{name}={shlex.quote(value)}' for name, value in changed.items())
            print(' '.join(['Start the service with', *options]))
    if given.faiss is not None:
        with bars(count, build.INDEXING) as told:
            choice = index_file.write(source, given.faiss, wanted, told)
        print(f'{count:,} vectors are in {given.faiss}, {choice.factory or "flat"} ({choice.why})')
    return 0

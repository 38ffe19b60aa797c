"""`clipflow dedup`: groups of pictures that are nearly the same."""

import argparse
from pathlib import Path
from typing import Any

from clipflow.cli.collection import progress


def add_commands(commands: Any) -> None:
    """Add `dedup`."""
    command = commands.add_parser(
        'dedup',
        help='find pictures that are nearly the same',
        description='Find near-duplicates in a folder of vectors: two whose cosine is the threshold or more belong to '
        'one group, and so do those that are linked by others. Of each group one is kept: the largest, where the '
        'metadata have width and height, else the first. No picture is deleted.',
    )
    command.add_argument('folder', type=Path)
    command.add_argument('--threshold', type=float, default=0.95, metavar='COSINE', help='(0.95)')
    command.add_argument('--out', type=Path, metavar='FILE', help='write the groups here: .parquet, .csv or .jsonl')
    command.add_argument('--list-removable', action='store_true', help='print all of every group but the one to keep')
    command.add_argument('--memory', type=int, metavar='BYTES', help='for the index of a large folder (half of all)')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Find them, write the groups, print the removable."""
    from clipflow.bulk import dedup, groups
    from clipflow.bulk.mapped import Mapped
    from clipflow.cli.service import warn
    from clipflow.errors import InvalidParameter
    from clipflow.index.choice import memory_for_vectors

    if given.out is None and not given.list_removable:
        raise InvalidParameter('say what to do with the groups: --out FILE, or --list-removable')
    if given.out is not None:
        groups.check_file(given.out)
    source = Mapped(given.folder)
    with progress('comparing', source.count()) as told:
        labels = dedup.components(source, given.threshold, given.memory or memory_for_vectors(), told)
    if given.out is not None:
        groups.write(groups.members(source, labels), given.out)
    if given.list_removable:
        for member in groups.members(source, labels):
            if not member.kept:
                print(member.uri or member.id)
    count, removable = dedup.counted(labels)
    warn(f'{count:,} groups; {removable:,} of {source.count():,} could be removed')
    return 0

"""`clipflow search`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.service import add_address, opened, warn

if TYPE_CHECKING:
    from clipflow_client import Match


def add_commands(commands: Any) -> None:
    """Add `search`."""
    command = commands.add_parser('search', help='find pictures', description='Find pictures by a text or a picture.')
    command.add_argument('text', nargs='?', help='what to look for')
    command.add_argument('--image', type=Path, metavar='FILE', help='look for what is like this picture')
    command.add_argument('--limit', type=int, default=10, help='number of results (10)')
    command.add_argument('--filter', metavar='JSON', help='a condition on tags, such as \'{"folder": "/photos"}\'')
    command.add_argument('--min-score', type=float, metavar='COSINE', help='leave out what fits less')
    command.add_argument(
        '--template',
        action='append',
        metavar='TEXT',
        help='put the text into this sentence at {}; several are averaged, and an empty one is for none',
    )
    command.add_argument('--diversity', type=float, metavar='SHARE', help='how much results are to differ (0 to 1)')
    command.add_argument(
        '--probability', action='store_true', help='how probable it is that a result is what was asked for'
    )
    shape = command.add_mutually_exclusive_group()
    shape.add_argument('--json', action='store_true', help='print JSON')
    shape.add_argument('--grid', type=Path, metavar='FILE', help='also save a picture of the results')
    add_address(command)
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Search and print."""
    from clipflow.errors import InvalidFilter, InvalidParameter

    if (given.text is None) == (given.image is None):
        raise InvalidParameter('give a text, or --image with a file')
    parameters: dict[str, Any] = {'limit': given.limit}
    if given.filter is not None:
        try:
            parameters['filter'] = json.loads(given.filter)
        except ValueError as error:
            raise InvalidFilter(f'--filter is not JSON: {error}') from None
    if given.min_score is not None:
        parameters['min_score'] = given.min_score
    if given.template is not None:
        parameters['templates'] = [template for template in given.template if template]
    if given.diversity is not None:
        parameters['diversity'] = given.diversity
    further = {'thumbnail': given.grid is not None, 'probability': given.probability}
    parameters['include'] = ['tags', 'uri', *(name for name, wanted in further.items() if wanted)]
    with opened(given) as client:
        matches = client.search(given.image if given.image is not None else given.text, **parameters)
    if matches.partial:
        warn('a shard of the collection was away; what it keeps is missing here')
    if given.json:
        print(json.dumps([_plain(match) for match in matches], ensure_ascii=False, indent=2))
    else:
        _table(matches)
    if given.grid is not None:
        from clipflow.cli import grid

        grid.save([(given.text or str(given.image), matches)], given.grid)
        print(f'the grid is in {given.grid}')
    return 0


def _plain(match: 'Match') -> dict[str, Any]:
    return {name: value for name, value in asdict(match).items() if name != 'thumbnail' and value is not None}


def _table(matches: 'list[Match]') -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    chances = any(match.probability is not None for match in matches)
    table = Table('', 'score', *(['probability'] if chances else []), 'id', box=box.SIMPLE_HEAD)
    for place, match in enumerate(matches, 1):
        chance = [] if not chances else ['' if match.probability is None else f'{match.probability:.3f}']
        table.add_row(str(place), f'{match.score:.3f}', *chance, escape(match.id))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table if matches else 'nothing found')

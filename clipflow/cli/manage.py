"""`clipflow status` and `clipflow delete`."""

import argparse
import json
from pathlib import Path
from typing import Any

from clipflow.cli.index import identifier
from clipflow.cli.service import add_address, opened
from clipflow.files import located


def add_commands(commands: Any) -> None:
    """Add both."""
    status = commands.add_parser('status', help='what each stage says of itself')
    status.add_argument('--json', action='store_true', help='print JSON')
    add_address(status)
    status.set_defaults(run=show_status)
    delete = commands.add_parser('delete', help='delete stored documents', description='Delete by id, path or filter.')
    delete.add_argument('ids', nargs='*', metavar='ID', help='an id, or the path of an indexed file')
    delete.add_argument('--filter', metavar='JSON', help='delete all that pass this condition on tags')
    delete.add_argument('--all', action='store_true', help='delete everything')
    add_address(delete)
    delete.set_defaults(run=delete_documents)


def show_status(given: argparse.Namespace) -> int:
    """Print what the stages say."""
    with opened(given) as client:
        stages = client.status()
    if given.json:
        print(json.dumps(stages, indent=2))
        return 0
    for name, told in stages.items():
        print(name)
        for key in sorted(told):
            if key != 'stage' and told[key] != []:
                print(f'  {key}: {told[key]}')
    return 0


def delete_documents(given: argparse.Namespace) -> int:
    """Delete and print how many documents are gone."""
    from clipflow.errors import InvalidFilter, InvalidParameter

    if not given.ids and given.filter is None and not given.all:
        raise InvalidParameter('say what to delete: ids, --filter or --all')
    if given.all and (given.ids or given.filter is not None):
        raise InvalidParameter('--all deletes everything; leave it out to delete by ids or --filter')
    try:
        matching = None if given.filter is None else json.loads(given.filter)
    except ValueError as error:
        raise InvalidFilter(f'--filter is not JSON: {error}') from None
    ids = [name for given_name in given.ids for name in (given_name, identifier(located(Path(given_name))))]
    with opened(given) as client:
        count = client.clear() if given.all else client.delete(list(dict.fromkeys(ids)), matching)
    print(f'{count} deleted')
    return 0

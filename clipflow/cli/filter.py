"""`clipflow filter`: the best pictures of a folder of vectors, or of a service, for a query: copied or listed."""

import argparse
import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipflow.cli.collection import progress
from clipflow.cli.service import add_address, opened, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipflow.bulk.select import Found

_USUAL = 100
_MOST = 10_000
"""Of a search in a service."""


def add_commands(commands: Any) -> None:
    """Add `filter`."""
    command = commands.add_parser(
        'filter',
        help='copy or list the pictures that fit a query best',
        description='Find the best pictures for a query and copy their files into a folder, or list them. FOLDER is '
        'one of vectors and metadata, as `clipflow embed` and clip-retrieval write them; the query is encoded here, '
        'with the model that CLIPFLOW_MODEL names. Without FOLDER the service at --host is asked.',
    )
    command.add_argument('folder', type=Path, nargs='?', metavar='FOLDER')
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument('--query', metavar='TEXT', help='what to look for')
    asked.add_argument('--image', type=Path, metavar='FILE', help='look for what is like this picture')
    number = command.add_mutually_exclusive_group()
    number.add_argument('--num-results', type=int, metavar='N', help=f'so many of the best ({_USUAL})')
    number.add_argument('--threshold', type=float, metavar='COSINE', help='all that fit as well or better')
    shape = command.add_mutually_exclusive_group(required=True)
    shape.add_argument('--out', type=Path, metavar='DIR', help='copy the files here; must not hold anything')
    shape.add_argument('--list', action='store_true', help='print them as CSV')
    shape.add_argument('--json', action='store_true', help='print them as JSON, one object a line')
    add_address(command)
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Find, then copy or print; 1 if a file could not be copied."""
    from clipflow.bulk import select
    from clipflow.errors import InvalidParameter

    if given.num_results is not None and given.num_results < 1:
        raise InvalidParameter('--num-results is 1 or more')
    if given.threshold is not None and not -1 <= given.threshold <= 1:
        raise InvalidParameter('--threshold is a cosine, from -1 to 1')
    if given.query is not None and not given.query.strip():
        raise InvalidParameter('--query is empty; say what to look for')
    if given.threshold is None and given.num_results is None:
        given.num_results = _USUAL
    found, base = _in_service(given) if given.folder is None else _in_folder(given)
    if given.out is None:
        _print(found, as_json=given.json)
        return 0
    failed = 0
    for one, reason in select.copy(found, base, given.out):
        warn(f'{one.uri or one.id}: {reason}')
        failed += 1
    scores = f', with cosines from {found[-1].score:.3f} to {found[0].score:.3f}' if found else ''
    print(f'{len(found) - failed:,} of {len(found):,} pictures are in {given.out}{scores}')
    return 1 if failed else 0


def _in_folder(given: argparse.Namespace) -> 'tuple[list[Found], Path]':
    """What was found, and where relative paths begin: in the folder that was embedded, if it is known."""
    from clipflow.bulk import select
    from clipflow.bulk.mapped import Mapped
    from clipflow.settings import EncoderSettings
    from clipflow.weights import load_spec

    source, spec = Mapped(given.folder), load_spec(EncoderSettings.load().model)
    source.check_model(spec)
    vector = select.encoded(given.query if given.image is None else _content(given.image), spec)
    with progress('comparing', source.count()) as told:
        found = select.best(source, vector, given.num_results, given.threshold, told)
    base = Path(source.manifest.get('input', given.folder))
    # Paths in tables are relative to these.
    return found, base if base.is_dir() else base.parent


def _content(path: Path) -> bytes:
    from clipflow.errors import NotFound

    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f'{path} cannot be read: {error.strerror}') from None


def _in_service(given: argparse.Namespace) -> 'tuple[list[Found], Path]':
    from clipflow.bulk.select import Found

    limit = _MOST if given.num_results is None else given.num_results
    parameters = {} if given.threshold is None else {'min_score': given.threshold}
    with opened(given) as client:
        matches = client.search(given.query if given.image is None else given.image, limit=limit, **parameters)
    if given.threshold is not None and len(matches) == _MOST:
        warn(f'a service tells its best {_MOST:,}; there may be more')
    return [Found(match.score, match.id, match.uri, match.text) for match in matches], Path()


def _print(found: 'Sequence[Found]', *, as_json: bool) -> None:
    if as_json:
        for one in found:
            print(json.dumps(asdict(one), ensure_ascii=False))
        return
    rows = csv.writer(sys.stdout, lineterminator='\n')
    rows.writerow(['score', 'id', 'uri', 'text'])
    rows.writerows([f'{one.score:.6f}', one.id, one.uri, one.text] for one in found)

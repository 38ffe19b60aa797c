"""`clipflow feedback`: what people clicked."""

import argparse
import datetime
import secrets
from pathlib import Path
from typing import Any

from clipflow.cli.service import add_address, opened
from clipflow.errors import InvalidParameter

_SHOWN = 10


def add_commands(commands: Any) -> None:
    """Add `feedback` with `stats`, `export` and `purge`."""
    command = commands.add_parser('feedback', help='what people clicked: statistics, export, deletion')
    parts = command.add_subparsers(dest='part', metavar='part', required=True)
    stats = parts.add_parser('stats', help='how much there is, and how much a click depends on its place')
    stats.add_argument('--json', action='store_true', help='print JSON')
    stats.set_defaults(run=show)
    export = parts.add_parser('export', help='write the entries to a file, one a line of JSON')
    export.add_argument('file', type=Path, metavar='FILE.jsonl', help='where to')
    export.add_argument('--user', metavar='KEY', help='only those of this user')
    export.set_defaults(run=write)
    purge = parts.add_parser('purge', help='delete entries of a user, or old ones')
    purge.add_argument('--user', metavar='KEY', help='those of this user')
    purge.add_argument('--before', metavar='DATE', help='those from before this day, such as 2026-01-31 (UTC)')
    purge.set_defaults(run=delete)
    for part in (stats, export, purge):
        add_address(part)


def show(given: argparse.Namespace) -> int:
    """Print statistics."""
    with opened(given) as client:
        stats = client.feedback_stats()
    if given.json:
        import json

        print(json.dumps(stats, indent=2))
        return 0
    print(f'{stats["entries"]} entries of {stats["users"]} users with a name')
    if stats['entries']:
        print(f'from {_day(stats["first"])} to {_day(stats["last"])}')
        print(f'{stats["clicked"]} results clicked, {stats["disliked"]} disliked')
        for head, count in stats['heads'].items():
            print(f'{count} entries {f"under the head {head}" if head else "without a head"}')
        print(f'\n{"place":>5} {"shown":>8} {"clicked":>8} {"propensity":>11}')
        for row in stats['places'][:_SHOWN]:
            print(f'{row["place"]:>5} {row["shown"]:>8} {row["clicked"]:>8} {row["propensity"]:>11.3f}')
    return 0


def write(given: argparse.Namespace) -> int:
    """Write entries to a file, which is there as a whole or not at all."""
    from clipflow.cli.collection import progress

    if not given.file.name or given.file.is_dir():
        raise InvalidParameter(f'{given.file} is a folder; name a file')
    # Two exports at once write no common file.
    part = given.file.with_name(f'.{given.file.name}.{secrets.token_hex(4)}.part')
    count = 0
    try:
        with opened(given) as client, progress('exporting', None) as moved, part.open('w', encoding='utf-8') as file:
            for entry in client.feedback_log(given.user):
                file.write(entry.line() + '\n')
                count += 1
                moved(1)
        part.replace(given.file)
    except OSError as error:
        raise InvalidParameter(f'{given.file} cannot be written: {error.strerror}') from None
    finally:
        part.unlink(missing_ok=True)
    print(f'{count} entries in {given.file}')
    return 0


def delete(given: argparse.Namespace) -> int:
    """Delete entries and print how many."""
    if given.user is None and given.before is None:
        raise InvalidParameter('say what to delete: --user, --before or both')
    before = None if given.before is None else _time(given.before)
    with opened(given) as client:
        print(f'{client.purge_feedback(given.user, before)} entries deleted')
    return 0


def _time(text: str) -> float:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise InvalidParameter(f'--before is a date such as 2026-01-31, not {text!r}') from None
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()

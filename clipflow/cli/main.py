"""`clipflow`: the commands and their arguments. What a command needs is imported when it is called."""

import argparse
import sys
from collections.abc import Sequence

from clipflow import __version__
from clipflow.cli import (
    backup,
    build,
    calibrate,
    classify,
    collection,
    dedup,
    doctor,
    embed,
    end2end,
    evaluate,
    export,
    feedback,
    filter,
    finetune,
    head,
    index,
    manage,
    reindex,
    search,
    serve,
    train_mini,
)
from clipflow.errors import ClipflowError

_COMMANDS = (
    serve,
    index,
    search,
    classify,
    manage,
    collection,
    build,
    filter,
    dedup,
    reindex,
    embed,
    end2end,
    backup,
    evaluate,
    calibrate,
    finetune,
    train_mini,
    feedback,
    head,
    export,
    doctor,
)


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(prog='clipflow', description='Find pictures and texts by meaning.')
    top.add_argument('--version', action='version', version=__version__)
    commands = top.add_subparsers(dest='command', metavar='command', required=True)
    for module in _COMMANDS:
        module.add_commands(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 for success, 1 for failure, 2 for a wrong call, 130 for Ctrl-C."""
    given = parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except ClipflowError as error:
        print(f'clipflow: {error!r}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f'clipflow: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())

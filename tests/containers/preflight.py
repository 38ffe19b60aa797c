"""Whether containers can run here, in a line: `PYTHONPATH=tests .venv/bin/python -m containers.preflight`.

`make containers` does the rest, which takes long: the base, the wheels, the images.
"""

import sys

from .engine import Engine, EngineError
from .images import base_can_be_had


def opened() -> Engine:
    """Podman, ready to be entered.

    Raises (here, or on entering):
        EngineError: there can be none here; it says why.
    """
    base_can_be_had()
    return Engine()


def main() -> int:
    """Print what there is to say; 0 if containers can run, 1 if not."""
    try:
        with opened():
            print('containers can run here: `make containers`, or `make containers-short`')
            return 0
    except EngineError as error:
        print(f'containers cannot run here: {error}')
        return 1


if __name__ == '__main__':
    sys.exit(main())

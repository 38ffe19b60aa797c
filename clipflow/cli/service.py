"""What all commands that speak to a service share: its address, and how to open it."""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipflow_client import Client

RUNTIMES = ('auto', 'torch', 'onnx', 'openvino', 'tensorrt', 'kserve', 'fake')
"""As in the settings, which take too long to import for a list of options."""
PRECISIONS = ('auto', 'float32', 'bfloat16', 'float16', 'int8')
_PAGE = 1000
_PORT_VARIABLE = 'CLIPFLOW_GRPC_PORT'


def add_address(command: argparse.ArgumentParser) -> None:
    """Add `--host`."""
    default = f'127.0.0.1:{os.environ.get(_PORT_VARIABLE, "51000")}'
    command.add_argument('--host', default=default, metavar='HOST:PORT', help=f'gRPC of the service ({default})')


@contextlib.contextmanager
def opened(given: argparse.Namespace) -> Iterator['Client']:
    """A client of the service."""
    prepare()
    from clipflow_client import Client

    with Client(given.host, api_key=api_key()) as client:
        yield client


def api_key() -> str:
    """The key of the environment."""
    from clipflow.settings import CommandSettings

    return CommandSettings.load().api_key


def stored_ids(client: 'Client') -> Iterator[str]:
    """The ids of all documents of a service, page by page."""
    from docarray import DocumentArray

    offset = 0
    while page := client.post('/get', DocumentArray(), {'limit': _PAGE, 'offset': offset, 'include': []}):
        yield from (doc.id for doc in page)
        offset += len(page)


def prepare() -> None:
    """Keep Jina quiet; to be called before it is imported."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    os.environ.setdefault('JINA_OPTOUT_TELEMETRY', '1')
    os.environ.setdefault('NO_VERSION_CHECK', '1')


def warn(sentence: str) -> None:
    """A line on standard error."""
    print(sentence, file=sys.stderr)

"""pyarrow, which comes with an extra: its modules, or a sentence that says how to get them."""

import importlib
from typing import Any

from clipflow.errors import Unavailable


def arrow(name: str = 'pyarrow') -> Any:
    """A module of pyarrow; raises Unavailable if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(
            "parquet and Arrow files need pyarrow; install it with: pip install 'clipflow[bulk]'"
        ) from None


def parquet() -> Any:
    """Its module for parquet files; raises Unavailable if it is not installed."""
    return arrow('pyarrow.parquet')

"""clipflow: find pictures and texts by meaning. The domain, without a Flow; only `border` knows Jina."""

from pathlib import Path

__version__ = '0.1.0'

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: where flow.yml, the rooms and the bundled model are."""

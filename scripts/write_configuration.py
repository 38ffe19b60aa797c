"""Write docs/configuration.md from the settings classes; with --check only say whether it is fresh."""

import sys
from pathlib import Path
from typing import Any

from clipflow import ROOT, settings

TARGET = ROOT / 'docs' / 'configuration.md'
TITLES: dict[type[settings.Settings], str] = {
    settings.GatewaySettings: 'Gateway and `clipflow serve`',
    settings.PreprocessorSettings: 'Preprocessor',
    settings.EncoderSettings: 'Encoder',
    settings.IndexerSettings: 'Indexer',
    settings.MilvusSettings: 'Indexer over Milvus',
    settings.RankerSettings: 'Ranker',
    settings.CommandSettings: 'Commands',
}
HEAD = """# Configuration

<!-- Written by scripts/write_configuration.py from clipflow/settings.py; "make config" writes it again. -->

Every setting is an environment variable `CLIPFLOW_NAME`. The environment wins over `with:` in a Flow's YAML, that wins
over the default. Each process reads what concerns it; a value that is not valid stops the start with one sentence, and
`clipflow serve` warns about variables that nobody reads.

## All stages

| variable | default | meaning |
|---|---|---|
"""


def shown(value: Any) -> str:
    """A default as it is written in the environment."""
    text = str(value).replace(str(ROOT) + '/', '') if isinstance(value, str | Path) else str(value).lower()
    return f'`{text}`' if text and value != () else 'none'


def row(name: str, field: Any) -> str:
    """One line of a table."""
    return f'| `CLIPFLOW_{name.upper()}` | {shown(field.default)} | {field.description} |\n'


def page() -> str:
    """The whole page."""
    common = settings.RoomSettings.model_fields
    text = HEAD + ''.join(row(name, field) for name, field in common.items())
    for cls, title in TITLES.items():
        own = {name: field for name, field in cls.model_fields.items() if name not in common}
        if own:
            text += f'\n## {title}\n\n| variable | default | meaning |\n|---|---|---|\n'
            text += ''.join(row(name, field) for name, field in own.items())
    return text


if __name__ == '__main__':
    if '--check' in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding='utf-8') == page() else 'docs/configuration.md is stale: make config')
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(), encoding='utf-8')

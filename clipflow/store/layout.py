"""What belongs to a workspace, and under which names.

generation                names the directory that holds the documents; where it is missing, that is `indexer`. A second
                          line names one that counts no more and is being deleted
indexer/<shard>/          documents.db, the truth; lock; snapshots/<number>/, derived
indexer-<mark>/           documents that were made anew, or are being made
feedback/<shard>.db       what people thought of results
ranker/                   heads of the ranker
backup                    held while a backup is taken; holds the mark of this workspace
restored/                 a restored backup that takes the place of all that; `restored.part` until it is complete
"""

from pathlib import Path

GENERATION = 'generation'
INDEXER = 'indexer'
DOCUMENTS = 'documents.db'
LOCK = 'lock'
SNAPSHOTS = 'snapshots'
FEEDBACK = 'feedback'
RANKER = 'ranker'
BACKUP = 'backup'
RESTORED = 'restored'


def shards(folder: Path) -> dict[int, Path]:
    """The directories of the shards that are in the directory of a generation, by their numbers."""
    found = [path.parent for path in folder.glob(f'[0-9]*/{DOCUMENTS}') if path.parent.name.isdigit()]
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def newest(folder: Path) -> Path | None:
    """The newest snapshot, whether or not it can be used."""
    numbers = [int(path.name) for path in folder.glob('*') if path.name.isdigit()] if folder.is_dir() else []
    return folder / str(max(numbers)) if numbers else None

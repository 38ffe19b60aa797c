"""Third stage: embeddings are stored and found. See README.md beside this file."""

from typing import Any

from clipflow.border.indexing import Indexing
from clipflow.filters import Filter, compile_filter
from clipflow.index.approximate import Approximate
from clipflow.index.choice import Wanted, memory_for_vectors
from clipflow.index.keeper import Snapshots
from clipflow.index.live import LiveIndex
from clipflow.index.snapshot import checksum
from clipflow.index.trial import check_kind
from clipflow.settings import IndexerSettings
from clipflow.store import generations
from clipflow.store.sqlite import Store
from clipflow.work import WorkQueue, share_of_cores


class VectorIndexer(Indexing):
    """Owns the workspace: one writer, and searches beside it."""

    settings_class = IndexerSettings
    settings: IndexerSettings

    def open(self) -> None:
        """See `Room`: take the workspace and read its vectors."""
        super().open()
        settings = self.settings
        self.shard, self.shards = settings.shard, settings.shards
        directory = generations.cleared(settings.workspace) / str(settings.shard)
        memory = memory_for_vectors(settings.index_memory)
        kind, trained = settings.index_kind, settings.index_trained
        store = Store(directory, self.spec.fingerprint, self.spec.name, settings.indexed_tags, settings.shards)
        generations.check(directory.parent)
        check_kind(kind, store.dimension() or self.spec.dimension)
        learnt = ''
        if trained is not None:
            Approximate.read(trained, store.dimension())
            learnt = checksum(trained)
        wanted = Wanted(kind, settings.index_vectors, memory, settings.index_recall, trained, learnt)
        self._index = index = LiveIndex(store, wanted, Snapshots(settings.snapshot_changes, settings.snapshot_seconds))
        self.work = WorkQueue(self.stage, share_of_cores(0, self.replicas), settings.queue_limit)
        # Writes are in turn, and a snapshot is taken beside them; searches wait for neither.
        self.changes = WorkQueue(f'{self.stage}-writing', 2, settings.queue_limit)
        self.log.info('%d documents in %s', len(index), directory)

    def compiled(self, query: dict[str, Any]) -> Filter:
        """See `Indexing`."""
        return compile_filter(query, self.settings.indexed_tags)

    def place(self) -> dict[str, Any]:
        """See `Indexing`."""
        return {'workspace': str(self.settings.workspace)}

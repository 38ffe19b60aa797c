"""The third stage over Milvus: embeddings are stored and found there. See README.md beside this file."""

import asyncio
from typing import Any

from clipflow.border.indexing import Indexing
from clipflow.milvus.client import shown
from clipflow.milvus.collection import Collection
from clipflow.milvus.filters import compile_filter
from clipflow.milvus.index import MilvusIndex
from clipflow.milvus.rows import check
from clipflow.settings import MilvusSettings
from clipflow.store.reading import Record
from clipflow.wire import Parameters
from clipflow.work import WorkQueue

_CALLS = 8
"""To Milvus at once: it does the work, and this process waits."""


class MilvusIndexer(Indexing):
    """Keeps nothing itself but the log of feedback."""

    settings_class = MilvusSettings
    settings: MilvusSettings

    def open(self) -> None:
        """See `Room`: connect to Milvus."""
        super().open()
        settings = self.settings
        self._store = Collection(
            settings.milvus,
            self.spec.fingerprint,
            token=settings.milvus_token,
            name=settings.milvus_collection,
            kind=settings.milvus_index,
            timeout=settings.milvus_timeout,
        )
        self._index = MilvusIndex(self._store)
        self.work = self.changes = WorkQueue(self.stage, _CALLS, settings.queue_limit)
        self.log.info('%d documents in %s', self._store.count(), shown(settings.milvus))

    async def works(self) -> bool:
        """Whether Milvus answers."""
        try:
            await asyncio.to_thread(self._store.exists)
        except Exception:
            return False
        return True

    def compiled(self, query: dict[str, Any]) -> str:
        """See `Indexing`."""
        return compile_filter(query)

    def check(self, record: Record) -> None:
        """See `Indexing`."""
        check(record)

    async def found(self, parameters: Parameters) -> dict[str, Any]:
        """See `Indexing`."""
        return await self.work.run(parameters, self._index.status)

    def place(self) -> dict[str, Any]:
        """See `Indexing`."""
        return {'milvus': shown(self.settings.milvus), 'collection': self.settings.milvus_collection}

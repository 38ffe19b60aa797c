"""The endpoints of an indexer: Documents are stored and found, whatever keeps them.

A room says in `open` what that is; everything else is the same for all of them.
"""

from collections.abc import Collection
from contextlib import closing
from typing import Any

import numpy as np
from docarray import Document, DocumentArray
from docarray.score import NamedScore
from numpy.typing import NDArray

from clipflow import wire
from clipflow.border.room import Room, endpoint
from clipflow.clicks import Feedback
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound, NotReady
from clipflow.index.base import Effort
from clipflow.index.documents import DocumentIndex
from clipflow.index.sifting import Hit, Query
from clipflow.records import document_of, record_of
from clipflow.settings import StoreSettings
from clipflow.sharding import shard_of
from clipflow.store.connection import one_request
from clipflow.store.facets import MOST_VALUES
from clipflow.store.feedback import FeedbackLog
from clipflow.store.reading import Record
from clipflow.store.sqlite import other_precision
from clipflow.tags import tags_json
from clipflow.wire import (
    DeleteParameters,
    EncodeParameters,
    ExportParameters,
    FacetParameters,
    FeedbackParameters,
    GetParameters,
    Parameters,
    PurgeParameters,
    SearchParameters,
)
from clipflow.work import WorkQueue


class Indexing(Room):
    """Base of the indexers. Their `open` sets `_index`, `work`, `changes` (where what changes something has its turn),
    and `shard` and `shards` if there are several.
    """

    stage = 'indexer'
    settings: StoreSettings
    changes: WorkQueue
    _index: DocumentIndex
    shard, shards = 0, 1
    _feedback: FeedbackLog | None = None

    def open(self) -> None:
        """See `Room`: feedback is written one request at a time, beside everything else."""
        self.writing = WorkQueue(f'{self.stage}-feedback', 1, self.settings.queue_limit)

    def compiled(self, query: dict[str, Any]) -> Any:
        """A filter, for the store.

        Raises:
            InvalidFilter: it is no filter, or one that the store cannot apply.
        """
        raise NotImplementedError

    def check(self, record: Record) -> None:
        """Raises TooLarge for what the store cannot keep."""

    async def found(self, parameters: Parameters) -> dict[str, Any]:
        """What the index says of itself, for `/status`."""
        return self._index.status()

    def place(self) -> dict[str, Any]:
        """Where documents are kept, for `/status`."""
        raise NotImplementedError

    @endpoint('/index', parse=EncodeParameters)
    async def index(self, docs: DocumentArray, parameters: EncodeParameters) -> None:
        """`/index`: on return everything without an error is on disk and searchable."""
        records, precision = [], 'float'
        for doc in wire.chosen(docs, parameters.access_paths):
            with wire.caught(doc, self.stage):
                if not wire.failed(doc) and self._owns(doc.id):
                    precision = self._check_model(doc)
                    record = record_of(doc)
                    self.check(record)
                    records.append(record)
        mixed = self.settings.mix_precisions
        await self.changes.run(parameters, self._index.upsert, records, precision, mixed=mixed)
        for doc in docs:
            wire.strip(doc)

    @endpoint('/update', parse=Parameters)
    async def update(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/update`: merge tags; an id that is not there gets an error."""
        patches = []
        for doc in docs:
            with wire.caught(doc, self.stage):
                if self._owns(doc.id):
                    patches.append((doc, tags_json(doc)))
        merge = self._index.store.merge_tags
        found = await self.changes.run(parameters, merge, [(doc.id, patch) for doc, patch in patches])
        for (doc, _), known in zip(patches, found, strict=True):
            if not known:
                wire.fail(doc, NotFound(f'there is no document with the id {doc.id!r}'), self.stage)
        return docs

    @endpoint('/delete', parse=DeleteParameters)
    async def delete(self, docs: DocumentArray, parameters: DeleteParameters) -> DocumentArray:
        """`/delete`: one Document with the count in its tags."""
        ids = [*(doc.id for doc in docs), *(parameters.ids or ())]
        if not ids and parameters.filter is None:
            raise InvalidParameter("say what to delete: documents, 'ids' or 'filter' ('/clear' deletes everything)")
        matching = None if parameters.filter is None else self.compiled(parameters.filter)
        count = await self.changes.run(parameters, self._index.delete, ids, matching)
        return wire.result_document(self.stage, {'deleted': count})

    @endpoint('/clear', parse=Parameters)
    async def clear(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/clear`: delete everything."""
        return wire.result_document(self.stage, {'deleted': await self.changes.run(parameters, self._index.clear)})

    @endpoint('/snapshot', parse=Parameters)
    async def snapshot(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/snapshot`: write the index to disk for a quick start."""
        return wire.result_document(self.stage, await self.changes.run(parameters, self._index.snapshot))

    @endpoint('/search', parse=SearchParameters)
    async def search(self, docs: DocumentArray, parameters: SearchParameters) -> None:
        """`/search`: the first `offset + limit` matches, or more; the ranker merges shards, mixes and cuts."""
        queries = [d for d in wire.chosen(docs, parameters.access_paths) if not wire.failed(d)]
        for doc in list(queries):
            with wire.caught(doc, self.stage):
                precision, stored = self._check_model(doc), self._index.precision
                if stored and precision != stored and not self.settings.mix_precisions:
                    raise other_precision(stored, precision)
        queries = [doc for doc in queries if not wire.failed(doc)]
        if queries:
            matrix = np.stack([doc.embedding for doc in queries])
            asked = self._query(parameters, texts=all(doc.text for doc in queries))
            found = await self.work.run(parameters, self._nearest, matrix, asked)
            if self._tells_sample(parameters):
                # What all shards together say of a score is found by the ranker.
                for doc, sample in zip(
                    queries, await self.work.run(parameters, self._index.background, matrix), strict=True
                ):
                    wire.attach(doc, wire.BACKGROUND, tensor=sample)
            for doc, hits in zip(queries, found, strict=True):
                doc.matches = DocumentArray([self._match(hit, parameters) for hit in hits])
                if 'embedding' not in parameters.include and not parameters.candidates:
                    doc.pop('embedding')

    @endpoint('/get', parse=GetParameters)
    async def get(self, docs: DocumentArray, parameters: GetParameters) -> DocumentArray:
        """`/get`: by ids, or a page by filter."""
        wanted = {'thumbnails': 'thumbnail' in parameters.include, 'vectors': 'embedding' in parameters.include}
        store = self._index.store
        if parameters.keys is not None:
            keys = [key // self.shards for key in parameters.keys if self._has_key(key)]
            by_key = await self.work.run(parameters, store.by_keys, keys, **wanted)
            return DocumentArray([self._document(by_key[key], parameters.include) for key in keys if key in by_key])
        ids = [*(doc.id for doc in docs), *(parameters.ids or ())]
        if not ids:
            page = self.compiled(parameters.filter or {})
            limit, offset = parameters.limit, parameters.offset
            if self.shards > 1:
                # The page is cut from the pages of all shards.
                limit, offset = limit + offset, 0
            records = await self.work.run(parameters, store.page, page, limit, offset, **wanted)
            return DocumentArray([self._document(record, parameters.include) for record in records])
        own = [identifier for identifier in dict.fromkeys(ids) if self._owns(identifier)]
        found = await self.work.run(parameters, store.by_ids, own, **wanted)
        result = DocumentArray()
        for identifier in own:
            doc = Document(id=identifier)
            if identifier in found:
                doc = self._document(found[identifier], parameters.include)
            else:
                wire.fail(doc, NotFound(f'there is no document with the id {identifier!r}'), self.stage)
            result.append(doc)
        return result

    @endpoint('/facets', parse=FacetParameters)
    async def facets(self, docs: DocumentArray, parameters: FacetParameters) -> DocumentArray:
        """`/facets`: counts of the values of tags."""
        matching = None if parameters.filter is None else self.compiled(parameters.filter)
        found, sampled = await self.work.run(parameters, self._index.facets, matching)
        if self.shards == 1:
            cut = [facet.json(parameters.limit) for facet in found if facet.is_useful]
        else:  # which values are frequent shows only in the sums
            cut = [facet.json(MOST_VALUES) for facet in found]
        return wire.result_document(self.stage, {'facets': cut, 'sampled': sampled})

    @endpoint('/feedback', parse=FeedbackParameters)
    async def feedback(self, docs: DocumentArray, parameters: FeedbackParameters) -> DocumentArray:
        """`/feedback`: on return it is on disk."""
        entries = []
        for doc in wire.chosen(docs, parameters.access_paths):
            if error := wire.error_of(doc):
                raise error
            self._check_model(doc)
            names = ('shown', 'clicked', 'disliked', 'scores', 'user', 'head')
            given = {name: getattr(parameters, name) for name in names}
            vector = np.asarray(doc.embedding, dtype=np.float32)
            entries.append(Feedback(text=doc.text or '', vector=vector, model=self.spec.fingerprint, **given))
        stored = await self.writing.run(parameters, lambda: self._log().append(entries))
        return wire.result_document(self.stage, {'stored': stored})

    @endpoint('/feedback/stats', parse=Parameters)
    async def feedback_stats(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/feedback/stats`: sums, of which the ranker makes what people read."""

        def read() -> dict[str, Any]:
            # By a connection of its own: sums over a long log hold up no feedback.
            with closing(FeedbackLog(self.settings.workspace, self.shard)) as log:
                return log.stats()

        return wire.result_document(self.stage, await self.work.run(parameters, read))

    @endpoint('/feedback/export', parse=ExportParameters)
    async def feedback_export(self, docs: DocumentArray, parameters: ExportParameters) -> DocumentArray:
        """`/feedback/export`: how far the log goes, then a Document for each entry of the page."""

        def read() -> tuple[int, list[Feedback]]:
            log = self._log()
            return log.last(), log.page(parameters.after, parameters.limit, parameters.user)

        last, entries = await self.writing.run(parameters, read)
        reply = wire.result_document(self.stage, {'last': last})
        reply.extend(Document(text=entry.text, embedding=entry.vector, tags=entry.tags()) for entry in entries)
        return reply

    @endpoint('/feedback/purge', parse=PurgeParameters)
    async def feedback_purge(self, docs: DocumentArray, parameters: PurgeParameters) -> DocumentArray:
        """`/feedback/purge`: one Document with the count in its tags."""
        user, before = parameters.user, parameters.before
        count = await self.writing.run(parameters, lambda: self._log().purge(user, before))
        return wire.result_document(self.stage, {'deleted': count})

    @endpoint('/status', parse=Parameters)
    async def tell(self, docs: DocumentArray, parameters: Parameters) -> DocumentArray:
        """`/status`."""
        place = {} if self.shards == 1 else {'shard': self.shard, 'shards': self.shards}
        waiting = sum(queue.taken for queue in {self.work, self.changes})
        reply = await self.status(docs, waiting=waiting, **await self.found(parameters), **place, **self.place())
        if place:
            reply[-1].id = reply[-1].tags['stage'] = f'{self.stage}_{self.shard}'
        return reply

    def _nearest(self, queries: NDArray[np.float32], asked: Query) -> list[list[Hit]]:
        """As the index; what a pattern in the filter may take is for the whole request."""
        with one_request():
            return self._index.search(queries, asked)

    def _tells_sample(self, parameters: SearchParameters) -> bool:
        compared = parameters.relevance is not None or 'percentile' in parameters.include
        return 'probability' in parameters.include or (compared and self.shards > 1)

    def _query(self, parameters: SearchParameters, *, texts: bool) -> Query:
        alone = self.shards == 1
        # One shard knows a part of the sample only. In the order of a tag it has to decide by itself all the same.
        decides = alone or parameters.sort_by is not None
        return Query(
            limit=parameters.reach,
            matching=None if parameters.filter is None else self.compiled(parameters.filter),
            min_score=parameters.min_score,
            relevance=parameters.relevance if decides else None,
            group_by=parameters.group_by,
            dedup=parameters.dedup,
            sort_by=parameters.sort_by,
            thumbnails='thumbnail' in parameters.include,
            vectors=parameters.compares or 'embedding' in parameters.include,
            percentiles=alone and 'percentile' in parameters.include,
            effort=Effort(parameters.nprobe, parameters.ef_search),
            shared=not alone,
            texts=texts,
        )

    def _document(self, record: Record, include: Collection[str]) -> Document:
        doc = document_of(record, include)
        if 'key' in include:
            # One number for all shards.
            doc.tags[wire.KEY] = record.key * self.shards + self.shard
        return doc

    def _match(self, hit: Hit, parameters: SearchParameters) -> Document:
        # Near-duplicates on different shards are found by the ranker, which needs the vectors for it, and to mix.
        include = [*parameters.include, 'embedding'] if parameters.compares else parameters.include
        match = self._document(hit.record, include)
        match.scores['cosine'] = NamedScore(value=hit.score)
        if hit.percentile is not None:
            match.scores['percentile'] = NamedScore(value=hit.percentile)
        if hit.mark is not None:
            match.tags[wire.SORT] = list(hit.mark)
        if parameters.group_by is not None:
            match.tags[wire.GROUP] = hit.group
        return match

    def _log(self) -> FeedbackLog:
        if self._feedback is None:
            self._feedback = FeedbackLog(self.settings.workspace, self.shard)
        return self._feedback

    def _has_key(self, key: int) -> bool:
        return key % self.shards == self.shard

    def _owns(self, identifier: str) -> bool:
        return shard_of(identifier, self.shards) == self.shard

    def _check_model(self, doc: Document) -> str:
        """The precision that the embedding was made with."""
        if doc.embedding is None:
            raise InvalidDocument(f'{doc.id!r}: came without an embedding')
        fingerprint, precision = wire.read_mark(doc.tags.get(wire.MODEL))
        if fingerprint != self.spec.fingerprint:
            raise NotReady(
                f'{doc.id!r}: the encoder runs another model than the indexer ({self.spec.name!r}); try again if the '
                'model is being changed, else give all stages the same CLIPFLOW_MODEL'
            )
        return precision

    def close(self) -> None:
        """See `Room`."""
        super().close()
        if hasattr(self, '_index'):
            self.writing.close()
            self.changes.close()
            self._index.close()
            if self._feedback is not None:
                self._feedback.close()

"""The asyncio client: one kept gRPC channel, Jina's protocol, retries of what may pass."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import grpc
import numpy as np
from docarray import Document, DocumentArray
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest
from numpy.typing import NDArray

from clipflow import errors, wire
from clipflow.clicks import Feedback
from clipflow.errors import (
    ClipflowError,
    Internal,
    InvalidDocument,
    InvalidParameter,
    NotFound,
    Timeout,
    TooLarge,
    Unavailable,
)
from clipflow.tags import plain_tags
from clipflow_client.items import Item, document, name_of, several
from clipflow_client.results import Match, Matches, Outcome, matches_of, outcome_of

_METHOD = '/jina.JinaSingleDataRequestRPC/process_single_data'
_OPTIONS = [
    ('grpc.max_send_message_length', -1),
    ('grpc.max_receive_message_length', -1),
    ('grpc.enable_http_proxy', 0),
    # gRPC waits up to two minutes before it looks again for a service that was away, and 20 s for an address without
    # answer.
    ('grpc.initial_reconnect_backoff_ms', 200),
    ('grpc.max_reconnect_backoff_ms', 1000),
    ('grpc.min_reconnect_backoff_ms', 2000),
]
_BATCH_BYTES = 2_000_000
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 3.0


class AsyncClient:
    """A client of one service; safe to use from many tasks at once.

    Args:
        address: host and port of the service's gRPC; `grpcs://` before it for TLS.
        timeout: seconds for one request, its retries included; it travels with the request.
        retries: how often a request is sent again after an error that may pass, or those of its documents that came
            back with one. What must not be done twice (`wire.ONCE`) is sent once.
        api_key: if the service wants one.
    """

    def __init__(
        self, address: str = '127.0.0.1:51000', *, timeout: float = 120.0, retries: int = 8, api_key: str = ''
    ) -> None:
        scheme, _, place = address.rpartition('://')
        if scheme in ('grpcs', 'https'):
            self._channel = grpc.aio.secure_channel(place, grpc.ssl_channel_credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(place, options=_OPTIONS)
        if not (api_key.isascii() and api_key.isprintable()):
            raise InvalidParameter('the API key holds characters that cannot be sent, such as the end of a line')
        self._metadata = (('authorization', f'Bearer {api_key}'),) if api_key else ()
        self._call = self._channel.unary_unary(
            _METHOD, request_serializer=lambda request: request.SerializeToString(), response_deserializer=DataRequest
        )
        self._address = address
        self._timeout = timeout
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def search(self, query: Item, **parameters: Any) -> Matches:
        """The matches of one query, best first.

        Args:
            query: see `Item`; a Document with weighted `chunks` is a composed query.
            parameters: of `/search`, for instance limit, offset, filter, min_score, group_by, include.
        """
        return (await self.search_many([query], **parameters))[0]

    async def search_many(self, queries: Sequence[Item], **parameters: Any) -> list[Matches]:
        """The matches of each query."""
        docs = DocumentArray([document(query) for query in several(queries)])
        found = [_sound(doc) for doc in await self.post('/search', docs, parameters)]
        return [matches_of(doc) for doc in found]

    async def encode(self, items: Sequence[Item], **parameters: Any) -> NDArray[np.float32]:
        """Embeddings of N items, float32 of unit length, [N, D], in their order."""
        numbered = [Document(document(item), id=str(position)) for position, item in enumerate(several(items))]
        rows: dict[str, NDArray[np.float32]] = {}
        async for reply in self.stream('/encode', numbered, parameters):
            for doc in reply:
                if _sound(doc).embedding is None:
                    raise InvalidDocument(f'item {doc.id} has no content')
                rows[doc.id] = doc.embedding
        return np.stack([rows[doc.id] for doc in numbered]) if numbered else np.empty((0, 0), np.float32)

    async def index(self, items: Iterable[Item] | AsyncIterable[Item], **parameters: Any) -> AsyncIterator[Outcome]:
        """Store items, any number of them, in constant memory; yields what became of each, as it is known."""
        async for reply in self.stream('/index', items, parameters):
            for doc in reply:
                yield outcome_of(doc)

    async def update(self, tags: dict[str, dict[str, Any]]) -> list[Outcome]:
        """Merge tags into stored documents by id; a value of None removes the tag."""
        docs = DocumentArray([document(Document(id=name, tags=patch)) for name, patch in tags.items()])
        return [outcome_of(doc) for doc in await self.post('/update', docs)]

    async def get(self, ids: Sequence[str], **parameters: Any) -> dict[str, Document]:
        """Stored documents by id; unknown ids are left out.

        Raises:
            ClipflowError: a shard that keeps one of them is away.
        """
        reply = await self.post('/get', DocumentArray(), {'ids': list(several(ids)), **parameters})
        return {doc.id: _sound(doc) for doc in reply if not isinstance(wire.error_of(doc), NotFound)}

    async def delete(self, ids: Sequence[str] = (), filter: dict[str, Any] | None = None) -> int:
        """Delete by ids, by a filter or both; returns how many documents are gone."""
        parameters = {'ids': list(several(ids))} | ({'filter': filter} if filter is not None else {})
        reply = await self.post('/delete', DocumentArray(), parameters)
        return int(_sound(reply[0]).tags['deleted'])

    async def clear(self) -> int:
        """Delete everything; returns how many documents are gone."""
        return int((await self.post('/clear', DocumentArray()))[0].tags['deleted'])

    async def status(self) -> dict[str, dict[str, Any]]:
        """What each stage says of itself, by its name."""
        return {doc.id: plain_tags(doc) for doc in await self.post('/status', DocumentArray())}

    async def feedback(
        self,
        query: Item,
        shown: Sequence[str] | Sequence[Match],
        clicked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        *,
        user: str = '',
        **parameters: Any,
    ) -> None:
        """Say which of the results were good; on return it is on disk.

        Args:
            query: what was searched.
            shown: the results in their order: as `search` gave them, with their scores, or their ids.
            clicked, disliked: ids of some of them.
            user: any name that you use for a person; entries can be exported and deleted by it.
            parameters: further ones of `/feedback`.
        """
        found = [item for item in shown if isinstance(item, Match)]
        if found:
            parameters = {'scores': [match.score for match in found], **parameters}
        ids = [item.id if isinstance(item, Match) else item for item in shown]
        given = {'shown': ids, 'clicked': list(clicked), 'disliked': list(disliked), 'user': user}
        await self.post('/feedback', DocumentArray([document(query)]), given | parameters)

    async def feedback_stats(self) -> dict[str, Any]:
        """How much feedback there is; `places` says how much a click depends on the place of a result."""
        return plain_tags(_sound((await self.post('/feedback/stats', DocumentArray()))[0]))

    async def feedback_log(self, user: str | None = None, *, page: int = 500) -> AsyncIterator[Feedback]:
        """All entries of the log, or those of one user, in pages of up to `page` from each shard."""
        after, last = 0, 1
        while after < last:
            asked = {'after': after, 'limit': page} | ({} if user is None else {'user': user})
            told, *entries = await self.post('/feedback/export', DocumentArray(), asked)
            for doc in entries:
                yield Feedback.of(doc.tags, doc.text, doc.embedding)
            after, last = after + page, int(_sound(told).tags['last'])

    async def purge_feedback(self, user: str | None = None, before: float | None = None) -> int:
        """Delete entries of a user, or those older than `before` (seconds since the epoch), or both; the number."""
        given = {name: value for name, value in (('user', user), ('before', before)) if value is not None}
        return int(_sound((await self.post('/feedback/purge', DocumentArray(), given))[0]).tags['deleted'])

    async def ranker(self, do: str, *, path: str = '', content: bytes = b'', force: bool = False) -> dict[str, Any]:
        """Change the head that orders results; what the ranker says then.

        Args:
            do: `load`, `rollback` or `off`.
            path: for `load`, of a file in the directory of heads; or
            content: of a file.
            force: load a head that has not passed its check.
        """
        docs = DocumentArray([Document(blob=content)] if content else [])
        reply = await self.post('/ranker', docs, {'do': do, 'path': path, 'force': force})
        return plain_tags(_sound(reply[0]))

    async def post(self, endpoint: str, docs: DocumentArray, parameters: dict[str, Any] | None = None) -> DocumentArray:
        """One request to any endpoint; the Documents of its reply.

        Raises:
            ClipflowError: what the service answered, after the retries.
        """
        until = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        retries = 0 if endpoint in wire.ONCE else self._retries
        answers = _Answers(docs)
        for attempt in range(retries + 1):
            last = attempt == retries or until - time.monotonic() < pause
            try:
                answers.take(await self._once(endpoint, answers.asked, parameters or {}, until))
                if last or not answers.asked:
                    return answers.all
            except ClipflowError as error:
                if not error.retryable or last:
                    if answers.all:  # what came back before stands, with the errors in it
                        return answers.all
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        raise AssertionError('unreachable')

    async def stream(
        self,
        endpoint: str,
        items: Iterable[Item] | AsyncIterable[Item],
        parameters: dict[str, Any] | None = None,
        *,
        batch: int = 16,
        window: int = 4,
    ) -> AsyncIterator[DocumentArray]:
        """Send items in requests of up to `batch` Documents or 2 MB, `window` of them at once; replies as they come.

        Items that cannot become Documents, or are too large for a request, come back with an error, like those that the
        service refuses.
        """
        running: set[asyncio.Task[DocumentArray]] = set()
        refused = DocumentArray()
        try:
            async for docs in _batches(several(items), batch, refused):
                running.add(asyncio.create_task(self._sent(endpoint, docs, parameters)))
                if len(running) >= window:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
            if refused:
                yield refused
        finally:
            for task in running:
                task.cancel()

    async def _sent(self, endpoint: str, docs: DocumentArray, parameters: dict[str, Any] | None) -> DocumentArray:
        """As `post`, but what makes a request too large is the fault of single Documents, and theirs alone."""
        try:
            return await self.post(endpoint, docs, parameters)
        except TooLarge as error:
            if len(docs) == 1:
                refused = Document(id=docs[0].id)
                wire.fail(refused, error, 'client')
                return DocumentArray([refused])
        return DocumentArray(
            [doc for one in docs for doc in await self._sent(endpoint, DocumentArray([one]), parameters)]
        )

    async def _once(
        self, endpoint: str, docs: DocumentArray, parameters: dict[str, Any], until: float
    ) -> DocumentArray:
        request = DataRequest()
        request.header.request_id = uuid.uuid4().hex
        request.header.exec_endpoint = endpoint
        try:
            request.parameters = parameters
            request.data.docs = docs
        except UnicodeEncodeError:
            raise InvalidParameter('a text of the request holds half a surrogate pair, which cannot be sent') from None
        except (TypeError, ValueError) as error:  # what protobuf raises
            raise InvalidParameter(f'the request holds a value that JSON does not know: {error.args[-1]}') from None
        try:
            left = max(0.001, until - time.monotonic())
            reply = await self._call(request, timeout=left, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self._address) from None
        if reply.status.code == jina_pb2.StatusProto.ERROR:
            raise errors.from_description(reply.status.description)
        if reply.proto_with_data.data.WhichOneof('documents') == 'docs_bytes':
            raise Internal(f'{self._address} answers with a pickle, which is not read; it is not clipflow')
        return cast(DocumentArray, reply.docs)


class _Answers:
    """The Documents of a reply, of which some may have to be asked for again.

    Attributes:
        asked: what is to be sent: first all, later those that came back with an error that may pass.
        all: what has come back.
    """

    def __init__(self, docs: DocumentArray) -> None:
        self._sent = self.asked = docs
        self._places: list[int] = []
        self.all = DocumentArray()

    def take(self, reply: DocumentArray) -> None:
        """What came back of `asked`."""
        if not self._places:
            self.all = reply
            self._places = list(range(len(reply)))
        else:
            found = list(self.all)
            for place, doc in zip(self._places, reply, strict=True):
                found[place] = doc
            self.all = DocumentArray(found)
        # A reply that is not Document for Document (`/get`, `/delete`) cannot be asked for in parts.
        self._places = [place for place in self._places if _may_pass(self.all[place])]
        parted = len(self.all) == len(self._sent)
        self.asked = DocumentArray([self._sent[place] for place in self._places]) if parted else DocumentArray()


def _may_pass(doc: Document) -> bool:
    error = wire.error_of(doc)
    return error is not None and error.retryable


async def _batches(
    items: Iterable[Item] | AsyncIterable[Item], batch: int, refused: DocumentArray
) -> AsyncIterator[DocumentArray]:
    """Documents in groups; items that are none are put into `refused`, with their error."""
    docs, size = DocumentArray(), 0
    async for item in _each(items):
        try:
            doc = document(item)
        except InvalidDocument as error:
            refused.append(Document(id=name_of(item)))
            wire.fail(refused[-1], error, 'client')
            continue
        weight = len(doc.blob or b'') + (doc.tensor.nbytes if isinstance(doc.tensor, np.ndarray) else 0)
        if docs and (len(docs) >= batch or size + weight > _BATCH_BYTES):
            yield docs
            docs, size = DocumentArray(), 0
        docs.append(doc)
        size += weight
    if docs:
        yield docs


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _sound(doc: Document) -> Document:
    error = wire.error_of(doc)
    if error is not None:
        raise error
    return doc


def _translated(error: grpc.aio.AioRpcError, address: str) -> ClipflowError:
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Timeout(f'{address} did not answer in time')
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Unavailable(f'{address} cannot be reached; is the service running ("clipflow serve")?')
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge('the request is larger than the service takes; send fewer or smaller documents at once')
    return Internal(f'{address} failed: {code.name.lower()}: {str(error.details())[:200]}')

"""The client for ordinary code: the asyncio client on an event loop of its own, in a thread of its own.

So it also works inside a notebook, where a loop is running already, and from many threads at once.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from clipflow.clicks import Feedback
from clipflow_client.aio import AsyncClient
from clipflow_client.items import Item, several
from clipflow_client.results import Match, Matches, Outcome

T = TypeVar('T')
_GONE = 'the client is closed, or was made before this process was forked; make another one'
_END: Any = object()


class Client:
    """See `AsyncClient`: the same calls, blocking."""

    def __init__(
        self, address: str = '127.0.0.1:51000', *, timeout: float = 120.0, retries: int = 8, api_key: str = ''
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._thread = threading.Thread(target=self._loop.run_forever, name='clipflow-client', daemon=True)
        self._thread.start()
        self._client = self._wait(_make(address, timeout, retries, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel and end the thread; whoever waits for an answer gets a RuntimeError."""
        if self._thread.is_alive():
            self._wait(_end(self._client))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def search(self, query: Item, **parameters: Any) -> Matches:
        """See `AsyncClient.search`."""
        return self._wait(self._client.search(query, **parameters))

    def search_many(self, queries: Sequence[Item], **parameters: Any) -> list[Matches]:
        """See `AsyncClient.search_many`."""
        return self._wait(self._client.search_many(queries, **parameters))

    def encode(self, items: Sequence[Item], **parameters: Any) -> NDArray[np.float32]:
        """See `AsyncClient.encode`."""
        return self._wait(self._client.encode(items, **parameters))

    def index(self, items: Iterable[Item], **parameters: Any) -> list[Outcome]:
        """Store items and return what became of each. For more than memory holds, see `index_iter`."""
        return list(self.index_iter(items, **parameters))

    def index_iter(self, items: Iterable[Item], **parameters: Any) -> Iterator[Outcome]:
        """Store items, any number of them, in constant memory; yields what became of each, as it is known.

        The items are taken in the thread that asks for the outcomes, and while it does so.
        """
        handed = _Handed(several(items))
        return self._each(self._client.index(handed, **parameters), handed.serve)

    def update(self, tags: dict[str, dict[str, Any]]) -> list[Outcome]:
        """See `AsyncClient.update`."""
        return self._wait(self._client.update(tags))

    def get(self, ids: Sequence[str], **parameters: Any) -> dict[str, Document]:
        """See `AsyncClient.get`."""
        return self._wait(self._client.get(ids, **parameters))

    def delete(self, ids: Sequence[str] = (), filter: dict[str, Any] | None = None) -> int:
        """See `AsyncClient.delete`."""
        return self._wait(self._client.delete(ids, filter))

    def clear(self) -> int:
        """See `AsyncClient.clear`."""
        return self._wait(self._client.clear())

    def status(self) -> dict[str, dict[str, Any]]:
        """See `AsyncClient.status`."""
        return self._wait(self._client.status())

    def feedback(
        self,
        query: Item,
        shown: Sequence[str] | Sequence[Match],
        clicked: Sequence[str] = (),
        disliked: Sequence[str] = (),
        *,
        user: str = '',
        **parameters: Any,
    ) -> None:
        """See `AsyncClient.feedback`."""
        self._wait(self._client.feedback(query, shown, clicked, disliked, user=user, **parameters))

    def feedback_stats(self) -> dict[str, Any]:
        """See `AsyncClient.feedback_stats`."""
        return self._wait(self._client.feedback_stats())

    def feedback_log(self, user: str | None = None) -> Iterator[Feedback]:
        """See `AsyncClient.feedback_log`."""
        return self._each(self._client.feedback_log(user))

    def purge_feedback(self, user: str | None = None, before: float | None = None) -> int:
        """See `AsyncClient.purge_feedback`."""
        return self._wait(self._client.purge_feedback(user, before))

    def ranker(self, do: str, *, path: str = '', content: bytes = b'', force: bool = False) -> dict[str, Any]:
        """See `AsyncClient.ranker`."""
        return self._wait(self._client.ranker(do, path=path, content=content, force=force))

    def post(self, endpoint: str, docs: DocumentArray, parameters: dict[str, Any] | None = None) -> DocumentArray:
        """See `AsyncClient.post`."""
        return self._wait(self._client.post(endpoint, docs, parameters))

    def _each(self, items: AsyncIterator[T], meanwhile: Callable[[Future[Any]], None] | None = None) -> Iterator[T]:
        try:
            while (item := self._wait(_next(items), meanwhile)) is not None:
                yield item
        finally:
            if self._thread.is_alive():
                self._wait(items.aclose())  # type: ignore[attr-defined]

    def _wait(self, call: Coroutine[Any, Any, T], meanwhile: Callable[[Future[Any]], None] | None = None) -> T:
        if not self._thread.is_alive():
            call.close()
            raise RuntimeError(_GONE)
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            if meanwhile is not None:
                meanwhile(future)
            return future.result()
        except CancelledError:
            raise RuntimeError(_GONE) from None
        except BaseException:
            future.cancel()
            raise


class _Handed:
    """Items for the loop from the thread that waits for it: they may come from a database, or from this client."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._asked: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            wish: Future[Any] = Future()
            self._asked.put(wish)
            if (item := await asyncio.wrap_future(wish)) is _END:
                return
            yield item

    def serve(self, answer: Future[Any]) -> None:
        """Hand over items, as they are asked for, until there is an answer."""
        answer.add_done_callback(self._asked.put)
        while (wish := self._asked.get()) is not answer:
            try:
                wish.set_result(next(self._items, _END))
            except Exception as error:
                wish.set_exception(error)


async def _end(client: AsyncClient) -> None:
    """Close a client, and give up what waits for its next attempt."""
    await client.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """gRPC wakes the loops of all clients of a process; those for which there is nothing raise this."""
    if not isinstance(context.get('exception'), BlockingIOError):
        loop.default_exception_handler(context)


async def _make(address: str, timeout: float, retries: int, api_key: str) -> AsyncClient:
    """The channel belongs to the loop in which it is made."""
    return AsyncClient(address, timeout=timeout, retries=retries, api_key=api_key)


async def _next(items: AsyncIterator[T]) -> T | None:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return None

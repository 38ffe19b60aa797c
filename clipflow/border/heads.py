"""What the gateway knows of the head that orders results in the ranker: so no stage has to know another.

A head needs more candidates than are shown, with their vectors, and the indexer sends those where `__candidates` asks
for it. With it goes `__head`, the version that the gateway takes for live. If another one is, the ranker refuses, and
the search is sent again as it should have been: so a change costs one search twice, and no search anything else.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from docarray import DocumentArray
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.errors import Conflict

_CHANGED = re.compile(r'head=(?P<version>[0-9a-f]*) depth=(?P<depth>\d+)')

Send = Callable[[DataRequest, float], Awaitable[DataRequest]]


@dataclass(frozen=True)
class Known:
    """The live head: its version, empty for none, and how many matches it puts in its order."""

    version: str
    depth: int


def changed(version: str, depth: int) -> Conflict:
    """What the ranker says to a search that takes another head for live; only the gateway reads it."""
    return Conflict(f'the search was prepared for another head than the live one; head={version} depth={depth}')


class Heads:
    """See the module.

    Args:
        send: passes a request through the stages; its deadline is in seconds since the epoch.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._known: Known | None = None
        self._asking = asyncio.Lock()

    async def send(self, request: DataRequest, deadline: float) -> DataRequest:
        """As `send`, with what ranker and log need to know of the head.

        Raises:
            ClipflowError: a stage cannot be reached, or does not answer in time.
        """
        endpoint = request.header.exec_endpoint
        if endpoint == '/search' and _is_ranked(request):
            return await self._search(request, deadline)
        if endpoint == '/feedback' and not _declines(request):
            known = await self._learned(deadline)
            request.proto_wo_data.parameters[wire.HEAD] = known.version
        reply = await self._send(request, deadline)
        if endpoint == '/ranker':
            self._known = None
        return reply

    async def _search(self, request: DataRequest, deadline: float) -> DataRequest:
        known = await self._learned(deadline)
        parameters = request.proto_wo_data.parameters
        parameters[wire.HEAD] = known.version
        _ask_for_candidates(request, known)
        reply = await self._send(request, deadline)
        news = _news(reply)
        if news is None:
            return reply
        self._known = news
        # Replicas of the ranker may learn of a change a second apart: whatever head is live there now, it is taken.
        del parameters[wire.HEAD]
        _ask_for_candidates(request, news)
        return await self._send(request, deadline)

    async def _learned(self, deadline: float) -> Known:
        """What is live; asks the ranker the first time, and after it was told to change."""
        if self._known is not None:
            return self._known
        async with self._asking:
            if self._known is None:
                request = DataRequest()
                request.header.exec_endpoint = '/status'
                request.header.target_executor = '^ranker$'
                request.parameters = {wire.DEADLINE: deadline}
                request.data.docs = DocumentArray()
                reply = await self._send(request, deadline)
                told = [doc.tags for doc in reply.docs if doc.id == 'ranker' and 'head_depth' in doc.tags]
                version = str(told[0]['head']) if told else 'none'
                known = Known('' if version == 'none' else version, int(told[0]['head_depth']) if told else 0)
                if reply.status.code == jina_pb2.StatusProto.ERROR:
                    return known
                self._known = known
            return self._known


def _is_ranked(request: DataRequest) -> bool:
    """Whether the head is to order the results: not where a tag does, or where the caller declines."""
    by_tag = 'sort_by' in request.proto_wo_data.parameters
    return not request.header.target_executor and not by_tag and not _declines(request)


def _declines(request: DataRequest) -> bool:
    parameters = request.proto_wo_data.parameters
    return 'rerank' in parameters and parameters['rerank'] is False


def _ask_for_candidates(request: DataRequest, known: Known) -> None:
    parameters = request.proto_wo_data.parameters
    if known.version:
        parameters[wire.CANDIDATES] = known.depth
    elif wire.CANDIDATES in parameters:
        del parameters[wire.CANDIDATES]


def _news(reply: DataRequest) -> Known | None:
    """What the ranker says of the live head where it is another one."""
    status = reply.status
    if status.code != jina_pb2.StatusProto.ERROR or not status.description.startswith(Conflict.code):
        return None
    found = _CHANGED.search(status.description)
    return Known(found['version'], int(found['depth'])) if found else None

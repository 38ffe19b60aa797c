"""What people thought of results, and the head of the ranker that learns from it."""

from collections.abc import AsyncIterator
from typing import Any, Literal

from docarray import DocumentArray
from fastapi import APIRouter
from fastapi import Query as Parameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from clipflow import wire
from clipflow.clicks import Feedback
from clipflow.tags import plain_tags
from clipflow.web import bodies
from clipflow.web.content import Query, query_document
from clipflow.web.flow import FlowCall, only

_MOST = 1000
_PAGE = 500


class FeedbackRequest(BaseModel):
    """The body of `/v1/feedback`."""

    model_config = ConfigDict(extra='forbid')
    query: Query
    shown: list[str] = Field(min_length=1, max_length=_MOST, description='ids of the results, in their order')
    scores: list[float] = Field([], max_length=_MOST, description='their scores, in the same order')
    clicked: list[str] = []
    disliked: list[str] = []
    user: str = Field('', max_length=wire.MAX_ID_BYTES)
    templates: list[str] | None = Field(None, description='as in the search')
    rerank: bool | None = Field(None, description='as in the search')


class Place(BaseModel):
    """One place in the list of results."""

    place: int = Field(description='from 1 on')
    shown: int
    clicked: int
    propensity: float = Field(description='how probable it is that it is looked at, relative to the first')


class FeedbackStats(BaseModel):
    """What is in the log."""

    entries: int
    clicked: int = Field(description='results that were clicked')
    disliked: int
    users: int = Field(description='that have a name')
    heads: dict[str, int] = Field(description='entries by the version of the head; empty: without one')
    first: float | None = Field(description='time of the first entry, in seconds since the epoch')
    last: float | None
    places: list[Place]


class RankerRequest(BaseModel):
    """The body of `POST /v1/ranker`."""

    model_config = ConfigDict(extra='forbid')
    do: Literal['load', 'rollback', 'off']
    path: str = Field('', description='for `load`: a file in the directory of heads')
    force: bool = Field(False, description='load a head that did not pass its check')


class RankerState(BaseModel):
    """Which head orders results."""

    head: str = Field(description='its version, or `none`')
    head_file: str = Field(description='the file that is watched; empty for none')
    head_made: str
    heads_before: list[str] = Field(description='what `rollback` leads to, the latest first')
    warnings: list[str]


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['learning'])

    @routes.post('/feedback', summary='Say which of the results were good')
    async def feedback(request: FeedbackRequest) -> dict[str, int]:
        query = await query_document(flow, request.query)
        parameters = request.model_dump(exclude={'query'}, exclude_none=True)
        return {'stored': int(only(await flow('/feedback', DocumentArray([query]), parameters)).tags['stored'])}

    @routes.get('/feedback/stats', summary='How much feedback there is, and how much a click depends on its place')
    async def stats() -> FeedbackStats:
        return FeedbackStats(**plain_tags(only(await flow('/feedback/stats', DocumentArray(), {}))))

    @routes.get(
        '/feedback',
        summary='The entries of the log, one a line',
        response_class=Response,
        responses={200: {'content': {bodies.LINES: {}}}},
    )
    async def export(
        user: str | None = Parameter(None, min_length=1, description='of this user only'),
    ) -> StreamingResponse:
        first = await _page(flow, 0, user)  # what is wrong is known before the answer begins
        return StreamingResponse(_lines(flow, first, user), media_type=bodies.LINES)

    @routes.delete('/feedback', summary='Delete entries of a user, or old ones')
    async def purge(
        user: str | None = Parameter(None, min_length=1, description='of this user only'),
        before: float | None = Parameter(None, description='older than this, in seconds since the epoch'),
    ) -> dict[str, int]:
        given = {name: value for name, value in (('user', user), ('before', before)) if value is not None}
        return {'deleted': int(only(await flow('/feedback/purge', DocumentArray(), given)).tags['deleted'])}

    @routes.get('/ranker', summary='Which head orders results')
    async def ranker() -> RankerState:
        told = {doc.id: plain_tags(doc) for doc in await flow('/status', DocumentArray(), {})}
        return _state(told['ranker'])

    @routes.post('/ranker', summary='Load another head, go back to the one before, or switch it off')
    async def change(request: RankerRequest) -> RankerState:
        return _state(plain_tags(only(await flow('/ranker', DocumentArray(), request.model_dump()))))

    return routes


def _state(tags: dict[str, Any]) -> RankerState:
    return RankerState(**{name: tags[name] for name in RankerState.model_fields})


async def _page(flow: FlowCall, after: int, user: str | None) -> tuple[int, list[Feedback]]:
    asked = {'after': after, 'limit': _PAGE} | ({} if user is None else {'user': user})
    told, *entries = await flow('/feedback/export', DocumentArray(), asked)
    return int(told.tags['last']), [Feedback.of(doc.tags, doc.text, doc.embedding) for doc in entries]


async def _lines(flow: FlowCall, page: tuple[int, list[Feedback]], user: str | None) -> AsyncIterator[str]:
    after = 0
    while True:
        last, entries = page
        for entry in entries:
            yield entry.line() + '\n'
        after += _PAGE
        if after >= last:
            return
        page = await _page(flow, after, user)

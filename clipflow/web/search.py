"""`POST /v1/search`."""

import base64
import json
from typing import Any, Literal

from docarray import DocumentArray
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from clipflow import wire
from clipflow.errors import InvalidParameter
from clipflow.web import bodies
from clipflow.web.content import Query, query_document
from clipflow.web.flow import FlowCall, match_json, only

Include = Literal['tags', 'uri', 'percentile', 'probability', 'embedding']


class SearchRequest(Query):
    """One content or a composed `query`; the other fields are those of the endpoint /search."""

    limit: int = Field(10, ge=1, le=wire.MAX_LIMIT)
    offset: int = Field(0, ge=0)
    filter: dict[str, Any] | None = None
    min_score: float | None = None
    relevance: float | None = None
    group_by: str | None = None
    dedup: float | None = None
    sort_by: str | None = None
    diversity: float | None = Field(None, description='0 to 1: how much results are to differ from each other')
    nprobe: int | None = None
    ef_search: int | None = None
    rerank: bool | None = Field(None, description='false: in the order of the cosine, although a head is live')
    templates: list[str] | None = Field(None, description='those of the service by default; [] for none')
    include: list[Include] | None = None

    def parameters(self) -> dict[str, Any]:
        """For the Flow."""
        names = type(self).model_fields.keys() - Query.model_fields.keys()
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}


class Match(BaseModel):
    """One result."""

    id: str
    score: float = Field(description='cosine, -1 to 1')
    uri: str | None
    text: str | None
    tags: dict[str, Any]
    head: float | None = Field(None, description='score of the head of the ranker, where one is live')
    percentile: float | None = Field(None, description='share of the collection that scores lower, if asked for')
    probability: float | None = Field(
        None, description='that it is what the text asks for, if asked for; of pictures, and not of texts'
    )
    embedding: list[float] | None = Field(None, description='if asked for')


class SearchReply(BaseModel):
    """Results, best first."""

    matches: list[Match]
    partial: bool = Field(description='whether a part of the collection did not answer')


_FORM = {
    'image': {'type': 'string', 'format': 'binary'},
    'request': {'type': 'string', 'description': 'the other fields, as JSON'},
}


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['search'])

    @routes.post(
        '/search',
        summary='Find documents by text, image, URI, stored id, embedding or a composition of them',
        response_model_exclude_unset=True,
        openapi_extra=bodies.described(SearchRequest, _FORM, 'image'),
    )
    async def search(request: Request) -> SearchReply:
        asked = await _request_of(request)
        doc = await query_document(flow, asked)
        reply = only(await flow('/search', DocumentArray([doc]), asked.parameters()))
        return SearchReply(
            matches=[Match(**match_json(match)) for match in reply.matches], partial=wire.PARTIAL in reply.tags
        )

    return routes


async def _request_of(request: Request) -> SearchRequest:
    kind = bodies.media_type(request.headers.get('content-type', ''))
    if kind == bodies.JSON:
        return bodies.parsed(SearchRequest, await request.body())
    if kind != bodies.FORM:
        raise bodies.refused(kind, bodies.JSON, bodies.FORM)
    async with request.form(max_files=1) as form:
        file = form.get('image')
        if not isinstance(file, UploadFile):
            raise InvalidParameter("the form has no file in its field 'image'")
        rest = bodies.json_object(str(form.get('request') or '{}'))
        if rest is None:
            raise InvalidParameter("the field 'request' of the form is not a JSON object")
        image = base64.b64encode(await file.read()).decode()
        return bodies.parsed(SearchRequest, json.dumps({**rest, 'image': image}).encode())

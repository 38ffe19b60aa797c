"""The collection as a whole: pages of it, what its tags are, deletion by a condition, and the original files."""

import mimetypes
from typing import Any

import anyio.to_thread
from docarray import DocumentArray
from fastapi import APIRouter, Query, Response

from clipflow import wire
from clipflow.errors import InvalidFilter, InvalidParameter, NotFound
from clipflow.settings import GatewaySettings
from clipflow.sources import Sources
from clipflow.tags import plain_tags
from clipflow.web import bodies
from clipflow.web.documents import INCLUDE, Include, included
from clipflow.web.flow import FlowCall, document_json, only

_SHOWN = frozenset(f'image/{kind}' for kind in ('jpeg', 'png', 'webp', 'gif', 'avif', 'bmp', 'tiff'))
"""What browsers show as a picture and never run."""


def router(flow: FlowCall, settings: GatewaySettings) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['documents'])
    sources = Sources(settings.file_roots, False, settings.max_request_bytes, settings.request_timeout)

    @routes.get('/documents', summary='A page of the stored documents, in the order in which they came')
    async def page(
        limit: int = Query(10, ge=1, le=wire.MAX_LIMIT),
        offset: int = Query(0, ge=0, le=10**9),
        filter: str | None = Query(None, description='a condition on tags, as JSON'),
        include: Include = INCLUDE,
    ) -> dict[str, Any]:
        parameters = {'limit': limit, 'offset': offset, **_condition(filter), **included(include)}
        return {'documents': [document_json(doc) for doc in await flow('/get', DocumentArray(), parameters)]}

    @routes.delete('/documents', summary='Delete all documents that pass a condition, or all')
    async def delete(
        filter: str | None = Query(None, description='a condition on tags, as JSON'),
        all: bool = Query(False, description='delete everything'),
    ) -> dict[str, int]:
        if all == (filter is not None):
            raise InvalidParameter("say what to delete: either 'filter' or 'all=true'")
        reply = await flow('/clear' if all else '/delete', DocumentArray(), _condition(filter))
        return {'deleted': int(only(reply).tags['deleted'])}

    @routes.get('/facets', summary='Which tags there are, and how often each of their values comes')
    async def facets(
        limit: int = Query(20, ge=1, le=1000, description='values of each tag'),
        filter: str | None = Query(None, description='a condition on tags, as JSON'),
    ) -> dict[str, Any]:
        found = plain_tags(only(await flow('/facets', DocumentArray(), {'limit': limit, **_condition(filter)})))
        return {'facets': found['facets'], 'sampled': found['sampled']}

    @routes.get('/originals/{id:path}', summary='The file behind the URI of a document', response_class=Response)
    async def original(id: str) -> Response:
        uri = only(await flow('/get', DocumentArray(), {'ids': [id], 'include': ['uri']})).uri
        if not uri:
            raise NotFound(f'the document {id!r} has no URI')
        content = await anyio.to_thread.run_sync(sources.read, uri)
        kind = mimetypes.guess_type(uri.partition('?')[0])[0]
        headers = {
            'X-Content-Type-Options': 'nosniff',
            'Content-Security-Policy': "default-src 'none'; sandbox",
            'Cache-Control': 'private, max-age=60',
        }
        return Response(content, media_type=kind if kind in _SHOWN else 'application/octet-stream', headers=headers)

    return routes


def _condition(text: str | None) -> dict[str, Any]:
    """For the Flow."""
    if text is None:
        return {}
    found = bodies.json_object(text)
    if found is None:
        raise InvalidFilter("'filter' is not a JSON object")
    return {'filter': found}

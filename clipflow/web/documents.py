"""`/v1/documents` and `/v1/thumbnails`: store, read, delete."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import numpy as np
from docarray import Document, DocumentArray
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send

from clipflow import access, wire
from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter, NotFound, TooLarge
from clipflow.tags import check_sendable
from clipflow.web import bodies
from clipflow.web.content import STAGE
from clipflow.web.flow import FlowCall, document_json, error_json, from_base64, only

Include = list[Literal['tags', 'uri', 'embedding']] | None
INCLUDE = Query(None, description='what comes beside id and text; tags and uri by default')
_MAX_FILES = 1000
_LINES_AT_ONCE = 32


class NewDocument(BaseModel):
    """One document to store; without an id it gets one."""

    model_config = ConfigDict(extra='forbid')
    id: str | None = None
    text: str | None = None
    image: str | None = Field(None, description='base64')
    uri: str | None = Field(
        None, description='read only if nothing else is given, and only where the service allows it'
    )
    embedding: list[float] | None = None
    tags: dict[str, Any] = {}

    def document(self) -> Document:
        """For the Flow; what is wrong with it is written into it."""
        doc = Document(tags=_public(self.tags), **({'id': self.id} if self.id is not None else {}))
        with wire.caught(doc, STAGE):
            self._fill(doc)
        return doc

    def _fill(self, doc: Document) -> None:
        wire.check_id(doc)
        if self.uri:
            doc.uri = self.uri
        if self.text:
            doc.text = self.text
        elif self.image:
            doc.blob = from_base64(self.image)
        if self.embedding is not None:
            doc.embedding = np.array(self.embedding, dtype=np.float32)
        check_sendable(doc)


class Patch(BaseModel):
    """The body of `PATCH /v1/documents/{id}`."""

    model_config = ConfigDict(extra='forbid')
    tags: dict[str, Any]


class NewDocuments(BaseModel):
    """The body of `POST /v1/documents` as JSON."""

    model_config = ConfigDict(extra='forbid')
    documents: list[NewDocument] = Field(min_length=1, max_length=_MAX_FILES)


_FORM = {
    'files': {'type': 'array', 'items': {'type': 'string', 'format': 'binary'}},
    'ids': {'type': 'array', 'items': {'type': 'string'}},
    'tags': {'type': 'string', 'description': 'a JSON object, for all files'},
}
_BODY = bodies.described(NewDocuments, _FORM, 'files')
_BODY['requestBody']['content'][bodies.LINES] = {
    'schema': {'type': 'string', 'description': 'one of `documents` a line; what became of it comes back as a line'}
}


class _WhileReading(StreamingResponse):
    """Starlette's own reads from the body too, to see whether the client has gone; `CancelOnDisconnect` sees that."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def router(flow: FlowCall, limit: int) -> APIRouter:
    """The routes.

    Args:
        flow: the way into the Flow.
        limit: of a request in bytes; of JSON lines each line has it, and the whole may be of any length.
    """
    routes = APIRouter(prefix='/v1', tags=['documents'])

    @routes.post(
        '/documents',
        summary='Store documents: JSON, JSON lines, or pictures as multipart',
        openapi_extra=_BODY,
        responses={200: {'content': {bodies.LINES: {}}}},
    )
    async def store(request: Request) -> Any:
        kind = bodies.media_type(request.headers.get('content-type', ''))
        if kind == bodies.LINES:
            access.check(access.current.get(), '/index')  # later it could be said of each line only
            return _WhileReading(_lines(flow, request, limit), media_type=bodies.LINES)
        if kind == bodies.FORM:
            docs = await _from_form(request, limit)
        elif kind in (bodies.JSON, ''):
            body = bodies.parsed(NewDocuments, await request.body())
            docs = DocumentArray([item.document() for item in body.documents])
        else:
            raise bodies.refused(kind, bodies.JSON, bodies.FORM, bodies.LINES)
        outcomes = await _stored(flow, docs)
        if len(outcomes) == 1:
            only(outcomes)
        items = _outcomes(outcomes)
        return {'stored': sum(item['error'] is None for item in items), 'documents': items}

    @routes.get('/documents/{id:path}', summary='Read one document')
    async def read(id: str, include: Include = INCLUDE) -> dict[str, Any]:
        return document_json(only(await flow('/get', DocumentArray(), {'ids': [id], **included(include)})))

    @routes.patch('/documents/{id:path}', summary='Merge tags into those of a document; null removes one')
    async def update(id: str, patch: Patch) -> dict[str, Any]:
        only(await flow('/update', DocumentArray([Document(id=id, tags=_public(patch.tags))]), {}))
        return document_json(only(await flow('/get', DocumentArray(), {'ids': [id]})))

    @routes.delete('/documents/{id:path}', summary='Delete one document; an unknown id is no error')
    async def delete(id: str) -> dict[str, int]:
        reply = only(await flow('/delete', DocumentArray(), {'ids': [id]}))
        return {'deleted': int(reply.tags['deleted'])}

    @routes.get('/thumbnails/{id:path}', summary='A small picture (WebP) of a document', response_class=Response)
    async def thumbnail(id: str) -> Response:
        doc = only(await flow('/get', DocumentArray(), {'ids': [id], 'include': ['thumbnail']}))
        if not doc.blob:
            raise NotFound(f'the document {id!r} has no picture')
        return Response(doc.blob, media_type='image/webp', headers={'Cache-Control': 'max-age=60'})

    return routes


def included(names: Include) -> dict[str, Any]:
    """For the Flow."""
    return {} if names is None else {'include': names}


def _public(tags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tags.items() if not name.startswith('__')}


async def _lines(flow: FlowCall, request: Request, longest: int) -> AsyncIterator[bytes]:
    """Documents a line in, what became of each a line out, while the body still arrives."""
    waiting: list[NewDocument | ClipflowError] = []
    size = 0  # of their lines; together they are one request, which is not to be longer than a line may be
    async for line in _split(request, longest):
        if waiting and size + len(line) > longest:
            yield await _stored_lines(flow, waiting)
            waiting, size = [], 0
        waiting.append(_parsed_line(line, longest))
        size += len(line)
        if len(waiting) == _LINES_AT_ONCE:
            yield await _stored_lines(flow, waiting)
            waiting, size = [], 0
    if waiting:
        yield await _stored_lines(flow, waiting)


async def _split(request: Request, longest: int) -> AsyncIterator[bytes]:
    """The lines that are not empty, up to the first that is too long."""
    rest = bytearray()
    async for block in request.stream():
        rest += block
        if b'\n' in block:
            *lines, rest = rest.split(b'\n')
            for line in lines:
                if line.strip():
                    yield bytes(line)
        if len(rest) > longest:
            break
    if rest.strip():
        yield bytes(rest)


def _parsed_line(line: bytes, longest: int) -> NewDocument | ClipflowError:
    if len(line) > longest:
        return TooLarge(f'a line is longer than {longest:,} bytes; what comes after it may not be read')
    try:
        return bodies.parsed(NewDocument, line)
    except ClipflowError as error:
        return error


async def _stored_lines(flow: FlowCall, items: Sequence[NewDocument | ClipflowError]) -> bytes:
    docs = DocumentArray()
    for item in items:
        if isinstance(item, ClipflowError):
            docs.append(Document(id=''))
            wire.fail(docs[-1], item, STAGE)
        else:
            docs.append(item.document())
    try:
        outcomes = _outcomes(await _stored(flow, docs))
    except ClipflowError as error:
        # The status line is long gone: what a line cannot be stored for stands in its place.
        outcomes = [{'id': doc.id, 'error': error_json(wire.error_of(doc) or error)} for doc in docs]
    return b''.join(json.dumps(outcome, ensure_ascii=False).encode() + b'\n' for outcome in outcomes)


async def _stored(flow: FlowCall, docs: DocumentArray) -> DocumentArray:
    sound = DocumentArray([doc for doc in docs if not wire.failed(doc)])
    reply = iter(await flow('/index', sound, {}) if sound else ())
    return DocumentArray([doc if wire.failed(doc) else next(reply) for doc in docs])


def _outcomes(docs: DocumentArray) -> list[dict[str, Any]]:
    return [{'id': doc.id, 'error': error_json(error) if (error := wire.error_of(doc)) else None} for doc in docs]


async def _from_form(request: Request, limit: int) -> DocumentArray:
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FILES + 1) as form:  # ids, and the tags
        files = [item for item in form.getlist('files') if isinstance(item, UploadFile)]
        ids = [str(item) for item in form.getlist('ids')]
        if not files:
            raise InvalidParameter("the form has no file in its field 'files'")
        if ids and len(ids) != len(files):
            raise InvalidParameter(f"there are {len(files)} 'files' but {len(ids)} 'ids'")
        text = str(form.get('tags') or '{}')
        if len(text) * len(files) > limit:
            raise TooLarge("'tags' are too long for so many files; send fewer files at once")
        tags = bodies.json_object(text)
        if tags is None:
            raise InvalidDocument("the field 'tags' is not a JSON object")
        docs = DocumentArray()
        for position, file in enumerate(files):
            name = file.filename or f'file {position}'
            doc = Document(id=ids[position] if ids else name, tags={**_public(tags), 'filename': name})
            doc.blob = await file.read()
            with wire.caught(doc, STAGE):
                wire.check_id(doc)
                check_sendable(doc)
                if not doc.blob:
                    raise InvalidDocument(f'{doc.id[:40]!r}: the file is empty')
            docs.append(doc)
        return docs

"""`/v1/documents` and `/v1/thumbnails`: store, read, delete."""

from typing import Any

import numpy as np
from docarray import Document, DocumentArray
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from clipflow import wire
from clipflow.errors import InvalidParameter, NotFound, UnsupportedMedia
from clipflow.web.flow import FlowCall, check, document_json, error_json, from_base64, only, tags_from_form

_MAX_FILES = 1000
_STAGE = 'gateway'


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
        with wire.caught(doc, _STAGE):
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
        check(doc)


class NewDocuments(BaseModel):
    """The body of `POST /v1/documents` as JSON."""

    model_config = ConfigDict(extra='forbid')
    documents: list[NewDocument] = Field(min_length=1, max_length=_MAX_FILES)


_BODY = TypeAdapter(NewDocuments)
_SCHEMA = {
    'requestBody': {
        'required': True,
        'content': {
            'application/json': {'schema': NewDocuments.model_json_schema()},
            'multipart/form-data': {
                'schema': {
                    'type': 'object',
                    'properties': {
                        'files': {'type': 'array', 'items': {'type': 'string', 'format': 'binary'}},
                        'ids': {'type': 'array', 'items': {'type': 'string'}},
                        'tags': {'type': 'string', 'description': 'a JSON object, for all files'},
                    },
                    'required': ['files'],
                }
            },
        },
    }
}


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['documents'])

    @routes.post('/documents', summary='Store documents: JSON, or pictures as multipart', openapi_extra=_SCHEMA)
    async def store(request: Request) -> dict[str, Any]:
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        if kind == 'multipart/form-data':
            docs = await _from_form(request)
        elif kind in ('application/json', ''):
            docs = _from_json(await request.body())
        else:
            raise UnsupportedMedia(f'documents come as application/json or multipart/form-data, not as {kind!r}')
        sound = DocumentArray([doc for doc in docs if not wire.failed(doc)])
        reply = iter(await flow('/index', sound, {}) if sound else ())
        outcomes = DocumentArray([doc if wire.failed(doc) else next(reply) for doc in docs])
        if len(outcomes) == 1:
            only(outcomes)
        items: list[dict[str, Any]] = []
        for doc in outcomes:
            error = wire.error_of(doc)
            items.append({'id': doc.id, 'error': error_json(error) if error else None})
        return {'stored': sum(item['error'] is None for item in items), 'documents': items}

    @routes.get('/documents/{id:path}', summary='Read one document')
    async def read(id: str) -> dict[str, Any]:
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


def _public(tags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tags.items() if not name.startswith('__')}


def _from_json(body: bytes) -> DocumentArray:
    try:
        found = _BODY.validate_json(body)
    except ValidationError as error:
        faults = [f'{".".join(str(x) for x in item["loc"]) or "body"}: {item["msg"]}' for item in error.errors()[:5]]
        raise InvalidParameter('; '.join(faults)) from None
    return DocumentArray([item.document() for item in found.documents])


async def _from_form(request: Request) -> DocumentArray:
    async with request.form(max_files=_MAX_FILES) as form:
        files = [item for item in form.getlist('files') if isinstance(item, UploadFile)]
        ids = [str(item) for item in form.getlist('ids')]
        if not files:
            raise InvalidParameter("the form has no file in its field 'files'")
        if ids and len(ids) != len(files):
            raise InvalidParameter(f"there are {len(files)} 'files' but {len(ids)} 'ids'")
        tags = tags_from_form(str(form.get('tags') or ''))
        docs = DocumentArray()
        for position, file in enumerate(files):
            name = file.filename or f'file {position}'
            doc = Document(id=ids[position] if ids else name, tags={**_public(tags), 'filename': name})
            doc.blob = await file.read()
            with wire.caught(doc, _STAGE):
                wire.check_id(doc)
                check(doc)
            docs.append(doc)
        return docs

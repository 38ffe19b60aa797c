"""OpenAI's embeddings API, for its SDK and for what is built on it: `POST /v1/embeddings`, `GET /v1/models`.

Beside texts an input may be a picture. As there, one bad input fails the request, and errors have OpenAI's shape.
`usage` is 0: texts are counted in tokens by the encoder alone, and nobody pays for them here.
"""

import base64
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import numpy as np
from docarray import Document, DocumentArray
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from clipflow import wire
from clipflow.errors import ClipflowError, InvalidParameter, ModelMismatch, NotFound, Unavailable
from clipflow.web import bodies, problems
from clipflow.web.content import Content, documents_of
from clipflow.web.flow import FlowCall

_ANY_MODEL = ('', 'clipflow')
_MOST = 2048
_AT_ONCE = 128
"""Pictures of a whole request would make one message of hundreds of megabytes."""
_STATUS_SECONDS = 5.0
_PICTURE = re.compile(r'data:image/[^,]+;base64,', re.IGNORECASE)
_KINDS = ('text', 'image', 'image_url')
_INPUT: dict[str, Any] = {
    'description': f'a text, or up to {_MOST:,} inputs: texts, `data:image/...;base64,` URIs, or objects with one of '
    'text, image (base64), image_url',
    'anyOf': [
        {'type': 'string'},
        {'type': 'object'},
        {'type': 'array', 'items': {'anyOf': [{'type': 'string'}, {'type': 'object'}]}},
    ],
}


class EmbeddingsRequest(BaseModel):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(extra='forbid')
    input: Any = Field(json_schema_extra=_INPUT)
    model: str | None = Field(None, description='the name of the model that is served, or clipflow')
    encoding_format: Literal['float', 'base64'] | None = None
    dimensions: int | None = Field(None, description='nothing but what the model has')
    user: str | None = Field(None, description='accepted and ignored')

    def contents(self) -> list[Content]:
        """The inputs.

        Raises:
            InvalidParameter: names the first that is none.
        """
        items = self.input if isinstance(self.input, list) else [self.input]
        if not 1 <= len(items) <= _MOST:
            raise InvalidParameter(f'input holds {len(items):,} items; give 1 to {_MOST:,}')
        return [_content(number, item) for number, item in enumerate(items)]


class Embedding(BaseModel):
    """Of one input."""

    object: Literal['embedding'] = 'embedding'
    index: int
    embedding: list[float] | str = Field(description='of unit length; as base64: float32, little-endian')


class Usage(BaseModel):
    """Nothing is counted."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsReply(BaseModel):
    """Embeddings in the order of the inputs."""

    object: Literal['list'] = 'list'
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal['model'] = 'model'
    created: int = 0
    owned_by: str = 'clipflow'


class Models(BaseModel):
    """One model."""

    object: Literal['list'] = 'list'
    data: list[Model]


class _Route(APIRoute):
    """Errors in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """See `APIRoute`."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClipflowError as error:
                return _refusal(error)

        return answer


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    refused = {'description': "An error in OpenAI's shape", 'content': {bodies.JSON: {'schema': {'type': 'object'}}}}
    routes = APIRouter(prefix='/v1', tags=['openai'], route_class=_Route, responses={'default': refused})

    @routes.post(
        '/embeddings',
        summary="Embeddings of texts and pictures, for OpenAI's SDK",
        openapi_extra=bodies.json_of(EmbeddingsRequest),
    )
    async def embeddings(request: Request) -> EmbeddingsReply:
        asked = bodies.parsed(EmbeddingsRequest, await request.body())
        docs = await documents_of(flow, asked.contents())
        for doc in docs:
            _raise_error_of(doc)
        name = asked.model or ''
        endpoint = '/encode' if name in _ANY_MODEL else f'/encode/{name}'
        data: list[Embedding] = []
        for start in range(0, len(docs), _AT_ONCE):
            for doc in await _encoded(flow, endpoint, docs[start : start + _AT_ONCE]):
                _raise_error_of(doc)
                vector = np.asarray(doc.embedding, dtype='<f4')
                if asked.dimensions not in (None, len(vector)):
                    raise InvalidParameter(
                        f'the embeddings of this model have {len(vector)} dimensions, not {asked.dimensions}; leave '
                        "'dimensions' out"
                    )
                data.append(Embedding(index=len(data), embedding=_written(vector, asked.encoding_format)))
        return EmbeddingsReply(data=data, model=name or _ANY_MODEL[1])

    @routes.get('/models', summary="The model that is served, for OpenAI's SDK")
    async def models() -> Models:
        docs = await flow('/status', DocumentArray(), {wire.DEADLINE: time.time() + _STATUS_SECONDS})
        names = [str(doc.tags['model']) for doc in docs if doc.id == 'encoder']
        if not names:
            raise Unavailable('the encoder does not say which model it runs; try again a little later')
        return Models(data=[Model(id=name) for name in names[:1]])

    return routes


def _content(number: int, item: Any) -> Content:
    place = f'input[{number}]'
    value: Any
    if isinstance(item, str):
        kind, value = ('image' if _PICTURE.match(item) else 'text'), item
    elif isinstance(item, dict) and len(kinds := [name for name in _KINDS if item.get(name) is not None]) == 1:
        kind, value = kinds[0], item[kinds[0]]
        if kind == 'image_url' and isinstance(value, dict):
            value = value.get('url')
    elif isinstance(item, int | list):
        raise InvalidParameter(f'{place} holds tokens, which belong to another model; send the text itself')
    else:
        raise InvalidParameter(f'{place} is neither a text nor an object with one of {", ".join(_KINDS)}')
    if not isinstance(value, str) or not value:
        raise InvalidParameter(f'{place}: {kind} is empty, or no text')
    if kind == 'image_url':
        kind = 'image' if value.startswith('data:') else 'uri'
    return Content.model_validate({kind: value})


async def _encoded(flow: FlowCall, endpoint: str, docs: DocumentArray) -> Sequence[Document]:
    try:
        return list(await flow(endpoint, docs, {}))
    except ModelMismatch as error:
        raise NotFound(error.message) from None  # as there; what is wrong with one document stands in it


def _raise_error_of(doc: Document) -> None:
    if error := wire.error_of(doc):
        raise type(error)(f'input[{doc.id}]: {error.message.removeprefix(f"{doc.id!r}: ")}')


def _written(vector: Any, form: str | None) -> list[float] | str:
    if form == 'base64':
        return base64.b64encode(vector.tobytes()).decode()
    floats: list[float] = vector.tolist()
    return floats


def _refusal(error: ClipflowError) -> JSONResponse:
    kind = 'server_error' if error.status >= 500 else 'invalid_request_error'
    kind = 'rate_limit_error' if error.status == 429 else kind
    found = {'message': error.message, 'type': kind, 'param': None, 'code': error.code}
    return JSONResponse({'error': found}, error.status, problems.retry_header(error))

"""`POST /v1/search`."""

from typing import Annotated, Any

import numpy as np
from docarray import Document, DocumentArray
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipflow import wire
from clipflow.errors import InvalidDocument, InvalidParameter
from clipflow.web.flow import FlowCall, from_base64, match_json, only

Vector = Annotated[list[float], Field(min_length=1, max_length=65536)]
_KINDS = ('text', 'image', 'id', 'embedding')


class Part(BaseModel):
    """One part of a composed query; a negative weight leads away from it."""

    model_config = ConfigDict(extra='forbid')
    text: str | None = None
    image: str | None = Field(None, description='base64')
    id: str | None = Field(None, description='of a stored document')
    embedding: Vector | None = None
    weight: float = Field(1.0, allow_inf_nan=False)

    def kinds(self) -> list[str]:
        """Which contents are given."""
        return [name for name in _KINDS if getattr(self, name) is not None]

    @model_validator(mode='after')
    def _one_content(self) -> 'Part':
        if len(self.kinds()) != 1 and type(self) is Part:
            raise ValueError(f'a part has exactly one of {", ".join(_KINDS)}')
        return self


class SearchRequest(Part):
    """One content or a composed `query`; the other fields are those of the endpoint /search."""

    query: list[Part] | None = Field(None, min_length=1, max_length=32)
    limit: int = Field(10, ge=1, le=wire.MAX_LIMIT)
    offset: int = Field(0, ge=0)
    filter: dict[str, Any] | None = None
    min_score: float | None = None
    relevance: float | None = None
    group_by: str | None = None
    dedup: float | None = None
    sort_by: str | None = None
    nprobe: int | None = None
    ef_search: int | None = None
    templates: list[str] | None = None

    @model_validator(mode='after')
    def _one_query(self) -> 'SearchRequest':
        if len(self.kinds()) + (self.query is not None) != 1:
            raise ValueError(f'give exactly one of {", ".join(_KINDS)}, query')
        return self

    def parameters(self) -> dict[str, Any]:
        """For the Flow."""
        names = type(self).model_fields.keys() - {*_KINDS, 'query', 'weight'}
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}


class Match(BaseModel):
    """One result."""

    id: str
    score: float = Field(description='cosine, -1 to 1')
    uri: str | None
    text: str | None
    tags: dict[str, Any]


class SearchReply(BaseModel):
    """Results, best first."""

    matches: list[Match]
    partial: bool = Field(description='whether a part of the collection did not answer')


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['search'])

    @routes.post('/search', summary='Find documents by text, image, stored id, embedding or a composition of them')
    async def search(request: SearchRequest) -> SearchReply:
        parts = request.query or [request]
        wanted = [part.id for part in parts if part.id is not None]
        vectors = await _stored_vectors(flow, wanted) if wanted else {}
        if request.query is None:
            doc = _document(request, vectors)
        else:
            doc = Document(chunks=[_document(part, vectors) for part in parts])
        reply = only(await flow('/search', DocumentArray([doc]), request.parameters()))
        return SearchReply(
            matches=[Match(**match_json(match)) for match in reply.matches], partial=wire.PARTIAL in reply.tags
        )

    return routes


async def _stored_vectors(flow: FlowCall, ids: list[str]) -> dict[str, Any]:
    found = await flow('/get', DocumentArray(), {'ids': ids, 'include': ['embedding']})
    for doc in found:
        if error := wire.error_of(doc):
            raise error
    return {doc.id: doc.embedding for doc in found}


def _document(part: Part, vectors: dict[str, Any]) -> Document:
    if part.weight == 0:
        raise InvalidParameter('a part of weight 0 has no effect; leave it out')
    doc = Document(weight=part.weight)
    if part.text is not None:
        if not part.text:
            raise InvalidDocument('the text of the query is empty')
        doc.text = part.text
    elif part.image is not None:
        doc.blob = from_base64(part.image)
        if not doc.blob:
            raise InvalidDocument('the image of the query is empty')
    elif part.id is not None:
        doc.embedding = vectors[part.id]
    else:
        doc.embedding = np.array(part.embedding, dtype=np.float32)
    return doc

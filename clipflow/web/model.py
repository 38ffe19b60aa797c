"""What the model does without the collection: encode, rank, classify."""

from typing import Any

from docarray import Document, DocumentArray
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from clipflow import wire
from clipflow.web.content import Content, Query, documents_of, query_document
from clipflow.web.flow import FlowCall, error_json, only

_MOST = 1000


class EncodeRequest(BaseModel):
    """The body of `/v1/encode`."""

    model_config = ConfigDict(extra='forbid')
    inputs: list[Content] = Field(min_length=1, max_length=_MOST)


class ClassifyRequest(EncodeRequest):
    """The body of `/v1/classify`."""

    labels: list[str] = Field(min_length=2, max_length=_MOST)
    templates: list[str] = Field(['{}'], min_length=1, description='sentences with one {}; their vectors are averaged')


class RankRequest(BaseModel):
    """The body of `/v1/rank`."""

    model_config = ConfigDict(extra='forbid')
    query: Query
    candidates: list[Content] = Field(min_length=1, max_length=_MOST)


def router(flow: FlowCall) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix='/v1', tags=['model'])

    @routes.post('/encode', summary='Embeddings of texts, pictures or stored documents')
    async def encode(request: EncodeRequest) -> dict[str, Any]:
        docs = await _through(flow, '/encode', await documents_of(flow, request.inputs), {})
        return {'items': [_item(doc, embedding=_vector(doc)) for doc in docs]}

    @routes.post('/classify', summary='Which label fits each input best')
    async def classify(request: ClassifyRequest) -> dict[str, Any]:
        parameters = {'labels': request.labels, 'templates': request.templates}
        docs = await _through(flow, '/classify', await documents_of(flow, request.inputs), parameters)
        return {
            'items': [
                _item(doc, label=doc.tags.get('label'), probabilities=doc.tags.get('probabilities')) for doc in docs
            ]
        }

    @routes.post('/rank', summary='Candidates in the order in which they fit a query')
    async def rank(request: RankRequest) -> dict[str, Any]:
        query = await query_document(flow, request.query)
        query.matches = await documents_of(flow, request.candidates)
        known = {doc.id: error_json(error) for doc in query.matches if (error := wire.error_of(doc))}
        query.matches = DocumentArray([doc for doc in query.matches if doc.id not in known])
        ranked = only(await flow('/rank', DocumentArray([query]), {})).matches if query.matches else DocumentArray()
        found = [_ranked(doc) for doc in ranked]
        lost = [{'index': int(name), 'score': None, 'cosine': None, 'error': error} for name, error in known.items()]
        return {'candidates': found + lost}

    return routes


async def _through(flow: FlowCall, endpoint: str, docs: DocumentArray, parameters: dict[str, Any]) -> list[Document]:
    """Send what is sound; all Documents in their order, each with its result or its error."""
    sound = DocumentArray([doc for doc in docs if not wire.failed(doc)])
    reply = iter(await flow(endpoint, sound, parameters) if sound else ())
    return [doc if wire.failed(doc) else next(reply) for doc in docs]


def _item(doc: Document, **found: Any) -> dict[str, Any]:
    error = wire.error_of(doc)
    if error is not None:
        return {**dict.fromkeys(found), 'error': error_json(error)}
    return {**found, 'error': None}


def _vector(doc: Document) -> list[float] | None:
    return None if doc.embedding is None else [float(x) for x in doc.embedding]


def _ranked(doc: Document) -> dict[str, Any]:
    scores = {'score': doc.scores['clip_score'].value, 'cosine': doc.scores['clip_score_cosine'].value}
    return {'index': int(doc.id), **_item(doc, **scores)}

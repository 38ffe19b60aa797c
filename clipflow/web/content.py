"""What a query, a candidate or an input may be in JSON, and the Documents that are made of it."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from docarray import Document, DocumentArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipflow import wire
from clipflow.errors import InvalidDocument, InvalidParameter, NotFound
from clipflow.tags import check_sendable, unsendable
from clipflow.web.flow import FlowCall, from_base64

STAGE = 'gateway'
Vector = Annotated[list[float], Field(min_length=1, max_length=65536)]
_KINDS = ('text', 'image', 'uri', 'id', 'embedding')
_LIGHTEST, HEAVIEST = 1e-30, 1e30
"""Weights between which a Document can tell one from none, and a sum of them stays finite."""


def _exactly_one(*names: str) -> ConfigDict:
    """So that the description says what is checked."""
    return ConfigDict(extra='forbid', json_schema_extra={'oneOf': [{'required': [name]} for name in names]})


class Content(BaseModel):
    """Exactly one of its fields."""

    model_config = _exactly_one(*_KINDS)
    text: str | None = None
    image: str | None = Field(None, description='base64, or a data: URI')
    uri: str | None = Field(None, description='of a picture; fetched only where the service allows it')
    id: str | None = Field(None, description='of a stored document')
    embedding: Vector | None = None

    def kinds(self) -> list[str]:
        """Which contents are given."""
        return [name for name in _KINDS if getattr(self, name) is not None]

    @model_validator(mode='after')
    def _one_content(self) -> Self:
        self.check_kinds()
        return self

    def check_kinds(self) -> None:
        """Raises ValueError if there is not exactly one."""
        if len(self.kinds()) != 1:
            raise ValueError(f'give exactly one of {", ".join(_KINDS)}')


class Part(Content):
    """One part of a composed query; a negative weight leads away from it."""

    weight: float = Field(1.0, allow_inf_nan=False)


class Query(Content):
    """One content, or a composed `query`."""

    model_config = _exactly_one(*_KINDS, 'query')
    query: list[Part] | None = Field(None, min_length=1, max_length=wire.MAX_PARTS)

    def check_kinds(self) -> None:
        """See `Content`."""
        if len(self.kinds()) + (self.query is not None) != 1:
            raise ValueError(f'give exactly one of {", ".join(_KINDS)}, query')


async def documents_of(flow: FlowCall, contents: Sequence[Content]) -> DocumentArray:
    """A Document for each content, in order; what is wrong with one is written into it.

    Raises:
        ClipflowError: the stored vectors that are asked for cannot be had at all.
    """
    asked = dict.fromkeys(content.id for content in contents if content.id is not None)
    ids = [name for name in asked if not unsendable(name)]
    stored = {}
    if ids:
        found = await flow('/get', DocumentArray(), {'ids': ids, 'include': ['embedding']})
        stored = {doc.id: doc for doc in found}
    docs = DocumentArray()
    for number, content in enumerate(contents):
        doc = Document(id=str(number))
        with wire.caught(doc, STAGE):
            _fill(doc, content, stored)
            check_sendable(doc)
        docs.append(doc)
    return docs


async def query_document(flow: FlowCall, query: Query) -> Document:
    """The Document of a query, with its parts as chunks if it is composed.

    Raises:
        ClipflowError: a part cannot be used.
    """
    parts: Sequence[Content] = [query] if query.query is None else query.query
    docs = await documents_of(flow, parts)
    for doc in docs:
        if error := wire.error_of(doc):
            raise error
    if query.query is None:
        return docs[0]
    for doc, part in zip(docs, query.query, strict=True):
        if abs(part.weight) < _LIGHTEST:
            raise InvalidParameter('a part of weight 0 has no effect; leave it out')
        if abs(part.weight) > HEAVIEST:
            raise InvalidParameter(
                f'the weight {part.weight:g} of a part is too large; weights are relative, such as 1 or -0.5'
            )
        doc.weight = part.weight
    return Document(chunks=docs)


def _fill(doc: Document, content: Content, stored: dict[str, Any]) -> None:
    if content.text is not None:
        if not content.text:
            raise InvalidDocument('the text of the query is empty')
        doc.text = content.text
    elif content.image is not None:
        doc.blob = from_base64(content.image)
        if not doc.blob:
            raise InvalidDocument('the image of the query is empty')
    elif content.uri is not None:
        if not content.uri:
            raise InvalidDocument('the URI of the query is empty')
        doc.uri = content.uri
    elif content.id is not None:
        found = stored.get(content.id)
        if found is None:
            raise NotFound(f'there is no document with the id {content.id!r}')
        if error := wire.error_of(found):
            raise error
        doc.embedding = found.embedding
    else:
        doc.embedding = np.array(content.embedding, dtype=np.float32)

"""How the web application reaches the Flow, and how Documents look as JSON."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any

from docarray import Document, DocumentArray

from clipflow import access, wire
from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter
from clipflow.tags import check_sendable, plain_tags, unsendable

FlowCall = Callable[[str, DocumentArray, dict[str, Any]], Awaitable[DocumentArray]]
"""endpoint, Documents, parameters to Documents; raises ClipflowError."""


def checked(flow: FlowCall) -> FlowCall:
    """`flow`, which first refuses what the caller may not ask for, and what messages between stages cannot say."""

    async def call(endpoint: str, docs: DocumentArray, parameters: dict[str, Any]) -> DocumentArray:
        access.check(access.current.get(), endpoint)
        for doc in docs['@r,c,m'] if docs else ():
            check_sendable(doc)
        if reason := unsendable(parameters):
            raise InvalidParameter(f'the parameters hold {reason}')
        return await flow(endpoint, docs, parameters)

    return call


def from_base64(text: str) -> bytes:
    """Bytes of an image sent as base64, with or without the head of a data: URI."""
    body = text.partition(',')[2] if text.startswith('data:') else text
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidDocument('the image is not valid base64') from None


def match_json(match: Document) -> dict[str, Any]:
    """One result."""
    found: dict[str, Any] = {'id': match.id, 'score': round(match.scores['cosine'].value, 6), 'uri': match.uri or None}
    found |= {'text': match.text or None, 'tags': plain_tags(match)}
    if 'head' in match.scores:
        found['head'] = round(match.scores['head'].value, 6)
    if 'percentile' in match.scores:
        found['percentile'] = match.scores['percentile'].value
    if 'probability' in match.scores:
        found['probability'] = round(match.scores['probability'].value, 6)
    if match.embedding is not None:
        found['embedding'] = [float(x) for x in match.embedding]
    return found


def document_json(doc: Document) -> dict[str, Any]:
    """One stored document."""
    found: dict[str, Any] = {
        'id': doc.id,
        'uri': doc.uri or None,
        'text': doc.text or None,
        'tags': plain_tags(doc),
    }
    if doc.embedding is not None:
        found['embedding'] = [float(x) for x in doc.embedding]
    return found


def error_json(error: ClipflowError) -> dict[str, str]:
    """The error of one document among many."""
    return {'code': error.code, 'detail': error.message}


def only(docs: DocumentArray) -> Document:
    """The one Document of a reply; raises its error if it has one."""
    error = wire.error_of(docs[0])
    if error is not None:
        raise error
    return docs[0]

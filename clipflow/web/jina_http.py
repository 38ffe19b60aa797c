"""`POST /post`, the way Jina's own HTTP clients speak to a Flow.

Its body is `{"data": [Documents], "parameters": {}, "exec_endpoint" or "execEndpoint": "/search"}`; its reply carries
the Documents, the way through the stages, and a status code that is 1 for an error.
"""

import base64
import uuid
from typing import Any

from docarray import Document, DocumentArray
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from clipflow.errors import ClipflowError, InvalidDocument, InvalidParameter
from clipflow.web import bodies
from clipflow.web.content import HEAVIEST
from clipflow.web.flow import FlowCall
from clipflow.wire import ENDPOINTS

_KINDS: dict[str, Any] = {
    **dict.fromkeys(('id', 'text', 'uri', 'mime_type', 'modality', 'blob'), str),
    'weight': (int, float),
    'tags': dict,
    'chunks': list,
    'matches': list,
}
_FIELDS = ('id', 'text', 'uri', 'mime_type', 'weight', 'modality')
_SUCCESS, _ERROR = 0, 1
_TEXT, _ARRAY, _OBJECT = {'type': 'string'}, {'type': 'array'}, {'type': 'object'}
_ITEM = {
    'type': 'object',
    'properties': {
        'id': _TEXT,
        'text': _TEXT,
        'uri': _TEXT,
        'blob': {**_TEXT, 'description': 'base64'},
        'tensor': _ARRAY,
        'embedding': _ARRAY,
        'tags': _OBJECT,
        'chunks': {**_ARRAY, 'items': _OBJECT},
        'matches': {**_ARRAY, 'items': _OBJECT},
    },
}
_BODY = {
    'type': 'object',
    'properties': {
        'exec_endpoint': {**_TEXT, 'description': 'of the Flow', 'examples': list(ENDPOINTS)},
        'data': {**_ARRAY, 'items': _ITEM},
        'parameters': {**_OBJECT, 'description': 'of the endpoint'},
    },
    'required': ['exec_endpoint'],
}


def router(flow: FlowCall) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=['jina'])

    @routes.post(
        '/post',
        summary="For Jina's HTTP clients: any endpoint of the Flow",
        openapi_extra={'requestBody': {'required': True, 'content': {bodies.JSON: {'schema': _BODY}}}},
        responses={'default': {'description': 'An error: the same, with the code 1 in `header.status`'}},
    )
    async def post(request: Request) -> JSONResponse:
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            raise InvalidParameter('the body is not JSON') from None
        if not isinstance(body, dict):
            raise InvalidParameter('the body is not a JSON object')
        header, parameters, data = body.get('header') or {}, body.get('parameters') or {}, body.get('data') or []
        if not (isinstance(header, dict) and isinstance(parameters, dict) and isinstance(data, list)):
            raise InvalidParameter("'header' and 'parameters' are objects, 'data' is a list of documents")
        endpoint = _told(body.get('exec_endpoint') or body.get('execEndpoint') or header.get('exec_endpoint') or '')
        identifier = _told(header.get('request_id') or uuid.uuid4().hex)
        try:
            docs = DocumentArray([_document(item) for item in data])
            reply = await flow(endpoint, docs, parameters)
        except ClipflowError as error:
            status = {'code': _ERROR, 'description': repr(error), 'exception': {'name': type(error).__name__}}
            # For Jina's client 404 means that /post itself is missing, and it would hide the sentence.
            return JSONResponse(
                _envelope(identifier, endpoint, status, []), 400 if error.status == 404 else error.status
            )
        return JSONResponse(_envelope(identifier, endpoint, {'code': _SUCCESS}, [_json(doc) for doc in reply]))

    return routes


def _told(value: Any) -> str:
    """A text that stands in the reply too, which cannot hold half a surrogate pair."""
    return str(value).encode(errors='replace').decode()


def _envelope(identifier: str, endpoint: str, status: dict[str, Any], data: list[dict[str, Any]]) -> dict[str, Any]:
    header = {'requestId': identifier, 'execEndpoint': endpoint, 'status': status}
    return {'header': header, 'parameters': {}, 'routes': [], 'data': data}


def _document(item: Any) -> Document:
    if not isinstance(item, dict):
        raise InvalidDocument('an item of data is not a JSON object')
    wrong = [name for name, kind in _KINDS.items() if item.get(name) is not None and not isinstance(item[name], kind)]
    if wrong:
        raise InvalidDocument(f'the document {str(item.get("id"))[:40]!r}: {wrong[0]!r} is of another type')
    if not abs(item.get('weight') or 0) <= HEAVIEST:
        raise InvalidDocument(f'the document {str(item.get("id"))[:40]!r}: its weight is too large, or not finite')
    try:
        doc = Document(**{name: item[name] for name in _FIELDS if item.get(name)}, tags=item.get('tags') or {})
        if item.get('blob') and not doc.text:
            doc.blob = base64.b64decode(item['blob'])
        elif item.get('tensor') is not None and not doc.text:
            doc.tensor = _array(item['tensor'])
        if item.get('embedding') is not None:
            doc.embedding = _array(item['embedding'])
        for name in ('chunks', 'matches'):
            if item.get(name):
                setattr(doc, name, DocumentArray([_document(part) for part in item[name]]))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDocument(f'the document {str(item.get("id"))[:40]!r} cannot be read: {error}') from None
    return doc


def _array(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in 'biuf':
        raise InvalidDocument('an array holds something other than numbers')
    if array.ndim != 3 or array.dtype.kind not in 'iu':
        with np.errstate(over='ignore'):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InvalidDocument('an array holds a number that is not finite, or too large')
        return array
    if array.size and not 0 <= array.min() <= array.max() <= 255:
        raise InvalidDocument('a tensor of whole numbers holds pixels, which are from 0 to 255')
    return array.astype(np.uint8)


def _json(doc: Document) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(doc, name) for name in _FIELDS if getattr(doc, name)}
    found['tags'] = dict(doc.tags)
    if doc.blob:
        found['blob'] = base64.b64encode(doc.blob).decode()
    for name in ('tensor', 'embedding'):
        if getattr(doc, name) is not None:
            found[name] = getattr(doc, name).tolist()
    if doc.scores:
        found['scores'] = {
            name: {'value': score.value, 'op_name': score.op_name or ''} for name, score in doc.scores.items()
        }
    if doc.matches:
        found['matches'] = [_json(match) for match in doc.matches]
    return found

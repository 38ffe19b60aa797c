"""Errors over HTTP: problem documents (RFC 9457) with our codes."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipflow.errors import ClipflowError, Internal, InvalidParameter, NotFound, UnsupportedMedia

MEDIA_TYPE = 'application/problem+json'
_RETRY_AFTER_SECONDS = '1'
_FIELDS = {name: {'type': 'string'} for name in ('type', 'title', 'detail', 'code')} | {'status': {'type': 'integer'}}
DESCRIBED: dict[int | str, dict[str, Any]] = {
    'default': {
        'description': 'An error, as a problem document',
        'content': {MEDIA_TYPE: {'schema': {'type': 'object', 'properties': _FIELDS, 'required': list(_FIELDS)}}},
    }
}
"""Of every route, for OpenAPI."""


def problem(error: ClipflowError) -> dict[str, Any]:
    """The body: type, title, status, detail, and our code."""
    return {
        'type': 'about:blank',
        'title': error.code.replace('-', ' '),
        'status': error.status,
        'detail': error.message,
        'code': error.code,
    }


def respond(error: ClipflowError, **headers: str) -> JSONResponse:
    """The response to `error`."""
    return JSONResponse(problem(error), error.status, {**headers, **retry_header(error)}, MEDIA_TYPE)


def retry_header(error: ClipflowError) -> dict[str, str]:
    """When to try again, if that may help."""
    return {'Retry-After': _RETRY_AFTER_SECONDS} if error.retryable else {}


def install(app: FastAPI) -> None:
    """Translate every exception that reaches the application."""

    async def own(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ClipflowError)
        return respond(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get('content-type', '')
        if 'json' not in kind.lower() and any(e['loc'][0] == 'body' for e in error.errors()):
            return respond(UnsupportedMedia(f'the body comes as application/json, not as {kind!r}'))
        faults = [f'{".".join(str(x) for x in e["loc"][1:]) or e["loc"][0]}: {e["msg"]}' for e in error.errors()]
        return respond(InvalidParameter('; '.join(faults)))

    async def routing(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return respond(NotFound(f'there is nothing at {request.scope["path"]}; /docs shows what there is'))
        said = str(error.detail)
        if allowed := (error.headers or {}).get('Allow'):
            said = f'{request.scope["path"]} is not asked with {request.method}, but with {allowed}'
        body = problem(InvalidParameter(said)) | {'status': error.status_code}
        return JSONResponse(body, error.status_code, error.headers, MEDIA_TYPE)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        response = respond(Internal('the service failed; its log has the details'))
        response.headers['Connection'] = 'close'  # uvicorn hangs up after this one; the client must know
        return response

    app.add_exception_handler(ClipflowError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)

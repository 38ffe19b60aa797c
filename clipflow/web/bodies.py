"""Bodies that come in more than one form: how they are read, and how OpenAPI describes them."""

import json
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from clipflow.errors import InvalidParameter, UnsupportedMedia

JSON = 'application/json'
FORM = 'multipart/form-data'
LINES = 'application/x-ndjson'
_REFERENCE = '#/components/schemas/{model}'

M = TypeVar('M', bound=BaseModel)


def media_type(header: str) -> str:
    """Of a content-type header, without its parameters."""
    return header.partition(';')[0].strip().lower()


def parsed(model: type[M], body: bytes) -> M:
    """A body as JSON.

    Raises:
        InvalidParameter: names each fault and where it is.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidParameter(faults(error.errors())) from None


def json_object(text: str) -> dict[str, Any] | None:
    """What a field of a form or a parameter holds; None if it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def faults(errors: Any) -> str:
    """One sentence about the first faults that pydantic found."""
    return '; '.join(f'{".".join(str(x) for x in item["loc"]) or "body"}: {item["msg"]}' for item in errors[:5])


def refused(kind: str, *known: str) -> UnsupportedMedia:
    """The error about a media type that a route does not take."""
    return UnsupportedMedia(f'the body comes as {" or ".join(known)}, not as {kind!r}')


def json_of(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra`: a body that is read as JSON whatever its media type; `model` refers to no other."""
    return {'requestBody': {'required': True, 'content': {JSON: {'schema': model.model_json_schema()}}}}


def described(model: type[BaseModel], form: dict[str, Any], required: str) -> dict[str, Any]:
    """For `openapi_extra`: a body as JSON of `model` or as a form.

    Args:
        form: the fields of the form, as JSON schema.
        required: the one that must be there.
    """
    fields = {'type': 'object', 'properties': form, 'required': [required]}
    content = {JSON: {'schema': {'$ref': _REFERENCE.format(model=model.__name__)}}, FORM: {'schema': fields}}
    return {'requestBody': {'required': True, 'content': content}}


def describe_all(app: FastAPI, models: list[type[BaseModel]]) -> None:
    """Add the models that `described` refers to, to the description of the application."""
    _, schemas = models_json_schema([(model, 'validation') for model in models], ref_template=_REFERENCE)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        found = plain()
        known = found.setdefault('components', {}).setdefault('schemas', {})
        for name, schema in schemas['$defs'].items():
            known.setdefault(name, schema)
        return found

    app.openapi = openapi  # type: ignore[method-assign]

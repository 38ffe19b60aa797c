"""Every error that a user of clipflow can meet: class, stable code, HTTP status, one sentence.

    ClipflowError
    ├── InvalidParameter      invalid-parameter     400
    ├── InvalidFilter         invalid-filter        400
    ├── InvalidDocument       invalid-document      400
    ├── Unauthorized          unauthorized          401
    ├── Forbidden             forbidden             403
    │   └── ForbiddenSource   forbidden-source      403
    ├── NotFound              not-found             404
    ├── Conflict              conflict              409
    │   ├── DimensionMismatch dimension-mismatch    409
    │   └── ModelMismatch     model-mismatch        409
    ├── TooLarge              too-large             413
    ├── UnsupportedMedia      unsupported-media     415
    ├── Undecodable           undecodable           422
    ├── Overloaded            overloaded            429   retryable
    ├── Internal              internal              500
    ├── Unavailable           unavailable           503   retryable
    │   └── NotReady          not-ready             503   retryable
    ├── ReadOnly              read-only             503
    ├── Timeout               timeout               504   retryable
    └── StorageFull           storage-full          507

The message is for people: it says what was wrong and what to do. Foreign exceptions are translated
where they arise, by one table a border; whatever is left becomes `Internal` and stays in the log.
"""

import re
from typing import ClassVar

_DESCRIPTION = re.compile(r'^(?P<code>[a-z]+(?:-[a-z]+)*): (?P<message>.*)$', re.DOTALL)


class ClipflowError(Exception):
    """Base of all errors; `str` is the sentence, `repr` is `code: sentence` (what Jina puts on the wire)."""

    code: ClassVar[str] = 'internal'
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        """The sentence alone."""
        return str(self)

    def __repr__(self) -> str:
        return f'{self.code}: {self}'


class InvalidParameter(ClipflowError):
    """A request parameter or a setting has a value or a name that we do not know."""

    code, status = 'invalid-parameter', 400


class InvalidFilter(ClipflowError):
    """The filter is not an expression of the query language."""

    code, status = 'invalid-filter', 400


class InvalidDocument(ClipflowError):
    """One Document cannot be used as it is (no content, bad id, bad tensor, bad embedding)."""

    code, status = 'invalid-document', 400


class Unauthorized(ClipflowError):
    """No key or a wrong key."""

    code, status = 'unauthorized', 401


class Forbidden(ClipflowError):
    """The caller is known but may not do this."""

    code, status = 'forbidden', 403


class ForbiddenSource(Forbidden):
    """A URI that this service does not read."""

    code = 'forbidden-source'


class NotFound(ClipflowError):
    """An endpoint, a document or a model that does not exist."""

    code, status = 'not-found', 404


class Conflict(ClipflowError):
    """The state of the store does not allow it, for instance a second writer."""

    code, status = 'conflict', 409


class DimensionMismatch(Conflict):
    """A vector has another number of dimensions than the model or the index."""

    code = 'dimension-mismatch'


class ModelMismatch(Conflict):
    """Vectors or pixels were made for another model."""

    code = 'model-mismatch'


class TooLarge(ClipflowError):
    """Too many bytes, pixels, characters or items."""

    code, status = 'too-large', 413


class UnsupportedMedia(ClipflowError):
    """The bytes are no picture of a kind that we read."""

    code, status = 'unsupported-media', 415


class Undecodable(ClipflowError):
    """The bytes are a picture, but a damaged one."""

    code, status = 'undecodable', 422


class Overloaded(ClipflowError):
    """A queue is full; try again a little later."""

    code, status, retryable = 'overloaded', 429, True


class Internal(ClipflowError):
    """A fault of ours; the trace stands in the log under the request id."""

    code, status = 'internal', 500


class Unavailable(ClipflowError):
    """A stage cannot be reached."""

    code, status, retryable = 'unavailable', 503, True


class NotReady(Unavailable):
    """A stage is still starting or loading its model, or has another model than the stage before it."""

    code = 'not-ready'


class ReadOnly(ClipflowError):
    """The store accepts no writes."""

    code, status = 'read-only', 503


class Timeout(ClipflowError):
    """The deadline of the request has passed."""

    code, status, retryable = 'timeout', 504, True


class StorageFull(ClipflowError):
    """No space is left for the store."""

    code, status = 'storage-full', 507


def _tree(root: type[ClipflowError]) -> dict[str, type[ClipflowError]]:
    found = {root.code: root} if root is not ClipflowError else {}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE: dict[str, type[ClipflowError]] = _tree(ClipflowError)


def from_code(code: str, message: str) -> ClipflowError:
    """The error of this code; an unknown code (a newer server) becomes `Internal` and keeps its text."""
    found = BY_CODE.get(code)
    return found(message) if found else Internal(f'{code}: {message}')


def from_description(description: str) -> ClipflowError:
    """Parse `code: sentence`, the form in which errors travel in a Jina status."""
    match = _DESCRIPTION.match(description)
    if match and match['code'] in BY_CODE:
        return from_code(match['code'], match['message'])
    return Internal(description or 'the service failed without saying why')


def first_line(error: BaseException) -> str:
    """Of what a library says; the rest is for the log."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""The kinds of errors, and their messages."""

from typing import ClassVar


class Error(Exception):
    """Base of all; from the backend the attributes are set on the class, so they are the latest error's."""

    message: ClassVar[str] = ''
    type: ClassVar[str] = ''
    location: ClassVar[str] = ''


class RecoverableError(Error):
    """Can be recovered by `recovery_action`."""

    recovery_action: ClassVar[str] = ''


class UnrecoverableError(Error):
    """The device is lost."""


def python_error(what: str) -> Error:
    """39: what the Python side raises begins like this."""
    return Error(f"'poptorch_py_error': {what}")


def backend_error(kind: type[Error], what: str, action: str = '') -> Error:
    """34, 39: what the backend raises; attributes are set on the class as in the original."""
    kind.message, kind.type, kind.location = what, 'popart_exception', 'double'
    if issubclass(kind, RecoverableError):
        kind.recovery_action = action
    tail = f' Recovery action required: {action}' if action else ''
    return kind(f"In double.cpp:1: 'popart_exception': {what}{tail}")

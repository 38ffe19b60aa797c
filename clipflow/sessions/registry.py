"""From the name of a runtime to its session. A runtime's module is imported only when it is chosen."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from clipflow.sessions.base import Session
from clipflow.settings import EncoderSettings
from clipflow.weights import ModelSpec

_RUNTIMES = {
    'torch': 'clipflow.sessions.torch',
    'fake': 'clipflow.sessions.fake',
}


def open_session(spec: ModelSpec, settings: EncoderSettings) -> Session:
    """Load `spec` on the runtime of the settings; `auto` is torch, which every installation has."""
    runtime = 'torch' if settings.runtime == 'auto' else settings.runtime
    load = cast(Callable[[ModelSpec], Session], import_module(_RUNTIMES[runtime]).load)
    return load(spec)

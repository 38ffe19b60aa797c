"""The base class of our Executors, and how their endpoints take in and report.

An endpoint gets its parameters parsed, raises `ClipflowError`, and Jina writes `repr` of it (`code: sentence`) into the
status of the reply. Anything else that escapes is a fault of ours: it goes to the log, under the request id.
"""

import difflib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Concatenate, TypeVar

from docarray import DocumentArray
from jina import Executor, requests

from clipflow import __version__, logs, tracing, wire
from clipflow.border import messages, serving
from clipflow.border.process import prepare_process
from clipflow.errors import ClipflowError, Internal, InvalidParameter
from clipflow.settings import RoomSettings
from clipflow.weights import ModelSpec, load_spec
from clipflow.wire import Parameters
from clipflow.work import WorkQueue

_JINAS_OWN = ('metas', 'requests', 'runtime_args', 'workspace', 'dynamic_batching', 'work_dir', 'name')

# Before OpenMP is loaded: by default its helpers spin for milliseconds after each parallel part, on the cores that the
# next stage needs. 2,000 turns keep the model as fast, and one search takes a third less.
os.environ.setdefault('GOMP_SPINCOUNT', '2000')

R = TypeVar('R', bound='Room')
Q = TypeVar('Q', bound=Parameters)


class Room(Executor):  # type: ignore[misc]
    """Base of our Executors: settings from YAML and environment, the model's specification, a logger, a work queue.

    A subclass names its `settings_class` and loads what it needs in `open`; a failure there stops the service with its
    sentence.
    """

    stage: ClassVar[str]
    settings_class: ClassVar[type[RoomSettings]]

    def __init__(self, **given: Any) -> None:
        own = {
            name: given.pop(name) for name in self.settings_class.model_fields if name in given and name != 'workspace'
        }
        super().__init__(**given)
        prepare_process()
        started = time.monotonic()
        try:
            for name in given:
                if name not in _JINAS_OWN:
                    near = difflib.get_close_matches(name, self.settings_class.model_fields, 1)
                    hint = f'; did you mean {near[0]!r}?' if near else ''
                    raise InvalidParameter(f'the {self.stage} has no setting {name!r}{hint}')
            self.settings = self.settings_class.load(**own)
            serving.install(self.works, self.settings.drain_seconds)
            self.log = logs.configure(self.settings.log_format, self.stage)
            # Of each request that fails Jina writes a line, from which `quiet_error` takes all words.
            jinas = logging.getLogger(getattr(self.runtime_args, 'name', self.stage))
            jinas.addFilter(lambda record: record.getMessage() != '')
            self.spec: ModelSpec = load_spec(self.settings.model)
            tracing.start(self.settings.otlp_endpoint, self.stage)
            self.work: WorkQueue
            self.log.info('starting with the model %s', self.spec.name)
            self.open()
            gc.freeze()  # what is loaded stays; the collector need not walk through a whole model again and again
        except ClipflowError as error:
            print(f'clipflow: the {self.stage} cannot start: {error!r}', file=sys.stderr, flush=True)
            logging.disable(logging.CRITICAL)  # the cause is said; Jina would add traces of its own
            raise
        self.log.info('ready in %.1f s', time.monotonic() - started)

    def open(self) -> None:
        """Load what this room works with."""
        raise NotImplementedError

    @property
    def replicas(self) -> int:
        """How many processes like this one share the host."""
        return int(getattr(self.runtime_args, 'replicas', 1) or 1) * int(getattr(self.runtime_args, 'shards', 1) or 1)

    async def works(self) -> bool:
        """Whether this room can do its work; loading has ended when it is asked."""
        return True

    async def status(self, docs: DocumentArray, **found: Any) -> DocumentArray:
        """The reply to `/status`: what earlier stages said, and one Document of our own."""
        earlier = [doc for doc in docs if doc.tags.get('stage')] if self.stage != 'preprocessor' else []
        tags = {
            'stage': self.stage,
            'ready': await self.works(),
            'replica': f'{socket.gethostname()}-{os.getpid()}',
            'version': __version__,
            'model': self.spec.name,
            'fingerprint': self.spec.fingerprint,
            'waiting': self.work.taken,
            'warnings': [],
            **found,
        }
        return DocumentArray(earlier) + wire.result_document(self.stage, tags)

    def close(self) -> None:
        """Let running work finish."""
        if hasattr(self, 'work'):
            self.work.close()
        tracing.stop()


Endpoint = Callable[Concatenate[R, DocumentArray, Q, ...], Awaitable[DocumentArray | None]]


def endpoint(*paths: str, parse: type[Q]) -> Callable[[Endpoint[R, Q]], Any]:
    """Bind a coroutine method to endpoints of the Flow.

    Args:
        paths: the endpoints.
        parse: the class of their parameters.
    """

    def bind(method: Endpoint[R, Q]) -> Any:
        async def call(self: R, docs: DocumentArray, parameters: dict[str, Any], **kwargs: Any) -> DocumentArray | None:
            try:
                parsed = parse.parse(parameters)
                parsed.check_deadline()
                begun = time.perf_counter()
                with tracing.span(self.stage, parsed.trace, documents=len(docs)):
                    reply = await method(self, docs, parsed)
                if self.settings.log_requests:
                    spent = (time.perf_counter() - begun) * 1000
                    identifier = {'request': parsed.request_id}
                    self.log.info('%s, %d documents, %.1f ms', paths[0], len(docs), spent, extra=identifier)
                return messages.put_back(docs, docs if reply is None else reply, self.stage)
            except ClipflowError:
                raise
            except Exception:
                request = parameters.get(wire.REQUEST_ID, 'unknown')
                self.log.exception('request %s failed', request)
                raise Internal(f'the {self.stage} failed; the log has the details under request {request}') from None

        call.__name__ = method.__name__
        call.__qualname__ = method.__qualname__
        call.__doc__ = method.__doc__
        return requests(on=list(paths))(call)

    return bind

"""Is the process alive, is every stage there, and what does each say of itself."""

import asyncio
import re
import time
from typing import Any

from docarray import DocumentArray
from fastapi import APIRouter, Request, Response

from clipflow import __version__, access
from clipflow.errors import ClipflowError, NotReady, from_code
from clipflow.metrics import CONTENT_TYPE, Metrics
from clipflow.tags import plain_tags
from clipflow.web.flow import FlowCall
from clipflow.wire import DEADLINE

STAGES = ('preprocessor', 'encoder', 'indexer', 'ranker')
_PROBE_SECONDS = 5.0
_FRESH_SECONDS = 1.0


class _Probe:
    """Asks all stages at most once a second, however often it is asked itself, and lets `metrics` know."""

    def __init__(self, flow: FlowCall, metrics: Metrics) -> None:
        self._flow, self._metrics = flow, metrics
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._found: dict[str, dict[str, Any]] | ClipflowError = {}

    async def stages(self) -> dict[str, dict[str, Any]]:
        """What each stage says, by its name."""
        async with self._lock:
            if time.monotonic() > self._until:
                asking = access.probing.set(True)
                try:
                    docs = await self._flow('/status', DocumentArray(), {DEADLINE: time.time() + _PROBE_SECONDS})
                    self._found = {doc.id: plain_tags(doc) for doc in docs}
                    self._metrics.note(self._found)
                except ClipflowError as error:
                    self._found = error  # also for those that wait here: each would wait for a time-out of its own
                finally:
                    access.probing.reset(asking)
                self._until = time.monotonic() + _FRESH_SECONDS
            if isinstance(self._found, ClipflowError):
                raise from_code(self._found.code, self._found.message)
            return self._found


def _ready(stages: dict[str, dict[str, Any]], name: str) -> list[bool]:
    """Whether a stage can work, or each of its shards `name_0`, `name_1`, ...: some are enough for partial answers."""
    return [bool(told['ready']) for found, told in stages.items() if re.fullmatch(rf'{name}(_\d+)?', found)]


def router(flow: FlowCall, metrics: Metrics) -> APIRouter:
    """`/healthz`, `/readyz`, `/v1/status`, `/metrics`."""
    routes = APIRouter(tags=['status'])
    probe = _Probe(flow, metrics)

    @routes.get('/healthz', summary='The process answers')
    async def healthz() -> dict[str, str]:
        return {'status': 'ok'}

    @routes.get('/readyz', summary='Every stage answers, and the service is not about to stop')
    async def readyz(request: Request) -> dict[str, str]:
        if getattr(request.app.state, 'draining', False):
            raise NotReady('the service is about to stop')
        try:
            stages = await probe.stages()
        except ClipflowError as error:
            raise NotReady(error.message) from None
        ready = {stage: _ready(stages, stage) for stage in STAGES}
        if missing := [stage for stage, found in ready.items() if not found]:
            raise NotReady(f'no answer from: {", ".join(missing)}')
        if broken := [stage for stage, found in ready.items() if not any(found)]:
            raise NotReady(f'cannot work: {", ".join(broken)}; see /v1/status and the log')
        return {'status': 'ready'}

    @routes.get('/v1/status', summary='What each stage says of itself')
    async def status() -> dict[str, Any]:
        return {'version': __version__, 'stages': await probe.stages()}

    @routes.get('/metrics', summary='For Prometheus', response_class=Response)
    async def told() -> Response:
        try:
            stages = await probe.stages()
        except ClipflowError:
            stages = {}
        return Response(metrics.text(stages), media_type=CONTENT_TYPE)

    return routes

"""The FastAPI application: one router a resource, our errors, our limits. It reaches the Flow through one function."""

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from clipflow import __version__
from clipflow.access import Access, RateLimit
from clipflow.metrics import Metrics
from clipflow.settings import GatewaySettings
from clipflow.web import (
    bodies,
    clip_retrieval,
    collection,
    documents,
    health,
    jina_http,
    learning,
    limits,
    model,
    openai,
    page,
    problems,
    search,
)
from clipflow.web.documents import NewDocuments
from clipflow.web.flow import FlowCall, checked
from clipflow.web.guard import Guard
from clipflow.web.search import SearchRequest


def create_app(
    flow: FlowCall, settings: GatewaySettings, access: Access, metrics: Metrics, *, local: bool = True
) -> FastAPI:
    """Build the application.

    Args:
        flow: sends Documents to an endpoint of the Flow.
        settings: limits.
        access: who may ask.
        metrics: what is counted.
        local: whether only this machine can reach it.
    """
    app = FastAPIOffline(
        title='clipflow',
        version=__version__,
        description='Find pictures and texts by meaning.',
        redoc_url=None,
        responses=problems.DESCRIBED,
        # `Guard` looks at the key; this says in the description that one is needed, and lets /docs send it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if access.asks else [],
    )
    flow = checked(flow)
    problems.install(app)
    app.include_router(health.router(flow, metrics))
    app.include_router(search.router(flow))
    app.include_router(documents.router(flow, settings.max_request_bytes))
    app.include_router(collection.router(flow, settings))
    app.include_router(model.router(flow))
    app.include_router(learning.router(flow))
    app.include_router(jina_http.router(flow))
    app.include_router(page.router())
    app.include_router(clip_retrieval.router(flow))
    app.include_router(openai.router(flow))
    bodies.describe_all(app, [SearchRequest, NewDocuments])
    app.add_middleware(limits.AnswersHead)
    app.add_middleware(limits.BodyLimit, limit=settings.max_request_bytes, seconds=settings.request_timeout)
    app.add_middleware(limits.CancelOnDisconnect)
    app.add_middleware(
        Guard,
        access=access,
        limit=RateLimit(settings.rate_limit),
        origins=settings.cors_origins,
        hosts=settings.allowed_hosts if (local or settings.allowed_hosts) and not access.asks else None,
    )
    app.add_middleware(limits.Traceable, metrics=metrics)
    if settings.cors_origins:
        # Outermost: a browser asks for permission without a key, and has to see refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=['*'],
            allow_headers=['*'],
            expose_headers=['Retry-After', 'X-Request-ID'],
        )

    return app

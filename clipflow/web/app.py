"""The FastAPI application: one router a resource, our errors, our limits. It reaches the Flow through one function."""

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from clipflow import __version__
from clipflow.settings import GatewaySettings
from clipflow.web import bodies, collection, documents, health, jina_http, limits, model, problems, search
from clipflow.web.documents import NewDocuments
from clipflow.web.flow import FlowCall, checked
from clipflow.web.search import SearchRequest


def create_app(flow: FlowCall, settings: GatewaySettings) -> FastAPI:
    """Build the application.

    Args:
        flow: sends Documents to an endpoint of the Flow.
        settings: limits.
    """
    app = FastAPIOffline(
        title='clipflow',
        version=__version__,
        description='Find pictures and texts by meaning.',
        redoc_url=None,
    )
    flow = checked(flow)
    problems.install(app)
    app.include_router(health.router(flow))
    app.include_router(search.router(flow))
    app.include_router(documents.router(flow, settings.max_request_bytes))
    app.include_router(collection.router(flow, settings))
    app.include_router(model.router(flow))
    app.include_router(jina_http.router(flow))
    bodies.describe_all(app, [SearchRequest, NewDocuments])
    app.add_middleware(limits.BodyLimit, limit=settings.max_request_bytes)
    app.add_middleware(limits.CancelOnDisconnect)

    @app.get('/', include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse('docs')

    return app

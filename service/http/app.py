"""The application: `create_app(settings)` lists what a request passes. It knows no processes and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware

from service.http.middleware.access import RequireKey
from service.http.middleware.draining import Accepted, Closing, Draining
from service.http.middleware.keys import Keys
from service.http.middleware.lingering import Lingering
from service.http.middleware.rate_limit import rate_limit
from service.http.middleware.request_log import RequestLog
from service.http.middleware.security import SecurityHeaders, cors
from service.http.middleware.shedding import Shedding
from service.http.middleware.unexpected import HeadAsGet, UnexpectedErrors
from service.http.problems import add_error_handlers
from service.http.routes import classify, health, introspect, metrics, models, oip, page
from service.runtime.lifecycle import Serving
from service.settings import Settings, load_settings
from service.telemetry.tracing import make_tracer

DESCRIPTION = """\
Pretrained ResNets over HTTP: `/classify` answers with labels, `/introspect` with what every residual block
added. Every error is `application/problem+json` with a `code`.
"""
LAST_BATCH_S = 1.0  # how long the batch that runs when draining is over may still take


def create_app(settings: Settings | None = None, serving: Serving | None = None) -> FastAPI:
    """Return the ASGI application. `settings` default to the environment's.

    Args:
        serving: what the application serves; by default a `Serving` of its own. The application loads it
            when it starts, and closes it when it ends.
    """
    settings = settings or load_settings()
    serving = serving or Serving(settings)
    accepted = Accepted()
    tracer = make_tracer(settings.otlp_endpoint)
    app = FastAPIOffline(
        title="Residuum",
        version=installed_version(),
        description=DESCRIPTION,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        lifespan=_lifespan,
        # In the order in which a request passes them; its answer comes back the other way.
        middleware=[
            Middleware(Lingering),
            Middleware(HeadAsGet),
            Middleware(RequestLog, serving.metrics, settings.access_log, tracer),
            Middleware(SecurityHeaders, cross_origin=bool(settings.cors_origin)),
            Middleware(Closing, serving=serving),
            *cors(settings),
            Middleware(Draining, serving=serving, accepted=accepted),
            Middleware(UnexpectedErrors),
            Middleware(RequireKey, keys=Keys(settings)),
            *rate_limit(settings),
            Middleware(Shedding, serving=serving),
        ],
    )
    app.state.serving = serving
    app.state.accepted = accepted
    app.state.tracer = tracer
    for routes in (classify, introspect, models, oip, health, metrics, page):
        app.include_router(routes.router)
    add_error_handlers(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the models in the background, while requests are answered with 503; close them at the end."""
    serving: Serving = app.state.serving
    loading = asyncio.create_task(serving.load())
    yield
    serving.drain()
    await loading
    await asyncio.to_thread(serving.close, LAST_BATCH_S)
    if app.state.tracer is not None:
        await asyncio.to_thread(app.state.tracer.close)


def installed_version() -> str:
    try:
        return version("residuum")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"

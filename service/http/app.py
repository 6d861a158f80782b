"""The application: `create_app(settings)` lists what a request passes. It knows no processes and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route

from artifact.version import installed_version
from service.http import routes
from service.http.direct import CallDirectly
from service.http.error_handlers import add_error_handlers
from service.http.middleware.access import RequireKey
from service.http.middleware.draining import RefuseWhileDraining
from service.http.middleware.exchanges import Exchanges
from service.http.middleware.gate import Accepted, Check, Gate
from service.http.middleware.keys import Keys
from service.http.middleware.rate_limit import rate_limit
from service.http.middleware.request_log import RequestLog
from service.http.middleware.security import cors, security_headers
from service.http.middleware.shedding import Shedding
from service.http.middleware.unexpected_errors import UnexpectedErrors
from service.http.policy import OPEN, Policy, RouteTable, declared
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
    table = RouteTable()
    tracer = make_tracer(settings.otlp_endpoint)
    log = RequestLog(serving.metrics, settings.access_log, tracer)
    headers = security_headers(cross_origin=bool(settings.cors_origin))
    # What may refuse a request before its body is read, in this order.
    checks: list[Check] = [RequireKey(Keys(settings)), *rate_limit(settings), Shedding(serving)]
    app = FastAPIOffline(
        title="Residuum",
        version=installed_version(),
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,  # the framework's redirect names whatever host the client named
        generate_unique_id_function=lambda route: route.name,
        lifespan=_lifespan,
        # Requests are traced and counted in Exchanges; the framework asks at every request whether it should.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # In the order in which a request passes them; its answer comes back the other way.
        middleware=[
            Middleware(Exchanges, table, log, headers, lambda: serving.is_draining),
            *cors(settings),
            Middleware(UnexpectedErrors),
            Middleware(Gate, RefuseWhileDraining(serving), checks, accepted),
            Middleware(CallDirectly),
        ],
    )
    app.state.serving = serving
    app.state.accepted = accepted
    app.state.tracer = tracer
    app.state.table = table
    for route in app.routes:  # FastAPI's own: the OpenAPI document, and the page that shows it
        table.add([route], _documentation(route, app))
    for router in routers():
        app.include_router(router)
        table.add(router.routes)
    add_error_handlers(app)
    return app


def routers() -> list[APIRouter]:
    """Return the `router` of every module in service/http/routes, in the order of the OpenAPI document.

    The order is by name, but routers that anybody may call come last.
    """
    names = [module.name for module in iter_modules(routes.__path__, f"{routes.__name__}.")]
    found: list[APIRouter] = [import_module(name).router for name in names]
    return sorted(found, key=lambda router: all(declared(route).access == "open" for route in router.routes))


def _documentation(route: BaseRoute, app: FastAPI) -> Policy:
    if isinstance(route, Mount):
        return replace(OPEN, browser="page")
    assert isinstance(route, Route)
    return OPEN if route.path == app.openapi_url else replace(OPEN, browser="docs")


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

"""The server: `create_app(settings)` puts it together, `serve(settings)` runs it until a signal.

What a request passes, in this order: HeadAsGet -> UnexpectedErrors -> a route -> on an error, its handler.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.responses import RedirectResponse

from service.error_handlers import add_error_handlers
from service.middleware import HeadAsGet, UnexpectedErrors
from service.repository import LoadedGraph
from service.routes import classify, health, introspect, models
from service.serving import Serving
from service.settings import Settings, SettingsError, load_settings

logger = logging.getLogger("residuum")

DESCRIPTION = """\
Pretrained ResNets over HTTP: `/classify` answers with labels, `/introspect` with what every residual block
added. Every error is `application/problem+json` with a `code`.
"""
LAST_BATCH_S = 1.0  # how long the batch that runs when draining is over may still take

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "residuum": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}


def create_app(
    settings: Settings | None = None, when_loaded: Callable[[Serving], None] = lambda _: None
) -> FastAPI:
    """The ASGI application; without `settings` the environment decides. See Serving for `when_loaded`."""
    app = FastAPIOffline(
        title="Residuum",
        version=installed_version(),
        description=DESCRIPTION,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        lifespan=_lifespan,
    )
    app.state.serving = Serving(settings or load_settings(), when_loaded)
    for routes in (classify, introspect, models, health):
        app.include_router(routes.router)
    app.add_api_route("/", _front_page, include_in_schema=False)
    add_error_handlers(app)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(HeadAsGet)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load while already answering that it is not ready; at the end finish what was accepted."""
    serving: Serving = app.state.serving
    loading = asyncio.create_task(serving.load())
    yield
    serving.drain()
    await loading
    await asyncio.to_thread(serving.close, LAST_BATCH_S)


async def _front_page() -> RedirectResponse:
    return RedirectResponse("docs")


def installed_version() -> str:
    try:
        return version("residuum")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted, within `settings.drain_timeout`.

    Raises:
        SettingsError: it cannot listen on that host and port.
        LoadError: a model cannot be served.
    """
    logging.config.dictConfig(LOGGING)
    listener = _listen(settings)
    url = _url(listener)

    def when_loaded(serving: Serving) -> None:
        if serving.failure:
            server.should_exit = True
        elif serving.state == "ready":
            logger.info("Ready: %s at %s", describe_models(serving), url)

    app = create_app(settings, when_loaded)
    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=settings.drain_timeout,  # type: ignore[arg-type]  # a float will do
    )
    server = _Server(config, app.state.serving)
    # uvicorn raises the signal again when it has stopped; these make that harmless, so that we exit with 0.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if app.state.serving.failure:
        raise app.state.serving.failure


class _Server(uvicorn.Server):
    """uvicorn, which also says that it is not ready as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._serving.drain()
        super().handle_exit(sig, frame)


def describe_models(serving: Serving) -> str:
    """`resnet18 1.0 (classify fp32, onnxruntime 1.31.1 on cpu, 2 threads; introspect ...)` of every model."""
    return ", ".join(
        f"{model.name} {model.manifest.version} ("
        + "; ".join(f"{kind} {describe_graph(graph)}" for kind, graph in model.graphs.items())
        + ")"
        for model in serving.models
    )


def describe_graph(graph: LoadedGraph) -> str:
    """`int8, openvino 2026.4.1 latency on cpu, 2 threads`."""
    engine = graph.engine
    mode = f" {engine.mode}" if engine.mode != engine.device else ""
    threads = f", {engine.threads} threads" if engine.threads else ""
    return f"{graph.precision}, {engine.name} {engine.version}{mode} on {engine.device}{threads}"


def _listen(settings: Settings) -> socket.socket:
    """A listening socket, had before the models are loaded, so that a taken port is known at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        raise SettingsError(
            f"--host {settings.host} --port {settings.port}: cannot listen there: {why}; "
            "choose another (--port 0: any free one)"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

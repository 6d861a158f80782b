"""`serve(settings)`: the server, in one process or in several."""

from __future__ import annotations

import socket
from contextlib import closing

from service.http.app import create_app
from service.process import allocator, interpreter
from service.process.listening import listen, url_of
from service.process.server import Server, describe_models, logger
from service.runtime.lifecycle import Serving
from service.settings import Settings
from service.telemetry import logs


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish accepted requests within `settings.drain_timeout`.

    Raises:
        SettingsError: the server cannot listen on that host and port.
        LoadError: a model cannot be served.
    """
    logs.configure(settings.log_format)
    allocator.give_back()
    interpreter.share_lock()
    with closing(listen(settings)) as listener:
        if settings.workers > 1:
            from service.process.supervisor import supervise

            supervise(settings, listener)
        else:
            serve_alone(settings, listener)


def serve_alone(settings: Settings, listener: socket.socket) -> None:
    """Serve in this process."""
    url = url_of(listener)

    def when_loaded(serving: Serving) -> None:
        if serving.failure:
            server.should_exit = True
        elif serving.state == "ready":
            interpreter.collect_rarely()
            logger.info("Ready: %s at %s", describe_models(serving), url)

    app = create_app(settings, Serving(settings, when_loaded))
    server = Server(app, settings, listener)
    server.run([listener])
    if app.state.serving.failure:
        raise app.state.serving.failure

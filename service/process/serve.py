"""`serve(settings)`: the server, in one process or in several."""

from __future__ import annotations

import socket
from contextlib import closing

from engines.machine import num_cores
from service.http.app import create_app
from service.process import interpreter
from service.process.listening import listen, url_of
from service.process.server import Server, describe_models, logger
from service.runtime import allocator
from service.runtime.lifecycle import Serving
from service.settings import Settings
from service.telemetry import logs

CHEAP_MS = (
    4.0  # processor time of an image's inference, below which Python's lock leaves cores idle under load
)


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
            if (image_ms := cheap_image_ms(serving)) is not None:
                logger.info(
                    "Inference takes %.1f ms of a core an image, so under load Python is the bottleneck: "
                    "--workers %d answers more requests, and takes the memory of as many processes.",
                    image_ms,
                    num_cores(),
                )

    app = create_app(settings, Serving(settings, when_loaded))
    server = Server(app, settings, listener)
    server.run([listener])
    if app.state.serving.failure:
        raise app.state.serving.failure


def cheap_image_ms(serving: Serving) -> float | None:
    """Return the processor time of an image's inference, if more processes would answer more requests."""
    graph = serving.models.get(None).graphs["classify"]
    if num_cores() == 1 or graph.engine.device != "cpu":
        return None
    batches_ms = graph.batcher.longest_batch_ms * num_cores()  # of all instances, which run at once
    image_ms = batches_ms / (graph.instances * graph.batcher.largest_batch)
    return image_ms if image_ms < CHEAP_MS else None

"""Make the tracer if requests are traced; without `--otlp-endpoint`, OpenTelemetry's SDK is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from engines.settings import SettingsError

if TYPE_CHECKING:
    from service.telemetry.opentelemetry import Tracer


INSTALL = "pip install 'residuum[tracing]'"


def make_tracer(endpoint: str | None) -> Tracer | None:
    """Return a tracer that sends spans to the collector at `endpoint`, or None without one.

    Raises:
        SettingsError: `endpoint` is not an address, or the extra `tracing` is not installed.
    """
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        # The message does not repeat what was given, which may contain a password.
        raise SettingsError("--otlp-endpoint: that is not an address, such as http://127.0.0.1:4318")
    try:
        from service.telemetry.opentelemetry import Tracer
    except ModuleNotFoundError as error:
        raise SettingsError(f"--otlp-endpoint: OpenTelemetry is not installed: {INSTALL}") from error
    return Tracer(endpoint)

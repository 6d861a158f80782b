"""The form of log lines on stderr: `configure(form)` chooses text, or JSON with one object a line.

Lines that are written while a request is answered carry the ids in `request_ids`, which the middleware that
logs requests sets. This module knows no HTTP.
"""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for every line
NONE: Mapping[str, str] = MappingProxyType({})

# request_id; also trace_id and span_id if the client sent a trace context or the server traces.
request_ids: ContextVar[Mapping[str, str]] = ContextVar("request_ids", default=NONE)


def configure(form: Literal["text", "json"]) -> None:
    """Write the log lines of the whole process in one form."""
    formatter = {"text": TextFormatter, "json": JsonFormatter}[form]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {"residuum": {"level": "INFO"}},
        }
    )
    logging.captureWarnings(True)
    # No form shows these; logging's own documentation recommends switching them off.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class TextFormatter(logging.Formatter):
    """Time, level and message; within a request, its id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        line = super().formatMessage(record)
        ids = request_ids.get()
        return f"{line} [{ids['request_id']}]" if ids else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the items of `extra={"fields": {...}}` become its members."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **request_ids.get(),
            **getattr(record, "fields", NONE),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return encode(line)


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch in the form `2026-11-21T10:15:00.123Z`."""
    whole = int(seconds)
    return f"{_date_and_time(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=1)  # under load, many lines have the same second
def _date_and_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]

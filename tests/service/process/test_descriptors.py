"""A server that has no file descriptors left says so, serves whom it has, and takes others when it can."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack

import httpx
import pytest

from service.process.descriptors import SAY_AGAIN_S, DescriptorWatch
from tests.support.live import SERVE, live_server

LIMIT = 80  # of which a server itself takes about thirty
NONE_LEFT, SOME_AGAIN = "No file descriptors are left", "There are file descriptors again"


class Now:
    """A clock, and whether files can be opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time_s = 1000.0
        self.error: int | None = None
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(time, "monotonic", lambda: self.time_s)

    def open(self, path: str, flags: int) -> int:
        if self.error is not None:
            raise OSError(self.error, "cannot open")
        return self._open(path, flags)


def test_what_is_said_and_how_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def said(error: int | None, after_s: float) -> list[str]:
        now.time_s += after_s
        now.error = error
        caplog.clear()
        watch.look()
        return [record.getMessage().partition(":")[0] for record in caplog.records]

    watch = DescriptorWatch()
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "residuum"):
        now = Now(patched)
        assert said(None, 1) == []
        assert said(errno.EMFILE, 1) == [NONE_LEFT]
        assert said(errno.EMFILE, 1) == []
        assert said(None, 1) == [SOME_AGAIN]
        assert said(None, 1) == []
        assert said(errno.EMFILE, 1) == said(None, 1) == []  # it comes and goes
        assert said(errno.ENFILE, SAY_AGAIN_S) == [NONE_LEFT]
        assert said(errno.ENFILE, SAY_AGAIN_S) == [NONE_LEFT]
        assert said(errno.ENOENT, 1) == [SOME_AGAIN]  # it is no lack


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_without_descriptors(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    monkeypatch.setattr("tests.support.live.SERVE", limit + SERVE)
    with live_server(workers=workers) as server, httpx.Client(base_url=server.url, timeout=60) as first:
        assert first.get("/health/live").status_code == 200
        with ExitStack() as stack:
            for _ in range(workers * LIMIT):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            server.wait_until_said(NONE_LEFT, workers)
            for _ in range(3):  # over the connection that it has
                assert first.get("/health/live").status_code == 200
        server.wait_until_said(SOME_AGAIN, workers)
        assert httpx.get(f"{server.url}/health/live", timeout=60).status_code == 200
        assert server.num_said(NONE_LEFT) == workers
        assert server.num_said("Traceback") == server.num_said("Cannot accept") == 0

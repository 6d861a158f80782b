"""A real HTTP server on a free port of loopback, whose files can be cut off, moved, refused or held back."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class ServedFile:
    """What is answered for one path; lists are used up, one element a request."""

    data: bytes = b""
    etag: str | None = '"1"'
    ranges: bool = True  # understood, or ignored
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)  # instead of the file
    cuts: list[int] = field(default_factory=list)  # the connection ends after as many bytes
    hold: bool = False  # headers and half of the body, then silence until the server ends


@dataclass
class Seen:
    """A request, and how many bytes of body it got."""

    path: str
    headers: dict[str, str]  # lower case
    sent: int = 0


class FilesServer:
    def __init__(self) -> None:
        self.files: dict[str, ServedFile] = {}
        self.seen: list[Seen] = []
        self.ending = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, path: str, data: bytes = b"", **how: object) -> str:
        """The file's URL."""
        self.files[f"/{path}"] = ServedFile(data, **how)  # type: ignore[arg-type]
        return f"{self.url}/{path}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        seen = Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        self.seen.append(seen)
        file = self.files.get(handler.path)
        if file is None or file.statuses:
            handler.send_error(file.statuses.pop(0) if file else 404)
            return
        if file.redirect:
            handler.send_response(302)
            handler.send_header("Location", file.redirect)
            self._end_headers(handler, file, 0)
            return
        start = self._send_status(handler, file, seen)
        if start is None:
            return
        body = file.data[start:]
        self._end_headers(handler, file, len(body))
        if file.hold:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            self.ending.wait()
            return
        seen.sent = min(len(body), file.cuts.pop(0)) if file.cuts else len(body)
        handler.wfile.write(body[: seen.sent])  # HTTP/1.0: then the connection ends, early if that was short

    def _send_status(self, handler: BaseHTTPRequestHandler, file: ServedFile, seen: Seen) -> int | None:
        """The status line for the whole file or a part; where the part begins, or None if there is none."""
        wanted = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
        same = seen.headers.get("if-range", file.etag) == file.etag
        if not (file.ranges and wanted and same):
            handler.send_response(200)
            return 0
        start, size = int(wanted[1]), len(file.data)
        if start >= size:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{size}")
            self._end_headers(handler, file, 0)
            return None
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        return start

    @staticmethod
    def _end_headers(handler: BaseHTTPRequestHandler, file: ServedFile, length: int) -> None:
        if file.etag:
            handler.send_header("ETag", file.etag)
        for name, value in file.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()


@contextmanager
def files_server() -> Iterator[FilesServer]:
    server = FilesServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()

"""uvicorn's HTTP/1.1 protocol, guarded against hostile clients.

uvicorn limits neither the time nor the size of a request's head, nor the time of a body that nobody reads
because the answer has been sent. If a request asks for an upgrade, uvicorn parses the body as the next
request. `protocol_for(settings)` is uvicorn's protocol without these gaps. `body.py` limits how long a body
may take that a route reads. A request that is refused here reaches no middleware.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from artifact.errors import ResiduumError
from service.errors import HeadTooLarge, MalformedRequest, RequestTimeout
from service.http.heads import check_head
from service.http.middleware.lingering_close import LINGER_S
from service.http.middleware.security import api_headers
from service.http.problems import Problem, problem_of
from service.http.waiting import CLIENT, Client, Connection
from service.settings import Settings

logger = logging.getLogger("residuum")

MAX_PIPELINED = 16  # requests of one connection that wait for an earlier answer
MAX_HEAD_BYTES = 2**16  # of the request line and the headers; of trailers too


def protocol_for(settings: Settings) -> type[asyncio.Protocol]:
    """Return the class for `uvicorn.Config(http=...)`."""

    class Protocol(GuardedProtocol):
        pass

    Protocol.settings = settings
    return Protocol


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    At most one timer runs, and only while the client must send: until a head is complete, and until the end
    of a body that was answered early. Between two requests uvicorn's own keep-alive timeout counts.
    """

    settings: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # is answered now; `cycle` is the newest
        self._in_head = False  # a part of a head, or of trailers, has come
        self._in_body = False  # a head has come, but not yet its whole body
        self._num_heads = 0  # heads that have begun, trailers included
        self._head_bytes = 0  # received of a head that comes in several pieces
        self._discarding = False  # further data is discarded
        self._connection = Connection()

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _limit_silence(transport, self.settings.body_timeout)
        self._start_timer(self.settings.header_timeout, self._on_late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._running is not None and self._is_answering():  # uvicorn tells only the newest
            self._running.disconnected = True
            self._running.message_event.set()
            _client_of(self._running).leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unset_keepalive_if_required()
        head_before = self._num_heads if self._in_head else None
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(_error_behind(error))
            return
        if self._in_head and self._num_heads == head_before:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
                return
        if self._timer is None and not self._is_answering():
            if self._in_body:
                self._start_timer(self.settings.body_timeout, self.transport.abort)
            else:
                self._start_timer(self.settings.header_timeout, self._on_late_head)

    # What the parser reports

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CLIENT] = Client(self._connection)  # type: ignore[literal-required]
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # otherwise it is a trailer, which must not count as a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _head_too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest("Too many requests have come before they could be answered.")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise MalformedRequest("CONNECT is not possible here: this is no proxy.")
            return
        check_head(self.parser.get_http_version(), self.headers)
        self._stop_timer()
        super().on_headers_complete()  # raises for an invalid URL
        self._in_head, self._in_body = False, True
        if not self.pipeline:
            self._running = self.cycle

    def on_chunk_header(self) -> None:
        self._begin_head()  # what follows may be trailers, until data comes

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._in_body:  # a head that asks for an upgrade
            return
        self._stop_timer()
        self._in_head, self._in_body = False, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self._in_body and self.expect_100_continue and not self._is_answering():
            # Nobody knows whether the client now leaves the body out, and so where its next request begins.
            self._close_gently()

    # What follows from it

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _begin_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._num_heads += 1

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._start_again_without_upgrade(data[upgrade.args[0] :])

    def _start_again_without_upgrade(self, rest: bytes) -> bytes:
        """Return what to parse next: the same head without its Upgrade header, then the rest.

        A server may ignore an Upgrade (RFC 9110, 7.8). The parser takes the bytes after such a head for
        another protocol, and so would lose the body.
        """
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"".join([*head, b"\r\n", rest])

    def _on_late_head(self) -> None:
        if self._in_head:
            self._refuse(
                RequestTimeout(f"The head took longer than {self.settings.header_timeout:g} seconds.")
            )
        else:
            self.transport.close()

    def _refuse(self, error: ResiduumError) -> None:
        """Answer instead of the application, and close; answers to earlier requests are sent first."""
        problem = problem_of(error)
        if self.settings.access_log:
            logger.info("%s: refused: %d %s", self.client and self.client[0], problem.status, problem.code)
        if self._is_answering() and not self._in_body:
            self.cycle.keep_alive = False
            self._discarding = True
            return
        if self.pipeline:
            self.transport.close()
            return
        if self._is_answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            _client_of(self.cycle).leave()
        if not (self._is_answering() and self.cycle.response_started):
            self.transport.write(self._answer(problem))
        self._close_gently()

    def _answer(self, problem: Problem) -> bytes:
        path = self.url.partition(b"?")[0].decode("latin-1") if self.scope else ""
        response = problem.response(path)
        headers = dict([*response.raw_headers, *api_headers(bool(self.settings.cors_origin))])
        headers[b"connection"] = b"close"
        lines = [b"%b: %b\r\n" % header for header in headers.items()]
        return b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", response.body])

    def _close_gently(self) -> None:
        """Send no more; close when the client has closed, or after LINGER_S (see lingering_close.py)."""
        self._discarding = True
        self._unset_keepalive_if_required()
        self._stop_timer()
        self.transport.write_eof()
        self._start_timer(LINGER_S, self.transport.abort)

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _client_of(cycle: RequestResponseCycle) -> Client:
    client: Client = cycle.scope[CLIENT]  # type: ignore[literal-required]
    return client


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request line and the headers may have {MAX_HEAD_BYTES:,} bytes together.")


def _error_behind(error: httptools.HttpParserError) -> ResiduumError:
    """Return what one of our callbacks raised, or a MalformedRequest with the parser's complaint."""
    if isinstance(error.__context__, ResiduumError):
        return error.__context__
    if isinstance(error, httptools.HttpParserCallbackError):
        return MalformedRequest("The request line cannot be understood.")
    return MalformedRequest(f"What came is no HTTP/1.1 request: {error}.")


def _limit_silence(transport: asyncio.Transport, seconds: float) -> None:
    """Let the kernel close a connection whose client acknowledges no data for `seconds`."""
    connection = transport.get_extra_info("socket")
    if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))

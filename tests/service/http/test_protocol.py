"""Clients that mean no good, over real sockets: slow, endless, broken and ambiguous requests."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from service.http.protocol import MAX_HEAD_BYTES, MAX_PIPELINED
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

TIMEOUT_S = 0.5  # what the server allows heads and bodies here
DRIP_S = 0.05  # between two bytes of a slow client
END_S = 60  # a test fails rather than wait longer
KEY = b"X-API-Key: key\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
IMAGE = encode(photograph(64, 64), "JPEG")
BULK = b"x" * (2 * MAX_HEAD_BYTES)
POST = b"POST /classify HTTP/1.1\r\nHost: a\r\n" + KEY


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(header_timeout=TIMEOUT_S, body_timeout=TIMEOUT_S, api_key="key") as running:
        yield running
    assert "Traceback" not in "".join(running.log)


@pytest.fixture
def connection(server: LiveServer) -> Iterator[socket.socket]:
    with connect(server) as made:
        yield made


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=END_S)


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while True:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not chunk:
            return received
        received += chunk


def talk(server: LiveServer, sent: bytes) -> bytes:
    """What the server answers to these bytes until it closes."""
    with connect(server) as connection:
        connection.sendall(sent)
        return rest(connection)


def one_answer(connection: socket.socket) -> bytes:
    """One answer that has a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1)
    length = int(received.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while length:
        chunk = connection.recv(length)
        received, length = received + chunk, length - len(chunk)
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def statuses(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def problem_code(answer: bytes) -> str:
    """Of an answer that is a whole problem document and closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-type: application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head
    document = json.loads(body)
    assert document["status"] == status(answer)
    return str(document["code"])


def drip(
    connections: list[socket.socket], data: bytes, meanwhile: Callable[[], None] = lambda: None
) -> list[bytes]:
    """Send `data` to each byte by byte, over and over, until the server has closed all; what it answered."""
    answers = dict.fromkeys(connections, b"")
    still_open = set(connections)
    number = 0
    while still_open:
        for connection in still_open:
            with suppress(OSError):  # closed: its answer is read below
                connection.send(data[number % len(data) : number % len(data) + 1])
        number += 1
        assert number * DRIP_S < END_S, "the server lets slow clients drip for ever"
        for connection in select.select(list(still_open), [], [], DRIP_S)[0]:
            try:
                chunk = connection.recv(65536)
            except ConnectionResetError:
                chunk = b""
            answers[connection] += chunk
            if not chunk:
                still_open.discard(connection)
        meanwhile()
    return list(answers.values())


# Slow heads


def test_slow_heads_are_closed_and_others_served_meanwhile(server: LiveServer) -> None:
    served = 0

    def ask() -> None:
        nonlocal served
        answer = client.post("/classify", content=IMAGE, headers={"X-API-Key": "key"})
        assert answer.status_code == 200
        served += 1

    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=END_S))
        connections = [stack.enter_context(connect(server)) for _ in range(100)]
        for connection in connections:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        answers = drip(connections, b"a", ask)
    assert served > 0
    assert {problem_code(answer) for answer in answers} == {"request_timeout"}
    assert {status(answer) for answer in answers} == {408}


def test_a_connection_that_says_nothing(connection: socket.socket) -> None:
    assert rest(connection) == b""


@pytest.mark.parametrize("data", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_a_connection_that_says_nothing_at_length(connection: socket.socket, data: bytes) -> None:
    """The parser skips empty lines before a request, and tells nobody."""
    assert drip([connection], data) == [b""]


def test_a_slow_head_after_a_request(connection: socket.socket) -> None:
    connection.sendall(LIVE)
    assert status(one_answer(connection)) == 200
    [answer] = drip([connection], b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"a" * 100_000)
    assert problem_code(answer) == "request_timeout"


def test_empty_lines_after_a_request(connection: socket.socket) -> None:
    connection.sendall(LIVE)
    assert status(one_answer(connection)) == 200
    assert drip([connection], b"\r\n") == [b""]


def test_a_head_in_pieces_that_is_in_time(connection: socket.socket) -> None:
    for number in range(len(CLOSE)):
        connection.sendall(CLOSE[number : number + 1])
    assert status(rest(connection)) == 200


# Large heads


def head_of(num_bytes: int) -> bytes:
    start = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Long: "
    return start + b"a" * (num_bytes - len(start) - 4) + b"\r\n\r\n"


def test_a_head_within_the_limit(server: LiveServer) -> None:
    assert status(talk(server, head_of(MAX_HEAD_BYTES))) == 200


@pytest.mark.parametrize("num_bytes", [MAX_HEAD_BYTES + 100, 2 * MAX_HEAD_BYTES, 40 * MAX_HEAD_BYTES])
def test_a_head_beyond_the_limit(server: LiveServer, num_bytes: int) -> None:
    answer = talk(server, head_of(num_bytes))
    assert problem_code(answer) == "head_too_large"
    assert status(answer) == 431


@pytest.mark.parametrize(
    "piece", [b"a" * 4096, b"\r\nX-Other: " + b"b" * 4000, b"\r\nX:1" * 1000], ids=["value", "large", "small"]
)
def test_a_head_without_end(connection: socket.socket, piece: bytes) -> None:
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Long: ")
    for _ in range(100 * MAX_HEAD_BYTES // len(piece)):
        if select.select([connection], [], [], 0)[0]:
            break
        connection.sendall(piece)
    else:
        pytest.fail("the server takes a head of any size")
    assert problem_code(rest(connection)) == "head_too_large"


def test_trailers_without_end(connection: socket.socket) -> None:
    connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Long: ")
    for _ in range(100 * MAX_HEAD_BYTES // 4096):
        if select.select([connection], [], [], 0)[0]:
            break
        connection.sendall(b"a" * 4096)
    else:
        pytest.fail("the server takes trailers of any size")
    assert problem_code(rest(connection)) == "head_too_large"


# Ambiguous and broken requests


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 30\r\n\r\nabc",
        POST + b"Content-Length: 3, 3\r\n\r\nabc",
        POST + b"Content-Length: +3\r\n\r\nabc",
        POST + b"Content-Length: -3\r\n\r\nabc",
        POST + b"Content-Length: 99999999999999999999999999\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"X-Folded: a\r\n b\r\n\r\n",
        POST + b"X-Bare: a\nContent-Length: 3\r\n\r\nabc",
        POST + b"X-Bare: a\rb\r\n\r\n",
        POST + b"X-Null: a\0b\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: a\r\n X-Space: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
    ],
    ids=range(30),
)
def test_broken_requests(server: LiveServer, request_bytes: bytes) -> None:
    """One answer, which is 400, and nothing after it is taken for a request."""
    answer = talk(server, request_bytes + LIVE)
    assert statuses(answer) == [400]
    assert problem_code(answer) == "malformed_request"


def test_what_follows_a_broken_request_is_thrown_away(connection: socket.socket) -> None:
    connection.sendall(b"nonsense\r\n\r\n")
    received = connection.recv(65536)  # refused, and still open for what is under way
    for _ in range(3):
        connection.sendall(LIVE)
    connection.shutdown(socket.SHUT_WR)
    received += rest(connection)
    assert statuses(received) == [400]


def test_broken_requests_under_v2(server: LiveServer) -> None:
    answer = talk(server, b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n")
    assert status(answer) == 400
    assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]


def problem_with(server: LiveServer, head: bytes) -> tuple[int, str]:
    """Status and code of the only answer to a head, which closes the connection and has a hint."""
    answer = talk(server, head + b"\r\n" + LIVE)
    assert statuses(answer) == [status(answer)]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["hint"]
    return status(answer), problem_code(answer)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Other: 1\r\nhost: b\r\n",
        b"GET /health/live HTTP/1.0\r\nHost: a\r\nHost: b\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a, b\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a/b\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: user@a\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a:80b\r\n",
        b"GET /health/live HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        b"GET /health/live\r\n",
        b"GET /health/live\r\nHost: a\r\n",
        b"GET /health/live HTTP/0.9\r\nHost: a\r\n",
        b"GET /health/live HTTP/2.0\r\nHost: a\r\n",
        b"POST /classify HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_head_that_others_may_read_otherwise(server: LiveServer, head: bytes) -> None:
    assert problem_with(server, head) == (400, "malformed_request")


@pytest.mark.parametrize(
    "codings",
    [b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"],
)
def test_a_body_that_is_coded_in_transfer(server: LiveServer, codings: bytes) -> None:
    assert problem_with(server, POST + codings + b"\r\n") == (501, "unsupported_transfer_coding")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.0\r\n",
        b"GET /health/live HTTP/1.0\r\nHost: a\r\n",
        *(
            b"GET /health/live HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n"
            for host in (
                *(b"Host:", b"Host: a_b.example:8000", b"HOST:\t127.0.0.1: ", b"Host: [::1]:8000"),
                *(b"Host: [fe80::1%25eth0]", b"host: xn--bcher-kva.example."),
            )
        ),
    ],
)
def test_a_host_that_is_allowed(server: LiveServer, head: bytes) -> None:
    assert status(talk(server, head + b"\r\n")) == 200


@pytest.mark.parametrize(
    "broken", [b"nonsense", b"GET http://a HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nHost: a\r\nX : 1"]
)
def test_what_came_before_a_broken_request_is_answered(server: LiveServer, broken: bytes) -> None:
    before = POST + b"Content-Length: %d\r\n\r\n%b" % (len(IMAGE), IMAGE)
    answers = talk(server, before + broken + b"\r\n\r\n" + LIVE)
    assert statuses(answers) == [200]
    assert b'"predictions"' in answers


def test_trailers_are_no_headers(server: LiveServer) -> None:
    """A proxy that filters headers may let trailers pass."""
    sent = b"POST /classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(talk(server, sent + b"3\r\nabc\r\n0\r\n" + KEY + b"\r\n")) == 401


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything/1.0"])
def test_a_body_is_no_request_whatever_upgrade_is_asked_for(server: LiveServer, protocol: bytes) -> None:
    """The parser takes what follows a head with Upgrade for another protocol, and so for the next request."""
    upgrade = b"Connection: keep-alive, Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    good = POST + upgrade + b"Content-Length: %d\r\n\r\n%b" % (len(IMAGE), IMAGE)
    smuggled = POST + upgrade + b"Content-Length: %d\r\n\r\n%b" % (len(LIVE), LIVE)
    none = b"GET /health/live HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n"
    answers = talk(server, good + smuggled + none + CLOSE)
    assert statuses(answers) == [200, 422, 200, 200]
    assert b'"predictions"' in answers
    assert answers.count(b'"live"') == 2


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_upgrade_in_pieces(connection: socket.socket, size: int) -> None:
    sent = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n%b" % (len(IMAGE), IMAGE)
    for start in range(0, len(sent), size):
        connection.sendall(sent[start : start + size])
    assert status(one_answer(connection)) == 200
    connection.sendall(CLOSE)
    assert status(rest(connection)) == 200


def test_many_requests_that_ask_for_an_upgrade(server: LiveServer) -> None:
    """Each is parsed once more, after the one before it."""
    one = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection:upgrade\r\nUpgrade:a\r\n\r\n"
    assert set(statuses(talk(server, one * (2**18 // len(one))))) == {200}


def test_so_many_may_wait_for_the_answer_to_the_one_before(server: LiveServer) -> None:
    assert statuses(talk(server, LIVE * MAX_PIPELINED + CLOSE)) == [200] * (MAX_PIPELINED + 1)


def test_more_are_not_waited_for(server: LiveServer) -> None:
    """Those that came before the first one too many are answered, and the connection closes."""
    answers = statuses(talk(server, LIVE * 200 + CLOSE))
    assert set(answers) == {200}
    assert MAX_PIPELINED < len(answers) < 200


# Bodies


@pytest.mark.parametrize("pause_after", [b"\r\n", b"", b"x"], ids=["head", "data", "begun"])
def test_large_chunks_with_pauses(connection: socket.socket, pause_after: bytes) -> None:
    """A chunk's head may be the last that comes for a while; then what follows is no long head."""
    chunk = b"%x\r\n%b\r\n" % (len(BULK), BULK)
    cut = {b"\r\n": chunk.index(b"\r\n") + 2, b"": len(chunk), b"x": chunk.index(b"\r\n") + 3}[pause_after]
    pieces = [chunk[:cut], *[chunk[cut:] + chunk[:cut]] * 3, chunk[cut:] + b"0\r\n\r\n"]
    with httpx.Client(base_url=f"http://127.0.0.1:{connection.getpeername()[1]}") as client:
        client.get("/health/live")  # making a client takes a good part of the time that a body may take
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            connection.sendall(piece)
            client.get("/health/live")  # the piece has come by now
    assert status(one_answer(connection)) == 422  # it is no image


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 100000\r\n\r\n",
        b"Content-Type: multipart/form-data; boundary=a\r\nContent-Length: 100000\r\n\r\n--a\r\n",
    ],
    ids=["raw", "multipart"],
)
def test_slow_bodies(server: LiveServer, head: bytes) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in connections:
            connection.sendall(POST + head)
        answers = drip(connections, b"a")
    assert {problem_code(answer) for answer in answers} == {"request_timeout"}


def test_a_body_that_never_comes(server: LiveServer) -> None:
    assert problem_code(talk(server, POST + b"Content-Length: 10\r\n\r\n")) == "request_timeout"


def test_a_slow_body_that_nobody_reads(connection: socket.socket) -> None:
    """It is answered before its end, and then the connection must not stay open for as long as it drips."""
    connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n" + KEY + b"\r\n")
    assert status(one_answer(connection)) == 404
    assert drip([connection], b"a") == [b""]


def test_after_a_refused_body_the_connection_goes_on(connection: socket.socket) -> None:
    """Many clients send head and body apart: the refusal comes in between, and is no reason to close."""
    connection.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(LIVE))
    assert status(one_answer(connection)) == 401  # before the body has come
    connection.sendall(LIVE + CLOSE)
    answers = rest(connection)
    assert statuses(answers) == [200]  # the body was none of the requests


def test_a_body_that_waits_to_be_asked_for(connection: socket.socket) -> None:
    """Refused, it may come or not: what follows cannot be told apart, and is not taken for a request."""
    length = len(LIVE)
    connection.sendall(
        b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % length
    )
    assert status(one_answer(connection)) == 401
    connection.sendall(LIVE + CLOSE)
    assert rest(connection) == b""


def test_a_body_that_is_asked_for(connection: socket.socket) -> None:
    connection.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(IMAGE))
    interim = b""
    while not interim.endswith(b"\r\n\r\n"):
        interim += connection.recv(1)
    assert interim.startswith(b"HTTP/1.1 100 ")
    connection.sendall(IMAGE)
    assert status(one_answer(connection)) == 200
    connection.sendall(CLOSE)
    assert status(rest(connection)) == 200


# Answers that nobody takes


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no such limit, and no /proc")
def test_an_answer_that_is_not_read(server: LiveServer) -> None:
    def num_open() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    with httpx.Client(base_url=server.url, timeout=END_S) as client, socket.socket() as connection:
        assert client.get("/health/live").status_code == 200
        before = num_open()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n" * 8)
        assert select.select([connection], [], [], END_S)[0]
        assert num_open() > before
        give_up = time.monotonic() + END_S
        while num_open() > before:
            assert client.get("/health/live").status_code == 200
            assert time.monotonic() < give_up, "the server keeps an answer for ever that nobody reads"

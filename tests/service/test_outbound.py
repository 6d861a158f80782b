"""The server calls nobody, except the collector of traces where one is set."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest

from tests.support import live
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

IMAGE = encode(photograph(64, 64), "JPEG")
LISTENING = "socket.getaddrinfo ('127.0.0.1', 0)\n"  # its own address: the one thing that is looked up

# Run before the server: every use of Python's sockets that could reach out is written to stderr.
WATCHED = """
import sys
events = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
          "socket.sendto", "socket.sendmsg", "urllib.Request", "subprocess.Popen", "os.system")
def hook(event, args):
    if event in events:
        sys.stderr.write(f"REACHES OUT: {event} {args[-1]!r}\\n" if event == "socket.connect" else
                         f"REACHES OUT: {event} {args[:2]!r}\\n")
sys.addaudithook(hook)
"""

# And Linux kills the process if any code, native code too, connects anywhere or makes a socket for datagrams:
# a seccomp filter, whose packets are struct seccomp_data. A jump counts the steps to leave out.
LOCKED_IN = """
import ctypes, platform, struct, sys
numbers = {"x86_64": (0xC000003E, 42, 41), "aarch64": (0xC00000B7, 203, 198)}.get(platform.machine())
if sys.platform == "linux" and numbers:
    arch, connect, make_socket = numbers
    steps = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 9, arch),  # another one: allow
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 8, 0, connect),  # connect: kill
        (0x15, 0, 6, make_socket),  # not socket: allow
        (0x20, 0, 0, 16),  # load its family
        (0x15, 1, 0, 2),  # IPv4: go on to its type
        (0x15, 0, 3, 10),  # not IPv6 either: allow
        (0x20, 0, 0, 24),  # load its type
        (0x54, 0, 0, 15),  # without its flags
        (0x15, 1, 0, 2),  # SOCK_DGRAM: kill
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x06, 0, 0, 0x80000000),  # kill the process
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    about = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_ulong] * 5
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.addressof(about), 0, 0):
        sys.stderr.write("NO FILTER: the kernel does not allow one\\n")
else:
    sys.stderr.write("NO FILTER: this is not for this platform\\n")
"""


def reaching_out(server: LiveServer) -> list[str]:
    return [line.removeprefix("REACHES OUT: ") for line in server.log if line.startswith("REACHES OUT")]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_server_calls_nobody(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(live, "SERVE", WATCHED + LOCKED_IN + live.SERVE)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with (
        live_server(engine=engine, admin_key="an-admin-key") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for path in (
            "/",
            "/docs",
            "/openapi.json",
            "/models",
            "/models/x",
            "/metrics",
            "/health/ready",
            "/v2",
        ):
            client.get(path)
        for content in (IMAGE, b"", b"http://192.0.2.1/cat.jpg"):
            client.post("/classify", content=content)
            client.post("/introspect", content=content, headers={"Accept": "image/png"})
        client.post("/classify", params={"model": "http://192.0.2.1/model"}, content=IMAGE)
        client.post("/classify", files={"image": ("http://192.0.2.1/cat.jpg", IMAGE)})
        headers = {"X-API-Key": "an-admin-key"}
        client.post("/models/http:%2F%2F192.0.2.1%2Fmodel/load", headers=headers)
        assert client.post("/classify", content=IMAGE).status_code == 200
    assert reaching_out(server) == [LISTENING]


def test_traces_go_where_they_are_to_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(live, "SERVE", WATCHED + live.SERVE)
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        port = collector.server_address[1]
        with live_server(otlp_endpoint=f"http://127.0.0.1:{port}") as server:
            assert httpx.post(f"{server.url}/classify", content=IMAGE).status_code == 200
        collector.shutdown()
    said = reaching_out(server)
    assert said.pop(0) == LISTENING
    assert said
    for line in said:
        assert re.search(rf"'127.0.0.1', {port}\)", line), line


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "import ctypes; ctypes.CDLL(None).connect(0, None, 0); import sys; sys.stderr.write('lives')",
    ],
)
def test_whoever_calls_somebody_is_caught(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """That the test before this one can fail."""
    monkeypatch.setattr(live, "SERVE", LOCKED_IN + code)
    server = LiveServer()
    server.wait()
    log = "".join(server.log)
    if "NO FILTER" in log:
        pytest.skip("there is no such filter here")
    assert "lives" not in log
    assert server.process.returncode == -31  # SIGSYS

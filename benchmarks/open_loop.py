"""An open loop: send requests at a constant rate, whatever the answers do. load.py runs it as a process.

    python -m benchmarks.open_loop URL RATE SECONDS PATIENCE CONTENT_TYPE BODY...

Latency counts from when a request was due, not from when it was sent. So neither a server that stalls nor a
client that is late hides a wait (coordinated omission). A request takes an idle connection or opens a new
one. Print `{"cpu_s": ..., "answers": [[due_s, latency_s, status, sent_late_s], ...]}`; status 0 means no
answer within PATIENCE. `cpu_s` is the client's own processor time, which it takes from the server's cores.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one request at a time; it is in `idle` between requests."""

    def __init__(self, idle: list[Connection]) -> None:
        self._idle = idle
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def send(self, request: bytes) -> int:
        self._status = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)  # type: ignore[attr-defined]
        try:
            return await self._status
        except asyncio.CancelledError:
            self._transport.abort()  # type: ignore[attr-defined]  # a late answer must not be taken for the next one's
            raise

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.should_keep_alive():
            self._idle.append(self)
        else:
            self._transport.close()
        self._status.set_result(self._parser.get_status_code())

    def connection_lost(self, _: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if not self._status.done():
            self._status.set_result(0)


def requests_of(url: str, content_type: str, files: list[str]) -> tuple[SplitResult, list[bytes]]:
    """Return the address of a URL, and a whole POST request for each file as its body."""
    address = urlsplit(url)
    head = f"POST {url.partition(address.netloc)[2]} HTTP/1.1\r\nHost: {address.netloc}\r\n"
    bodies = [Path(name).read_bytes() for name in files]
    return address, [
        f"{head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for body in bodies
    ]


async def run(
    url: str, rate: float, seconds: float, patience: float, content_type: str, files: list[str]
) -> list[tuple[float, float, int, float]]:
    address, requests = requests_of(url, content_type, files)
    idle, answers = list[Connection](), list[tuple[float, float, int, float]]()
    loop = asyncio.get_running_loop()

    async def ask(due: float, request: bytes) -> None:
        status, begun = 0, time.perf_counter()
        try:
            async with asyncio.timeout(patience):
                if not idle:
                    _, connection = await loop.create_connection(
                        lambda: Connection(idle), address.hostname, address.port
                    )
                else:
                    connection = idle.pop()
                status = await connection.send(request)
        except OSError:  # refused, reset, or TimeoutError
            pass
        answers.append((due - start, time.perf_counter() - due, status, begun - due))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for index in range(int(rate * seconds)):
            due = start + index / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(ask(due, requests[index % len(requests)]))
    return answers


if __name__ == "__main__":
    rate, seconds, patience = map(float, sys.argv[2:5])
    before_s = time.process_time()
    answers = uvloop.run(run(sys.argv[1], rate, seconds, patience, sys.argv[5], sys.argv[6:]))
    print(json.dumps({"cpu_s": time.process_time() - before_s, "answers": answers}))

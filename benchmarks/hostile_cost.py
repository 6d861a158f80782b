"""Search for the requests that cost the server most a byte, then let many clients send the worst of them.

    python -m benchmarks.hostile_cost --clients 100 --seconds 30

First every kind of request is sent alone: image formats, modes, sizes and encodings, by themselves, twelve in
a form, and to be drawn. Its processor time and the memory that it takes at most are those of the server's
process. Then clients send the worst ones, and those that stop in the middle of a body, while an ordinary
client posts a small photograph: its latencies and the process's memory count. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from benchmarks.own_server import OwnServer, ServerFailed, own_server

PATIENCE_S = 60
PAUSE_S = 0.05  # of the ordinary client
MIB = 2**20
ORDINARY = "an ordinary photograph"


@dataclass(frozen=True)
class Attack:
    """A request that is small and legal, or nearly so."""

    name: str
    send: Callable[[httpx.Client], httpx.Response]
    num_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a request that was alone took of the server."""

    name: str
    num_bytes: int
    status: int
    seconds: float
    cpu_s: float
    memory_mib: float

    @property
    def badness(self) -> float:
        """Processor time and memory a byte sent, which are worth as much as 1 s and 100 MiB."""
        return math.log((self.cpu_s + self.memory_mib / 100 + 1e-6) / self.num_bytes)


def files(side: int) -> Iterator[tuple[str, bytes]]:
    """Yield image files of one colour, which compress best, by a name."""
    blank = Image.new("RGBA", (side, side), (90, 120, 30, 120))
    rgb, grey = blank.convert("RGB"), blank.convert("L")
    numbers = np.zeros((side, side), np.float32)
    made: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("baseline", rgb, "jpeg", {}),
        ("progressive", rgb, "jpeg", {"progressive": True, "subsampling": 0}),
        ("CMYK", rgb.convert("CMYK"), "jpeg", {"progressive": True}),
        ("RGB", rgb, "png", {}),
        ("RGBA", blank, "png", {}),
        ("16 bits", Image.fromarray(numbers.astype(np.uint16)), "png", {}),
        ("lossless RGBA", blank, "webp", {"lossless": True, "method": 0}),
        ("grey", grey, "gif", {}),
        ("float", Image.fromarray(numbers), "tiff", {"compression": "tiff_adobe_deflate"}),
        ("RGBA", blank, "tiff", {"compression": "tiff_lzw"}),
    ]
    for name, image, kind, options in made:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield f"{kind} {name}, {side} x {side}", file.getvalue()


def attacks(sides: Sequence[int]) -> list[Attack]:
    """Return every file by itself, in a form of twelve, and to be drawn."""
    found = []
    for side in sides:
        for name, data in files(side):
            found.append(Attack(name, _post("/classify", data), len(data)))
            found.append(Attack(f"form of 12: {name}", _post_form(data, 12), 12 * len(data)))
            found.append(Attack(f"to be drawn: {name}", _post("/introspect", data, "image/png"), len(data)))
    return found


def _post(path: str, data: bytes, accept: str = "*/*") -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post(path, content=data, headers={"accept": accept})


def _post_form(data: bytes, count: int) -> Callable[[httpx.Client], httpx.Response]:
    parts = [("image", ("a", data, "application/octet-stream"))] * count
    return lambda client: client.post("/classify", files=parts)


class Process:
    """The server's process, as the kernel sees it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        fields = (self._folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_most(self) -> None:
        """Let `most_mib` begin anew."""
        (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def mib(self, name: str) -> float:
        """Return VmRSS, the memory that it has now, or VmHWM, the most that it had."""
        lines = (self._folder / "status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def cost_of(attack: Attack, client: httpx.Client, process: Process) -> Cost:
    process.forget_most()
    before_mib, before_s, started = process.mib("VmRSS"), process.cpu_s(), time.monotonic()
    status = attack.send(client).status_code
    seconds = time.monotonic() - started
    most = process.mib("VmHWM") - before_mib
    return Cost(attack.name, attack.num_bytes, status, seconds, process.cpu_s() - before_s, max(0.0, most))


@contextmanager
def flood(server: OwnServer, worst: Sequence[Attack], num_clients: int) -> Iterator[Counter[str]]:
    """Let clients send the attacks in turn, one in four of them stop in a body, until the end of `with`."""
    ended, statuses = threading.Event(), Counter[str]()

    def send(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            while not ended.is_set():
                with suppress(httpx.HTTPError):
                    statuses[str(worst[number % len(worst)].send(client).status_code)] += 1
                    number += 1

    def stall() -> None:
        address = urlsplit(server.url)
        assert address.hostname is not None
        while not ended.is_set():
            with (
                suppress(OSError),
                socket.create_connection((address.hostname, address.port or 80), PATIENCE_S) as connection,
            ):
                connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
                connection.sendall(bytes(16 * MIB))
                statuses["stalled"] += 1
                ended.wait(PATIENCE_S)

    kinds = [threading.Thread(target=stall, daemon=True) for _ in range(num_clients // 4)]
    kinds += [threading.Thread(target=send, args=(i,), daemon=True) for i in range(num_clients - len(kinds))]
    for thread in kinds:
        thread.start()
    try:
        yield statuses
    finally:
        ended.set()


def ordinary_client(url: str, seconds: float) -> dict[str, Any]:
    """Post a small photograph again and again; return latencies in milliseconds, and statuses."""
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "jpeg")
    latencies, statuses = [], Counter[str]()
    until = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        while time.monotonic() < until:
            started = time.monotonic()
            statuses[str(client.post("/classify", content=file.getvalue()).status_code)] += 1
            latencies.append(1000 * (time.monotonic() - started))
            time.sleep(PAUSE_S)
    return {"median_ms": statistics.median(latencies), "most_ms": max(latencies), "statuses": dict(statuses)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Print and return the costs, and what an ordinary client sees while many clients send the worst."""
    flags = ["--decode-bytes", str(args.decode_mib * MIB)] if args.decode_mib else []
    known = attacks(args.side or [1500, 7000])
    with own_server(flags) as server:
        process = Process(server.process.pid)
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            known[0].send(client)
            costs = [cost_of(attack, client, process) for attack in known]
        costs.sort(key=lambda cost: cost.badness, reverse=True)
        for cost in costs[: args.worst]:
            print(
                f"{cost.name:48} {cost.num_bytes:>9,} bytes {cost.status} {cost.seconds:6.2f} s "
                f"{cost.cpu_s:6.2f} s cpu {cost.memory_mib:7.1f} MiB",
                flush=True,
            )
        names = [cost.name for cost in costs[: args.worst]]
        quiet = ordinary_client(server.url, args.seconds / 4)
        process.forget_most()
        before = process.mib("VmRSS")
        worst = [attack for attack in known if attack.name in names]
        with flood(server, worst, args.clients) as statuses:
            time.sleep(1)
            busy = ordinary_client(server.url, args.seconds)
        most = process.mib("VmHWM")
        print(f"{ORDINARY} alone: {quiet}\nbeside {args.clients} clients: {busy}\nthese: {dict(statuses)}")
        print(f"memory: {before:.0f} MiB before, {most:.0f} at most")
    return {
        "costs": [vars(cost) for cost in costs],
        "quiet": quiet,
        "busy": busy,
        "attackers": dict(statuses),
        "memory_mib": {"before": before, "most": most},
        "complaints": server.complaints(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=100, help="that send the worst (default: 100)")
    parser.add_argument("--seconds", type=float, default=20, help="for which they send (default: 20)")
    parser.add_argument("--worst", type=int, default=12, help="number of requests to print and send (12)")
    parser.add_argument("--decode-mib", type=int, default=0, help="the server's --decode-bytes, in MiB")
    parser.add_argument(
        "--side", type=int, action="append", help="of the images; repeatable (default: 1500, 7000)"
    )
    try:
        document = measure(parser.parse_args(arguments))
    except (ServerFailed, OSError) as error:
        print(f"benchmarks.hostile_cost: {error}", file=sys.stderr)
        return 2
    print(json.dumps(document))
    return 1 if document["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())

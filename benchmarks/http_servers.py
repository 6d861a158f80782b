"""The servers that benchmarks/http.py compares: how each is started, asked and stopped.

The other projects' servers (benchmarks/peers/) run in `.venv-peers`, which is made if it is missing or its
requirements have changed. No process is pinned: one server at a time has all cores, which it shares with the
load tool.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifact.errors import ResiduumError
from benchmarks.http_subject import Subject
from benchmarks.load import Target
from benchmarks.peers_venv import PeersFailed, make_venv
from engines.machine import num_cores

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements.txt"
PEERS_VENV = ROOT / ".venv-peers"
READY_S = 180  # our server times its engines at the first start
STOP_S = 30
OURS = "residuum"
BOUNDARY = "benchmark"


class ServerFailed(ResiduumError):
    """A server cannot be started, or answers wrongly; the message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """How to start a server: the arguments of Python, with {port}, {artifact} and {workers} to fill in."""

    name: str
    title: str
    command: tuple[str, ...]
    ready: str  # a path that answers 200 when the server is ready
    path: str  # the path that takes images
    field: str | None  # the form field of an image; None: the image is the body
    environment: tuple[tuple[str, str], ...] = ()
    full: bool = False  # decodes at full size, although the artifact may say otherwise
    one: bool = False  # one process, although several are faster


def _uvicorn(module: str, *flags: str) -> tuple[str, ...]:
    return ("-m", "uvicorn", f"benchmarks.peers.{module}:app", "--port", "{port}", "--no-access-log", *flags)


LITSERVE = ("-m", "benchmarks.peers.litserve_app", "{port}")
BENTOML = ("-m", "bentoml", "serve", "benchmarks.peers.bentoml_app:Classifier", "--port", "{port}")
SERVERS = (
    Server(
        OURS, "Residuum",
        ("-m", "residuum", "serve", "--model", "{artifact}", "--precision", "int8", "--port", "{port}",
         "--workers", "{workers}", "--no-access-log"),
        "/health/ready", "/classify", None,
    ),
    Server("tutorial", "FastAPI + torch fp32", _uvicorn("tutorial"), "/health", "/predict", "file"),
    Server(
        "fastapi", "FastAPI + ORT int8", _uvicorn("fastapi_app", "--workers", str(num_cores())), "/health",
        "/predict", "file",
    ),
    Server("litserve-ort", "LitServe + ORT int8", LITSERVE, "/health", "/predict", "request"),
    Server(
        "litserve-openvino", "LitServe + OpenVINO int8", LITSERVE, "/health", "/predict", "request",
        (("PEER_ENGINE", "openvino"),),
    ),
    Server(
        "bentoml", "BentoML + OpenVINO int8", BENTOML, "/readyz", "/predict", "images",
        (("PEER_ENGINE", "openvino"),),
    ),
)  # fmt: skip


OURS_ONE, OURS_FULL, LITSERVE_FULL = "residuum-one", "residuum-full", "litserve-full"
SERVERS += (
    replace(SERVERS[0], name=OURS_ONE, title="Residuum, one process", one=True),
    replace(SERVERS[0], name=OURS_FULL, title="Residuum, decoding at full size", full=True),
    replace(SERVERS[3], name=LITSERVE_FULL, title="LitServe + ORT, decoding at full size", full=True),
)

# Our server with clocks in it: for the budget, not compared with others.
BUDGET = replace(
    SERVERS[0],
    name="budget",
    title="Residuum with clocks",
    one=True,
    command=("-m", "benchmarks.budget_server", *SERVERS[0].command[2:]),
)

OWN = (OURS, OURS_ONE, OURS_FULL, BUDGET.name)


class Running:
    """A server that runs, in one process or more."""

    def __init__(self, target: Target, process: subprocess.Popen[bytes]) -> None:
        self.target = target
        self._process = process

    def cpu_s(self) -> float:
        """Return the processor time of its processes so far, in seconds, to hundredths."""
        return _cpu_s_of_tree(self._process.pid)

    def snapshot(self) -> dict[str, Any]:
        """Return the counts of the stages so far; only a server with clocks has them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        counts: dict[str, Any] = json.loads(self._process.stdout.readline())
        return counts


@contextmanager
def running(server: Server, subject: Subject, files: Sequence[Path]) -> Iterator[Running]:
    """Start a server, wait until it is ready, and stop all its processes at the end of `with`.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        port = _free_port()
        target = make_target(server, port, files, Path(folder))
        process = subprocess.Popen(
            _command(server, subject, port),
            cwd=ROOT,
            env=_environment(server, subject),
            stdin=subprocess.PIPE if server is BUDGET else subprocess.DEVNULL,
            stdout=subprocess.PIPE if server is BUDGET else log,
            stderr=log,
            start_new_session=True,
        )
        try:
            try:
                _wait_until_ready(process, f"http://127.0.0.1:{port}{server.ready}")
                if server.name in OWN:  # it is ready with its first worker
                    _wait_for_workers(port, _workers(server, subject))
                yield Running(target, process)
            except (ServerFailed, OSError) as error:  # also an error of the caller's block
                log.seek(0)
                said = log.read().decode(errors="replace")[-2000:]
                raise ServerFailed(f"{server.title}: {error}\n{said}") from error
        finally:
            _stop(process)


def make_target(server: Server, port: int, files: Sequence[Path], folder: Path) -> Target:
    """Return the request bodies for that server; forms are written to files beforehand."""
    url = f"http://127.0.0.1:{port}{server.path}"
    if server.field is None:
        return Target(url, "image/jpeg", files)
    bodies = []
    for path in files:
        head = (
            f"--{BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="{server.field}"; filename="{path.name}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        bodies.append(folder / f"{path.name}.form")
        bodies[-1].write_bytes(head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode())
    return Target(url, f"multipart/form-data; boundary={BOUNDARY}", bodies)


def top_classes(target: Target) -> list[set[int]]:
    """Return the classes that a server answers to each body.

    Raises:
        ServerFailed: it answers with an error, or not as it should.
    """
    answers = []
    for body in target.bodies:
        request = urllib.request.Request(
            target.url, body.read_bytes(), {"Content-Type": target.content_type}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                document = json.load(response)
        except urllib.error.HTTPError as error:
            raise ServerFailed(f"it answers {error.code}: {error.read()[:300]!r}") from error
        if isinstance(document, list):  # BentoML's batchable calls take and give lists
            (document,) = document
        (result,) = document.get("results", [document])  # ours has one result an image
        answers.append({prediction["index"] for prediction in result["predictions"]})
    return answers


def make_peers_venv() -> None:
    """Create or renew `.venv-peers`, which takes minutes; print a message before.

    Raises:
        ServerFailed: pip failed.
    """
    try:
        make_venv(PEERS_VENV, REQUIREMENTS)
    except PeersFailed as error:
        raise ServerFailed(str(error)) from error


def _peers_python() -> str:
    return str(PEERS_VENV / "bin" / "python")


def _command(server: Server, subject: Subject, port: int) -> list[str]:
    python = sys.executable if server.name in OWN else _peers_python()
    values = {
        "port": port,
        "artifact": _artifact(server, subject),
        "workers": _workers(server, subject),
    }
    return [python, *(part.format(**values) for part in server.command)]


def _workers(server: Server, subject: Subject) -> int:
    return 1 if server.one else subject.workers


def _artifact(server: Server, subject: Subject) -> Path:
    return subject.full if server.full and subject.full is not None else subject.directory


def _environment(server: Server, subject: Subject) -> dict[str, str]:
    """Return the environment of a server: ours keeps RESIDUUM_*; telemetry of all libraries is off."""
    own = {"PEER_ARTIFACT": str(_artifact(server, subject)), **dict(server.environment)}
    if subject.weights is not None:
        own["PEER_WEIGHTS"] = str(subject.weights)
    quiet = {"BENTOML_DO_NOT_TRACK": "true", "ORT_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **quiet, **own}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"it ended with {process.returncode}")
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.1)
    raise ServerFailed(f"it was not ready after {READY_S} s")


def _wait_for_workers(port: int, count: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            ready = re.search(rb"^residuum_ready ([0-9.]+)$", response.read(), re.MULTILINE)
        if ready is not None and float(ready[1]) == count:
            return
        time.sleep(0.1)
    raise ServerFailed(f"not all of its workers were ready after {READY_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server with SIGTERM, then kill the rest of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _cpu_s_of_tree(root: int) -> float:
    """Return the processor time of a process and of all that descend from it, in seconds."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
    tree = {root}
    while more := {number for number, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(ticks.get(number, 0) for number in tree) / os.sysconf("SC_CLK_TCK")

"""Start a `residuum serve` for a benchmark, and read a server's /metrics."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from artifact.errors import ResiduumError

ROOT = Path(__file__).resolve().parent.parent
READY_S = 300  # the first start times the engines
STOP_S = 60
MAX_LOG_LINES = 10_000

Metrics = dict[str, float]  # values by `name{labels}`, as in the Prometheus text format


class ServerFailed(ResiduumError):
    """The server did not start, or ended; the message has the end of its log."""


class OwnServer:
    """A process of `residuum serve`, and its log."""

    def __init__(self, flags: Sequence[str], environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "residuum", "serve", "--port", "0", "--no-access-log", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.log: list[str] = []
        self.url = ""
        self._settled = threading.Event()  # ready, or ended
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Wait until the server is ready; raise ServerFailed if it does not become ready."""
        if not self._settled.wait(READY_S) or not self.url:
            self.process.kill()
            raise ServerFailed(f"the server did not become ready:\n{self.end_of_log()}")

    def end_of_log(self) -> str:
        return "".join(self.log[-40:])

    def complaints(self) -> list[str]:
        """Return log lines that show an unforeseen failure, such as a traceback."""
        found = re.compile(r"Traceback|Error\b|\bERROR\b|Exception|never retrieved|ResourceWarning")
        return [line.rstrip() for line in self.log if found.search(line)]

    def threads(self) -> int:
        """Return the number of its threads; raise OSError if it has ended."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("Threads:")[2].split()[0])

    def stop(self) -> int | None:
        """Send SIGTERM and return the exit code; kill the process and return None if it does not end."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                if len(self.log) < MAX_LOG_LINES:
                    self.log.append(line)
                if ready := re.search(r"Ready: .* at (http://\S+)", line):
                    self.url = ready[1]
                    self._settled.set()
        self._settled.set()


@contextmanager
def own_server(flags: Sequence[str], environment: Mapping[str, str] = {}) -> Iterator[OwnServer]:
    """Start a server, yield it when it is ready, and stop it unless the block has done so.

    Args:
        environment: variables in addition to those of this process.

    Raises:
        ServerFailed: it does not become ready.
    """
    server = OwnServer(flags, environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def read_metrics(url: str, timeout: float = 30) -> Metrics:
    """Return every value of GET /metrics.

    Raises:
        OSError, ValueError: there is no answer, or it lacks the process's memory, as with several workers.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=timeout) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    metrics = {name: float(value) for name, _, value in pairs}
    if "process_resident_memory_bytes" not in metrics:
        raise ValueError("/metrics lacks the memory of the process: does the server have several workers?")
    return metrics


def total(metrics: Metrics, name: str) -> float:
    """Return the sum of a metric over all labels."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def resident_mib(metrics: Metrics) -> float:
    return total(metrics, "process_resident_memory_bytes") / 2**20


def open_files(metrics: Metrics) -> float:
    return total(metrics, "process_open_fds")


def still_at_work(metrics: Metrics) -> dict[str, float]:
    """Return the gauges of queue and decoding that are not zero."""
    gauges = ("residuum_queue_entries", "residuum_decoding_images")
    return {name: value for name in gauges if (value := total(metrics, name))}


def troubles(metrics: Metrics) -> dict[str, float]:
    """Return the counters of failures that are not zero, and `residuum_ready` if it is zero."""
    names = ("residuum_failed_batches_total", "residuum_engine_rebuilds_total")
    found = {name: value for name in names if (value := total(metrics, name))}
    found |= {name: value for name, value in metrics.items() if 'result="failed"' in name and value}
    if not total(metrics, "residuum_ready"):
        found["residuum_ready"] = 0
    return found

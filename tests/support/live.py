"""A real server in a process of its own, for the tests that talk HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVE = (
    "from service.process.serve import serve; from service.settings import load_settings; "
    "serve(load_settings())"
)
READY_S = 120
# A server that starts quickly: it times no other engines, no batches above four images, and wakes one thread.
USUAL: dict[str, object] = {
    "port": 0,
    "engine": "onnxruntime",
    "precision": "fp32",
    "threads": 1,
    "max_batch_size": 4,
}


class LiveServer:
    """`residuum serve` with the given settings on a free port of 127.0.0.1; `log` grows as it speaks."""

    def __init__(self, **settings: object) -> None:
        usual = USUAL | {"engine_cache": os.environ["RESIDUUM_ENGINE_CACHE"]}
        given = {f"RESIDUUM_{name.upper()}": str(value) for name, value in (usual | settings).items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RESIDUUM_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=ROOT,
            env={**inherited, "PYTHONWARNINGS": "error", **given},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self.url = ""
        self._ready = threading.Event()  # or ended
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> None:
        assert self._ready.wait(READY_S), "the server does not become ready"
        assert self.url, "".join(self.log)

    def num_said(self, words: str) -> int:
        """The number of lines in which they are."""
        return sum(words in line for line in self.log)

    def wait_until_said(self, words: str, times: int = 1) -> None:
        """Until so many lines have had them."""
        with self._said:
            assert self._said.wait_for(lambda: self.num_said(words) >= times, READY_S), "".join(self.log)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """The exit code after that signal."""
        self.process.send_signal(signal_number)
        return self.wait()

    def wait(self) -> int:
        try:
            code = self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                with self._said:
                    self.log.append(line)
                    self._said.notify_all()
                if ready := re.search(r'Ready: .* at (http://[^\s"]+)', line):
                    self.url = ready[1]
                    self._ready.set()
        self._ready.set()


@contextmanager
def live_server(**settings: object) -> Iterator[LiveServer]:
    """A server that is ready, and that is stopped at the end and must then exit with 0."""
    server = LiveServer(**settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        code = server.stop() if server.process.poll() is None else server.wait()
    assert code == 0, "".join(server.log)

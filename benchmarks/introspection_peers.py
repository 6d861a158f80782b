"""The process in which other libraries are timed: benchmarks/peers/introspection.py, in its own venv."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifact.manifest import Manifest
from benchmarks.peers_venv import PeersFailed, make_venv
from engines.machine import num_cores

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "introspection.txt"
PEERS_VENV = ROOT / ".venv-introspection-peers"


class Peers:
    """The process; `titles` are the rows that it can time, the forward pass first; `missing` the others."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        hello = self._read()
        self.titles: list[str] = hello["rows"]
        self.missing = [f"{name}: {reason}" for name, reason in hello["missing"].items()]

    def time(self, title: str, seconds: float) -> list[float]:
        """Time a row for about `seconds`; return the milliseconds of each call.

        Raises:
            PeersFailed: the library failed, or the process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([title, seconds]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise PeersFailed(answer["error"])
        times_ms: list[float] = answer["times_ms"]
        return times_ms

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeersFailed(f"their process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peers(manifest: Manifest) -> Iterator[Peers]:
    """Start the process with the artifact's architecture and one thread for each core.

    Raises:
        PeersFailed: the packages cannot be installed, or the process does not start.
    """
    arguments = (manifest.architecture, manifest.num_classes, manifest.preprocessing.crop, num_cores())
    python = make_venv(PEERS_VENV, REQUIREMENTS)
    process = subprocess.Popen(
        [python, "-m", "benchmarks.peers.introspection", *map(str, arguments)],
        cwd=ROOT,
        # If other work occupies a core, torch's spinning threads can take a hundred times as long.
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Peers(process)
    finally:
        process.kill()
        process.communicate()

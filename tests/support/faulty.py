"""Engines that hang when a test says so, in every process of a real server; files in a folder are the signs.

hold      the next batch takes the file away, makes `held`, and runs when there is `go`
hang      no engine for a graph below the directory that the file names is ever opened; each makes `hung`
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from artifact.manifest import Precision
from engines.engine import Engine, EngineInfo, EngineName, EngineOptions
from engines.registry import open_engine
from service.runtime import opening
from tests.support.live import ROOT

VARIABLE = "FAULTY_ENGINES"  # the folder


class Holdable:
    """A real engine."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            (self.folder / "hold").unlink()
        except FileNotFoundError:
            return self.engine.run(inputs)
        (self.folder / "held").touch()
        while not (self.folder / "go").exists():
            pass
        return self.engine.run(inputs)

    def close(self) -> None:
        self.engine.close()


def install() -> None:
    """Let this process open such engines."""
    folder = Path(os.environ[VARIABLE])

    def opened(name: EngineName, graph: Path, precision: Precision, options: EngineOptions) -> Engine:
        hang = folder / "hang"
        if hang.exists() and graph.is_relative_to(hang.read_text()):
            (folder / "hung").touch()
            threading.Event().wait()
        return Holdable(open_engine(name, graph, precision, options), folder)

    opening.open_engine = opened


def let_engines_hang(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let servers that start from now on have such engines; return the folder of the signs."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("from tests.support.faulty import install; install()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(ROOT))))
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def wait_for(path: Path) -> None:
    """The test's own time limit ends it."""
    while not path.exists():
        pass

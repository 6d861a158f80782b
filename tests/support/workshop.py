"""Real engines that can be made to fail, answer wrong, hang and wait, in a server of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from artifact.manifest import Precision, read_manifest
from artifact.preprocess import preprocess
from engines.engine import Engine, EngineError, EngineInfo, EngineName, EngineOptions
from engines.registry import open_engine
from service.runtime import opening

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
Fault = Callable[["Breakable", Arrays], Outputs]


def expected_logits(artifact: Path, images: Sequence[bytes]) -> NDArray[Any]:
    """What an engine says of each image, one batch and no server, [N, K]."""
    manifest = read_manifest(artifact)
    graph = manifest.graph("classify")
    assert graph is not None
    engine = open_engine("onnxruntime", artifact / graph.file, "fp32", EngineOptions("cpu", threads=1))
    pixels_NHWC = np.stack([preprocess(data, manifest.preprocessing).pixels for data in images])
    return engine.run({"images": pixels_NHWC})["logits"]


class Breakable:
    """A real engine, in which something else may happen instead of a run."""

    def __init__(self, engine: Engine, kind: str) -> None:
        self.engine = engine
        self.kind = kind
        self.fault: Fault | None = None
        self.sizes: list[int] = []  # of the batches that it was given
        self.closed = 0

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, inputs: Arrays) -> Outputs:
        assert not self.closed, "an engine that is closed must not run"
        self.sizes.append(len(inputs["images"]))
        return self.fault(self, inputs) if self.fault else self.engine.run(inputs)

    def close(self) -> None:
        self.closed += 1
        self.engine.close()


def wrong(engine: Breakable, inputs: Arrays) -> Outputs:
    outputs = engine.engine.run(inputs)
    return outputs | {"logits": outputs["logits"] + 1}


def sticky(engine: Breakable, inputs: Arrays) -> Outputs:
    raise EngineError("an illegal memory access was encountered")


def once(engine: Breakable, inputs: Arrays) -> Outputs:
    engine.fault = None
    raise EngineError("out of memory, this time")


class Gate:
    """Runs that do not come back until they are let."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, engine: Breakable, inputs: Arrays) -> Outputs:
        self.held.set()
        assert self.go_on.wait(60)
        return engine.engine.run(inputs)


class Hang(Gate):
    """Likewise, but then they answer wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.came_back = threading.Event()

    def __call__(self, engine: Breakable, inputs: Arrays) -> Outputs:
        try:
            super().__call__(engine, inputs)
            return wrong(engine, inputs)
        finally:
            self.came_back.set()


class Workshop:
    """Where the server's engines are made."""

    def __init__(self) -> None:
        self.engines: list[Breakable] = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.failures: list[Exception] = []  # of the next attempts

    def open_engine(
        self, name: EngineName, graph: Path, precision: Precision, options: EngineOptions
    ) -> Breakable:
        assert self.may_open.wait(60)
        if self.failures:
            raise self.failures.pop(0)
        self.engines.append(Breakable(open_engine(name, graph, precision, options), graph.name.split(".")[0]))
        return self.engines[-1]

    def now(self, kind: str = "classify") -> list[Breakable]:
        """Those that are open."""
        return [engine for engine in self.engines if engine.kind == kind and not engine.closed]


@contextmanager
def engines_from_a_workshop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    made = Workshop()
    monkeypatch.setattr(opening, "open_engine", made.open_engine)
    yield made
    made.may_open.set()

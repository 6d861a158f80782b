"""What an engine is, on one page. An engine runs one graph; it knows no HTTP, no batches and no manifest.

EngineError             the engine failed, or cannot be had
└── EngineUnavailable   it cannot be had on this machine; the message says why and what to do
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray


class EngineError(Exception):
    """The engine failed."""


class EngineUnavailable(EngineError):
    """This engine, or the device asked for, cannot be had on this machine."""


@dataclass(frozen=True)
class EngineInfo:
    """What runs a graph, in words for logs and `GET /models`."""

    name: str  # "onnxruntime"
    version: str
    device: Literal["cpu", "cuda"]
    threads: int  # that run one graph; 0 where the device is no CPU


class Engine(Protocol):
    """One graph, ready to run on one device. `run` is called from one thread at a time."""

    @property
    def info(self) -> EngineInfo: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All inputs by name, each with a batch axis in front, to all outputs by name.

        Raises:
            EngineError: the run failed.
        """
        ...

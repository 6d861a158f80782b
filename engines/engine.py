"""What an engine is, on one page. An engine runs one graph; it knows no HTTP, no batches and no manifest.

EngineError             the engine failed, or cannot be had
└── EngineUnavailable   it cannot be had on this machine; the message says why and what to do

Every engine is one file beside this one, imported when it is asked for and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from artifact.errors import ResiduumError
from engines.machine import MAX_AUTO_THREADS, auto_threads


def batch_sizes(max_batch_size: int) -> list[int]:
    """The sizes that batches are padded to: 1, 2, 4, ... and the maximum itself."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]


EngineName = Literal["onnxruntime", "openvino", "torch"]
Device = Literal["auto", "cpu", "cuda"]


class EngineError(ResiduumError):
    """The engine failed."""


class EngineUnavailable(EngineError):
    """This engine, or the device or precision asked for, cannot be had on this machine."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine shall run a graph.

    `mode` is a variant of the engine, None its usual one:
    onnxruntime "cpu", "cuda", "tensorrt"; openvino "cpu"; torch "eager", "compile".
    """

    device: Device = "auto"
    mode: str | None = None
    threads: int = 0  # CPU threads for one graph, all its instances together; 0: by the cores
    batch_sizes: tuple[int, ...] = (1,)  # the sizes that will be run
    cache: Path | None = None  # a directory where compiled plans may be kept; None: nowhere
    instances: int = 1  # batches that run at once

    @property
    def threads_each(self) -> int:
        """CPU threads of one instance: an equal share, and at least one."""
        threads = self.threads or min(auto_threads(), self.instances * MAX_AUTO_THREADS)
        return max(1, threads // self.instances)


@dataclass(frozen=True)
class EngineInfo:
    """What runs a graph, in words for logs and `GET /models`."""

    name: EngineName
    version: str
    device: Literal["cpu", "cuda"]
    threads: int  # that run one graph, all its instances together; 0 where the device is no CPU
    mode: str
    instances: int


class Engine(Protocol):
    """One graph, ready to run on one device.

    `run` may be called from `info.instances` threads at a time; a call beyond them waits for its turn.
    """

    @property
    def info(self) -> EngineInfo: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All inputs by name, each with a batch axis in front, to all outputs by name.

        The outputs are the caller's: no other run changes them.

        Raises:
            EngineError: the run failed; those at the same time are none the worse.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads; no `run` may be under way, or come after it."""
        ...

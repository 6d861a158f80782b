"""What an engine is, on one page. An engine runs one graph; it knows no HTTP, no batches and no manifest.

EngineError             the engine failed, or is not available
└── EngineUnavailable   it is not available on this machine; the message says why and what to do

`engines/registry.py` lists the engines. Each is a module beside this one, imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from artifact.errors import ResiduumError
from engines.machine import MAX_AUTO_THREADS, auto_threads

if TYPE_CHECKING:  # `--help` lists the engines, and shall not wait for numpy
    from numpy.typing import NDArray

EngineName = str  # a key of `engines.registry.ENGINES`
Device = Literal["auto", "cpu", "cuda"]


class EngineError(ResiduumError):
    """The engine failed."""


class EngineUnavailable(EngineError):
    """The engine, or the device or precision asked for, is not available on this machine."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs a graph.

    Attributes:
        mode: a variant of the engine, such as "tensorrt" of onnxruntime or "compile" of torch; None: its
            usual one.
        threads: CPU threads of one graph, all its instances together; 0: by the number of cores.
        batch_sizes: the sizes that will be run.
        cache: a directory where compiled plans may be stored; None: nowhere.
        instances: batches that run at the same time.
    """

    device: Device = "auto"
    mode: str | None = None
    threads: int = 0
    batch_sizes: tuple[int, ...] = (1,)
    cache: Path | None = None
    instances: int = 1

    @property
    def threads_each(self) -> int:
        """CPU threads of one instance: an equal share, and at least one."""
        threads = self.threads or min(auto_threads(), self.instances * MAX_AUTO_THREADS)
        return max(1, threads // self.instances)


@dataclass(frozen=True)
class EngineInfo:
    """Which engine runs a graph, and how, for logs and `GET /models`.

    Attributes:
        threads: CPU threads of the graph, all its instances together; 0 on a GPU.
    """

    name: EngineName
    version: str
    device: Literal["cpu", "cuda"]
    threads: int
    mode: str
    instances: int


class Engine(Protocol):
    """One graph, ready to run on one device.

    `run` may be called from several threads. `info.instances` calls run at the same time; others wait.
    """

    @property
    def info(self) -> EngineInfo: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on all its inputs, each with a leading batch axis; return all its outputs by name.

        The caller owns the outputs: no other run changes them.

        Raises:
            EngineError: this run failed; runs at the same time are not affected.
        """
        ...

    def close(self) -> None:
        """Free memory and threads; no `run` may be in progress, and none may follow."""
        ...


def batch_sizes(max_batch_size: int) -> list[int]:
    """Return the sizes that batches are padded to: 1, 2, 4, ... and the maximum itself."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]

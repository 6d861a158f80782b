"""What an engine is, on one page. An engine runs one graph; it knows no HTTP, no batches and no manifest.

EngineError             the engine failed, or cannot be had
└── EngineUnavailable   it cannot be had on this machine; the message says why and what to do

Every engine is one file beside this one, imported when it is asked for and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from numpy.typing import NDArray

from models.manifest import Precision
from service.engines.machine import MAX_AUTO_THREADS, auto_threads, num_gpus

EngineName = Literal["onnxruntime", "openvino", "torch"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
Device = Literal["auto", "cpu", "cuda"]


class EngineError(Exception):
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


class _Where(NamedTuple):
    """Where an engine is implemented, and what has to be installed for it."""

    module: str
    factory: str
    distributions: tuple[str, ...]
    install: str


_WHERE: dict[EngineName, _Where] = {
    "onnxruntime": _Where(
        "service.engines.onnxruntime", "OnnxRuntimeEngine", ("onnxruntime-gpu", "onnxruntime"), "."
    ),
    "openvino": _Where("service.engines.openvino", "OpenVinoEngine", ("openvino",), ".[openvino]"),
    "torch": _Where("service.engines.pytorch", "TorchEngine", ("torch",), ".[torch]"),
}


def open_engine(
    name: EngineName, graph: Path, precision: Precision, options: EngineOptions | None = None
) -> Engine:
    """An engine of that name over one ONNX file, whose precision the caller knows from the manifest.

    Raises:
        EngineUnavailable: it is not installed, or cannot run that precision on that device here.
        EngineError: the file is no graph that it can run.
    """
    engine: Engine = getattr(_module(name), _WHERE[name].factory)(
        graph, precision, options or EngineOptions()
    )
    return engine


def modes(name: EngineName, precision: Precision, options: EngineOptions) -> tuple[str, ...]:
    """The modes that are worth timing on `options.device` ("cpu" or "cuda") of this machine.

    None are where that engine is slow or cannot run; asked for by name, it may run all the same, or says
    why it does not.

    Raises:
        EngineUnavailable: it is not installed, or does not start.
    """
    if name == "torch":  # answered without importing it, which takes seconds
        if options.device == "cpu":
            return ("eager",) if precision == "fp32" else ()
        return ("eager", "compile") if num_gpus() and precision in ("fp32", "bf16", "fp16") else ()
    found: tuple[str, ...] = _module(name).modes(precision, options)
    return found


def instance_counts(name: EngineName, device: Device, threads: int) -> tuple[int, ...]:
    """The numbers of instances that are worth timing, 1 first: four at most."""
    if device == "cuda":
        return (1,) if name == "torch" else (1, 2)
    between = [2**n for n in range(1, threads.bit_length()) if 2**n < threads] if threads >= 8 else []
    return (1, *between[-2:], threads) if threads > 1 else (1,)


def installed_version(name: EngineName) -> str | None:
    """The engine's version, without importing it; None: it is not installed."""
    for distribution in _WHERE[name].distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _module(name: EngineName) -> Any:
    try:
        return import_module(_WHERE[name].module)
    except Exception as error:  # a broken installation raises what it likes
        if installed_version(name) is not None:
            reason = f"is installed, but does not start: {str(error) or repr(error)}"
        else:
            reason = f"is not installed: in a checkout, pip install -e '{_WHERE[name].install}'"
        raise EngineUnavailable(f"engine {name} {reason}") from error

"""Which engines there are. This is the only module that names them.

An engine is imported when it is asked for and not before.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, get_args

from artifact.manifest import Precision
from engines.engine import Device, Engine, EngineName, EngineOptions, EngineUnavailable
from engines.machine import num_gpus

ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)


class _Where(NamedTuple):
    """Where an engine is implemented, and what has to be installed for it."""

    module: str
    factory: str
    distributions: tuple[str, ...]
    install: str


_WHERE: dict[EngineName, _Where] = {
    "onnxruntime": _Where(
        "engines.onnxruntime", "OnnxRuntimeEngine", ("onnxruntime-gpu", "onnxruntime"), "."
    ),
    "openvino": _Where("engines.openvino", "OpenVinoEngine", ("openvino",), ".[openvino]"),
    "torch": _Where("engines.pytorch", "TorchEngine", ("torch",), ".[torch]"),
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

"""The table of engines: one row each. This is the only module that names them.

To add an engine, write `engines/NAME.py` and add a row to `ENGINES`. The settings' choices, the candidates of
`auto`, the commands and the benchmarks all read the rows. An engine's module is imported when that engine is
used, not before; this module must stay cheap to import, because `--help` lists the engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifact.manifest import Precision
from engines.engine import Device, Engine, EngineName, EngineOptions, EngineUnavailable
from engines.machine import num_gpus

Precisions = tuple[Precision, ...]


@dataclass(frozen=True)
class EngineRow:
    """What is known about an engine without importing it.

    Attributes:
        name: the value of `--engine`.
        module: the module with the class `factory`, which has the methods of `engines.engine.Engine`.
        factory: a class or function that takes a graph's path, its precision and `EngineOptions`.
        distributions: the Python packages of which any one brings the engine.
        install: what `pip install -e` takes in a checkout to install it.
        cpu: the precisions that it can run on a CPU; whether a given processor can, the engine says.
        cuda: the same on an NVIDIA GPU.
        modes: for each device and precision, the modes that are worth timing there; None: the answer depends
            on the machine, and the module's function `modes(precision, options)` gives it.
        modes_on_request: modes that `auto` leaves out unless the engine is asked for by name, because they
            take minutes to open.
        cuda_instances: the numbers of instances that are worth timing on a GPU, 1 first.
        slow_import: importing it takes seconds. `auto` tries it on a GPU only, and takes it on a CPU only if
            no other engine can run the graph.
    """

    name: EngineName
    module: str
    factory: str
    distributions: tuple[str, ...]
    install: str
    cpu: Precisions = ()
    cuda: Precisions = ()
    modes: Mapping[Device, Mapping[Precision, tuple[str, ...]]] | None = None
    modes_on_request: tuple[str, ...] = ()
    cuda_instances: tuple[int, ...] = (1, 2)
    slow_import: bool = False

    def precisions(self, device: Device) -> Precisions:
        """Return the precisions that it can run on `device`; "auto": on any."""
        on_device: Mapping[Device, Precisions] = {"cpu": self.cpu, "cuda": self.cuda}
        return on_device.get(device, (*self.cpu, *self.cuda))


ENGINES: dict[EngineName, EngineRow] = {
    row.name: row
    for row in (
        EngineRow(
            name="onnxruntime",
            module="engines.onnxruntime",
            factory="OnnxRuntimeEngine",
            distributions=("onnxruntime-gpu", "onnxruntime"),
            install=".",
            cpu=("fp32", "fp16", "int8"),
            cuda=("fp32", "fp16", "int8-trt"),
        ),
        EngineRow(
            name="openvino",
            module="engines.openvino",
            factory="OpenVinoEngine",
            distributions=("openvino",),
            install=".[openvino]",
            cpu=("fp32", "bf16", "fp16", "int8"),
        ),
        EngineRow(
            name="torch",
            module="engines.pytorch.engine",
            factory="TorchEngine",
            distributions=("torch",),
            install=".[torch]",
            cpu=("fp32", "bf16", "fp16"),
            cuda=("fp32", "bf16", "fp16"),
            modes={
                "cpu": {"fp32": ("eager",)},
                "cuda": dict.fromkeys(("fp32", "bf16", "fp16"), ("eager", "compile")),
            },
            modes_on_request=("compile",),
            cuda_instances=(1,),
            slow_import=True,
        ),
    )
}

# The engine that every installation has: the export measures with it, and the benchmarks compare with it.
BASELINE = "onnxruntime"


def engines_for(precision: Precision) -> tuple[EngineName, ...]:
    """Return the names of the engines that can run a graph of that precision on some machine."""
    return tuple(row.name for row in ENGINES.values() if precision in row.precisions("auto"))


def open_engine(
    name: EngineName, graph: Path, precision: Precision, options: EngineOptions | None = None
) -> Engine:
    """Open the engine of that name over one ONNX file; the file's precision is in the manifest.

    Raises:
        EngineUnavailable: it is not installed, or cannot run that precision on that device here.
        EngineError: the file is no graph that it can run.
    """
    factory = getattr(_module(name), ENGINES[name].factory)
    engine: Engine = factory(graph, precision, options or EngineOptions())
    return engine


def modes(name: EngineName, precision: Precision, options: EngineOptions) -> tuple[str, ...]:
    """Return the modes that are worth timing on `options.device` ("cpu" or "cuda") of this machine.

    The answer is empty where the engine is slow or cannot run. A user can still ask for it by name: it then
    runs slowly, or says why it does not.

    Raises:
        EngineUnavailable: it is not installed, or does not start.
    """
    row = ENGINES[name]
    if precision not in row.precisions(options.device):
        return ()
    if row.modes is not None:
        if options.device == "cuda" and not num_gpus():
            return ()
        return row.modes.get(options.device, {}).get(precision, ())
    found: tuple[str, ...] = _module(name).modes(precision, options)
    return found


def instance_counts(name: EngineName, device: Device, threads: int) -> tuple[int, ...]:
    """Return the numbers of instances that are worth timing: 1 first, four at most."""
    if device == "cuda":
        return ENGINES[name].cuda_instances
    between = [2**n for n in range(1, threads.bit_length()) if 2**n < threads] if threads >= 8 else []
    return (1, *between[-2:], threads) if threads > 1 else (1,)


def installed_version(name: EngineName) -> str | None:
    """Return the engine's version without importing it, or None if it is not installed."""
    for distribution in ENGINES[name].distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _module(name: EngineName) -> Any:
    """Import an engine's module.

    Raises:
        EngineUnavailable: it is not installed, or its import fails.
    """
    try:
        return import_module(ENGINES[name].module)
    except Exception as error:  # a broken installation can raise anything
        if installed_version(name) is not None:
            reason = f"is installed, but does not start: {str(error) or repr(error)}"
        else:
            reason = f"is not installed: in a checkout, pip install -e '{ENGINES[name].install}'"
        raise EngineUnavailable(f"engine {name} {reason}") from error

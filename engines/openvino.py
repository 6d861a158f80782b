"""OpenVINO on the CPU, the ONNX file as it is: the engine for Intel's matrix units (AMX), good on others.

An instance is a stream of one compiled graph, with a request of its own. The compiled graph takes every batch
size: one for each size was no faster, and took more memory. Compiled graphs are not stored on disk: ResNet-50
opened a tenth of a second sooner, for 98 MB (docs/decisions.md).

fp32 means fp32, and an int8 graph computes in fp32 between its int8 layers; OpenVINO's default would be bf16
on a processor that has it. bf16 and fp16 graphs compute in their own precision if the processor has it, else
in fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from artifact.manifest import Precision
from engines.engine import EngineError, EngineInfo, EngineOptions, EngineUnavailable
from engines.instances import Instances

# OpenVINO imports its converter if that is installed. It is slow to import and reports its use to its maker.
if "openvino" not in sys.modules:
    sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules["openvino.tools.ovc"]
else:
    import openvino

HALF: dict[Precision, tuple[str, str]] = {"bf16": ("BF16", "bf16"), "fp16": ("FP16", "f16")}
MODE = "cpu"


class OpenVinoEngine:
    """A compiled graph, and a request for each instance.

    Raises:
        EngineUnavailable: the device is CUDA, the precision is int8-trt, or OpenVINO does not start.
        EngineError: the file is no graph that OpenVINO can run.
    """

    def __init__(
        self, graph: Path, precision: Precision = "fp32", options: EngineOptions | None = None
    ) -> None:
        options = options or EngineOptions()
        _refuse(precision, options)
        core = _core()
        try:
            model = core.read_model(graph)
            self._compiled = core.compile_model(model, "CPU", compile_properties(core, precision, options))
            requests = [self._compiled.create_infer_request() for _ in range(options.instances)]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot open {graph.name}: {_first_line(error)}") from error
        # Take the names from the file: where the compiler drops a cast, the remaining node has both names.
        self._inputs = {
            named.get_any_name(): value.element_type.to_dtype()
            for named, value in zip(model.inputs, self._compiled.inputs, strict=True)
        }
        self._outputs = [output.get_any_name() for output in model.outputs]
        self._requests = Instances(requests)
        self.info = EngineInfo(
            name="openvino",
            version=_version(),
            device="cpu",
            threads=options.threads_each * options.instances,
            mode=MODE,
            instances=options.instances,
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        with self._requests.lent() as request:
            try:
                # A contiguous array is not copied.
                request.start_async(dict(inputs), share_inputs=True)
                request.wait()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO: {_first_line(error)}") from error
            # Copy the outputs, because the next run overwrites the request's memory.
            outputs = [tensor.data.copy() for tensor in request.output_tensors]
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        del self._requests, self._compiled

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise EngineError for inputs that differ from the graph's.

        OpenVINO itself would convert a wrong type, and reuse a missing input from an earlier run.
        """
        if inputs.keys() != self._inputs.keys():
            raise EngineError(f"OpenVINO: inputs {sorted(inputs)}, not {sorted(self._inputs)}")
        for name, array in inputs.items():
            if array.dtype != self._inputs[name]:
                raise EngineError(f"OpenVINO: {name} is {array.dtype}, not {self._inputs[name]}")


def modes(precision: Precision, options: EngineOptions) -> tuple[str, ...]:
    """Return the modes worth timing; see `engines.registry.modes`.

    Half precisions are left out unless the processor has them.
    """
    if options.device == "cuda" or precision == "int8-trt":
        return ()
    if precision in HALF and HALF[precision][0] not in _capabilities(_core()):
        return ()
    return (MODE,)


def compile_properties(core: openvino.Core, precision: Precision, options: EngineOptions) -> dict[str, Any]:
    """Return the properties with which the CPU plugin compiles a graph.

    Threads are not pinned to cores. The decode pool and the other graph share the cores, and a container's
    quota is no affinity, so pinned threads of two graphs would share the first cores.
    """
    capability, compute = HALF.get(precision, ("", "f32"))
    return {
        "INFERENCE_PRECISION_HINT": compute if capability in _capabilities(core) else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # int8 only in the layers that the graph quantizes
        "NUM_STREAMS": options.instances,
        "INFERENCE_NUM_THREADS": options.threads_each * options.instances,
        "ENABLE_CPU_PINNING": False,
    }


def _refuse(precision: Precision, options: EngineOptions) -> None:
    """Raise EngineUnavailable or EngineError for what OpenVINO does not run, and say what to use instead."""
    if options.device == "cuda":
        raise EngineUnavailable("device cuda: the engine openvino runs on the CPU; use onnxruntime or torch")
    if precision == "int8-trt":
        raise EngineUnavailable("int8-trt is for TensorRT on an NVIDIA GPU; use int8 on the CPU")
    if options.mode not in (None, MODE):
        raise EngineError(f"openvino has no mode {options.mode!r}; there is: {MODE}")


def _core() -> openvino.Core:
    try:
        return openvino.Core()
    except Exception as error:
        raise EngineUnavailable(f"OpenVINO does not start: {_first_line(error)}") from error


def _capabilities(core: openvino.Core) -> list[str]:
    """Return what the processor can compute in; raise EngineUnavailable if the CPU plugin does not load."""
    try:
        found: list[str] = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:
        raise EngineUnavailable(f"OpenVINO does not start: {_first_line(error)}") from error
    return found


def _version() -> str:
    """`2026.4.1` of `2026.4.1-12345-abcdef-releases/2026/4`."""
    version: str = openvino.get_version()
    return version.partition("-")[0]


def _first_line(error: Exception) -> str:
    """Return the first line of an OpenVINO error that does not name OpenVINO's source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check '"))), repr(error))

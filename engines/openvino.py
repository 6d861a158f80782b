"""OpenVINO on the CPU, the ONNX file as it is: the engine for Intel's matrix units (AMX), good on others.

An instance is a stream of one compiled graph, with a request of its own. The graph takes every batch size:
compiled for each size apart it was no faster, and took more memory. Nor are compiled graphs kept on disk:
ResNet-50 opened a tenth of a second sooner, for 98 MB (docs/decisions.md).

fp32 means fp32, and int8 int8 with fp32 between: left to itself OpenVINO computes in bf16 where the processor
can. bf16 and fp16 graphs compute in their own precision where the processor has it, else in fp32.
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

# OpenVINO imports its converter, which is slow to import and reports its use to its maker, if it is there.
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
        EngineUnavailable: the device is CUDA, the precision TensorRT's, or OpenVINO does not start.
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
        # Names as in the file: where the compiler drops a cast, what it has left bears those of both sides.
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
                # Not copied: a contiguous array is read where it lies.
                request.start_async(dict(inputs), share_inputs=True)
                request.wait()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO: {_first_line(error)}") from error
            # Copied: the request's own memory is the next run's.
            outputs = [tensor.data.copy() for tensor in request.output_tensors]
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        del self._requests, self._compiled

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """OpenVINO would convert a wrong type, and take what is missing from before."""
        if inputs.keys() != self._inputs.keys():
            raise EngineError(f"OpenVINO: inputs {sorted(inputs)}, not {sorted(self._inputs)}")
        for name, array in inputs.items():
            if array.dtype != self._inputs[name]:
                raise EngineError(f"OpenVINO: {name} is {array.dtype}, not {self._inputs[name]}")


def modes(precision: Precision, options: EngineOptions) -> tuple[str, ...]:
    """See `engines.registry.modes`; half precisions only where the processor has them."""
    if options.device == "cuda" or precision == "int8-trt":
        return ()
    if precision in HALF and HALF[precision][0] not in _capabilities(_core()):
        return ()
    return (MODE,)


def compile_properties(core: openvino.Core, precision: Precision, options: EngineOptions) -> dict[str, Any]:
    """What the CPU plugin is told.

    Threads are not pinned to cores: the decode pool and the other graph share the cores, and a container's
    quota is not an affinity, so that pinned threads of two graphs would meet on the first cores.
    """
    capability, compute = HALF.get(precision, ("", "f32"))
    return {
        "INFERENCE_PRECISION_HINT": compute if capability in _capabilities(core) else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # never int8 that the graph does not ask for
        "NUM_STREAMS": options.instances,
        "INFERENCE_NUM_THREADS": options.threads_each * options.instances,
        "ENABLE_CPU_PINNING": False,
    }


def _refuse(precision: Precision, options: EngineOptions) -> None:
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
    """What the processor computes in; raises EngineUnavailable where the CPU plugin cannot be loaded."""
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
    """The telling line of an error of OpenVINO, whose first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check '"))), repr(error))

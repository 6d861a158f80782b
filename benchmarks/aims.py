"""The project's aims for the speed of graphs, and whether a run on this machine met them.

An aim that needs another processor, GPU or model is "not applicable", with the reason; that is no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.theory import Machine

Rows = Sequence[dict[str, Any]]
RESNET_50 = ("resnet50", 224)  # architecture and pixels


@dataclass(frozen=True)
class Aim:
    """A limit for one number of the table.

    Attributes:
        value: returns the number from the rows; None if no row has it.
        feature: a feature of the processor, or a word in the GPU's name, that the aim needs; or several such
            with `or` between them.
    """

    what: str
    value: Callable[[Rows], float | None]
    at_least: float | None = None
    at_most: float | None = None
    feature: str | None = None
    device: str = "cpu"
    only_resnet50: bool = False


def fastest(rows: Rows, graph: str, key: str, **where: str) -> float | None:
    """Return `key` of the row with the most images a second, among rows of `graph` that match `where`."""
    wanted = {"graph": graph, **where}
    found = [row for row in rows if row[key] is not None and wanted.items() <= row.items()]
    return max(found, key=lambda row: row["images_per_s"])[key] if found else None


def to_onnxruntime(engine: str, precision: str) -> Callable[[Rows], float | None]:
    return lambda rows: fastest(rows, "classify", "ratio_to_ort_fp32", engine=engine, precision=precision)


def to_classify(**where: str) -> Callable[[Rows], float | None]:
    return lambda rows: fastest(rows, "introspect", "ratio_to_classify", **where)


def cost_of_uint8(engine: str, precision: str) -> Callable[[Rows], float | None]:
    """Return a function: how much faster the graph with float input is, in per cent."""

    def value(rows: Rows) -> float | None:
        ratio = fastest(rows, "float input", "ratio_to_classify", engine=engine, precision=precision)
        return None if ratio is None else 100 * (ratio - 1)

    return value


def large_batches(rows: Rows) -> float | None:
    return fastest([row for row in rows if row["batch"] >= 128], "classify", "images_per_s", precision="fp16")


def one_image(rows: Rows) -> float | None:
    return fastest([row for row in rows if row["batch"] == 1], "classify", "p50_ms", precision="fp16")


AIMS = (
    Aim(
        "OpenVINO int8 / ORT fp32", to_onnxruntime("openvino", "int8"), 8.5,
        feature="amx_int8", only_resnet50=True,
    ),
    Aim(
        "OpenVINO bf16 / ORT fp32", to_onnxruntime("openvino", "bf16"), 5.0,
        feature="amx_bf16", only_resnet50=True,
    ),
    Aim(
        "ORT int8 / ORT fp32", to_onnxruntime("onnxruntime", "int8"), 3.0,
        feature="amx_int8", only_resnet50=True,
    ),
    Aim("introspect / classify, OpenVINO fp32", to_classify(engine="openvino", precision="fp32"), 0.75),
    Aim(
        "introspect / classify, OpenVINO bf16",
        to_classify(engine="openvino", precision="bf16"), 0.4, feature="amx_bf16",
    ),
    Aim("uint8 against float input, ORT fp32, %", cost_of_uint8("onnxruntime", "fp32"), at_most=3.0),
    Aim("uint8 against float input, OpenVINO fp32, %", cost_of_uint8("openvino", "fp32"), at_most=3.0),
    Aim("uint8 against float input, OpenVINO int8, %", cost_of_uint8("openvino", "int8"), at_most=3.0),
    Aim("introspect / classify, GPU fp32", to_classify(precision="fp32"), 0.8, device="cuda"),
    Aim("introspect / classify, GPU fp16", to_classify(precision="fp16"), 0.8, device="cuda"),
    Aim(
        "fp16 images/s at batch 128 or more", large_batches, 18_000,
        feature="H100 or H200", device="cuda", only_resnet50=True,
    ),
    Aim(
        "fp16 ms at batch 1", one_image, at_most=1.2,
        feature="H100 or H200", device="cuda", only_resnet50=True,
    ),
)  # fmt: skip


def judge(architecture: str, pixels: int, rows: Rows, machine: Machine) -> list[dict[str, Any]]:
    """Return every aim with `met`: True, False, or None if it is not applicable; then `why` says why."""
    judged = []
    for aim in AIMS:
        why = _not_applicable(aim, architecture, pixels, machine)
        value = None if why else aim.value(rows)
        if why is None and value is None:
            why = "not measured in this run"
        met = None
        if value is not None:
            met = value >= aim.at_least if aim.at_least is not None else value <= (aim.at_most or 0)
        judged.append(
            {
                "aim": aim.what,
                "at_least": aim.at_least,
                "at_most": aim.at_most,
                "value": value,
                "met": met,
                "why": why,
            }
        )
    return judged


def _not_applicable(aim: Aim, architecture: str, pixels: int, machine: Machine) -> str | None:
    if aim.device != machine.device:
        return "no GPU" if aim.device == "cuda" else "measured on the GPU"
    present = {*machine.features, *(machine.gpu or "").split()}
    if aim.feature and present.isdisjoint(aim.feature.split(" or ")):
        return f"no {'AMX' if aim.feature.startswith('amx') else aim.feature}"
    if aim.only_resnet50 and (architecture, pixels) != RESNET_50:
        return "only for ResNet-50 at 224 pixels"
    return None


def print_aims(judged: Sequence[dict[str, Any]]) -> None:
    """Print one line: first the aims that apply, then the others, grouped by reason."""
    told = []
    left: dict[str, list[str]] = {}
    for aim in judged:
        limit = f">= {aim['at_least']:g}" if aim["at_least"] is not None else f"<= {aim['at_most']:g}"
        if aim["met"] is None:
            left.setdefault(aim["why"], []).append(f"{aim['aim']} {limit}")
        else:
            told.append(f"{aim['aim']} {limit}: {aim['value']:.2f}, {'met' if aim['met'] else 'NOT met'}")
    told += [f"not applicable, {why}: {', '.join(names)}" for why, names in left.items()]
    print("aims: " + "; ".join(told))

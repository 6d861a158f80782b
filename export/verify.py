"""The gate between a model and its graphs: parity with the source model, in every precision.

The gate compares the source with what the file says, computed on the CPU (`export.emulate`). Whether an
engine on some machine computes the same is checked there, with the golden image. The gate of accuracy is
`export.accuracy`.

Shapes: N batch, H W space, K classes, L blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import GraphKind, Parity, Precision, Preprocessing
from export.emulate import feed, logits_of, open_as_written, open_session, run_as_written
from export.graph import distinct_tensors, tap_names
from models.pixels import normalised
from models.resnet import ResNet

__all__ = [
    "GateError",
    "Reference",
    "check_parity",
    "golden",
    "open_session",
    "reference",
    "synthetic_images",
]

BATCH_SIZES = (1, 3, 8)


class Tolerance(NamedTuple):
    """Allowed distance of logits from the source model's, as a part of their range (at least of 1).

    `parity` is for the file with its own arithmetic. `sums` is for F + s, as a part of their largest value:
    the worst of millions of elements that nothing has averaged yet. `golden` is for an engine that runs the
    file: it leaves room for another order of sums and for fused rounding, not for another answer.
    """

    parity: float
    sums: float
    golden: float


# About ten times the largest error that random networks of 20 to 164 layers showed: 5e-7, 8e-4 and 8e-3.
# A BatchNorm fused wrongly or a mean left out is off by 0.1 and more. Sums of a random ResNet-50 in fp16 and
# bf16: 8e-3 and 6e-2.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-4, 1e-2),
    "fp16": Tolerance(8e-3, 3e-2, 2e-2),
    "bf16": Tolerance(5e-2, 2e-1, 1e-1),
}
# An int8 graph against itself at another batch size: sums in another order change how ties round.
BATCH_TOLERANCE = 2e-2
# An engine against an int8 file's own arithmetic: twice the distance by which quantisation moved the logits,
# between these limits. Kernels that do not overflow were off by 0.9 % on the embedded model, those that do
# (full-range weights without VNNI) by 4.6 %. A random ResNet-50 amplifies each rounding: 2.8 %, where
# quantisation moved the logits by 2.6 %.
GOLDEN_INT8 = (2.5e-2, 4e-2)


class GateError(ResiduumError):
    """An exported graph differs from its source; the message names the figure."""


@dataclass(frozen=True)
class Reference:
    """The logits of the unfused source model, in float64, for some images."""

    images_NHW3: NDArray[np.uint8]
    logits_NK: NDArray[np.float64]

    @property
    def logit_range(self) -> float:
        return float(np.ptp(self.logits_NK))


def synthetic_images(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Return smooth random colour fields with some grain, uint8 [count, size, size, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    field = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    grain = torch.randn(count, 3, size, size, generator=generator)
    pixels = (127.5 + 60 * field + 12 * grain).clamp(0, 255).permute(0, 2, 3, 1)
    return pixels.to(torch.uint8).contiguous().numpy()


@torch.no_grad()
def reference(source: ResNet, preprocessing: Preprocessing, images_NHW3: NDArray[np.uint8]) -> Reference:
    """Compute the reference; `source` is in float64 and evaluation mode, with its BatchNorms."""
    logits = torch.cat(
        [source(chunk) for chunk in torch.split(normalised(images_NHW3, preprocessing, torch.float64), 8)]
    )
    return Reference(images_NHW3, logits.numpy())


def check_parity(
    kind: GraphKind,
    graph: Path,
    source: ResNet,
    preprocessing: Preprocessing,
    expected: Reference,
    precision: Precision = "fp32",
) -> Parity:
    """Compare the graph's logits with the source model's at several batch sizes.

    An int8 graph is measured only, because the gate of accuracy limits its loss. But no graph may give an
    image another answer in a batch than alone.

    Raises:
        GateError: logits, or F + s, differ by more than TOLERANCES allows.
    """
    session = open_as_written(graph, precision)
    unit = max(1.0, expected.logit_range)
    alone = logits_of(session, expected.images_NHW3, BATCH_SIZES[0])
    worst, agreed = 0.0, 1.0
    for batch in BATCH_SIZES:
        logits = logits_of(session, expected.images_NHW3, batch)
        delta = float(np.abs(logits - expected.logits_NK).max())
        if precision in TOLERANCES:
            limit = TOLERANCES[precision].parity * unit
            what, difference = "the source model's", delta
        else:
            limit = BATCH_TOLERANCE * unit
            what, difference = "those of the same images one by one", float(np.abs(logits - alone).max())
        # Written so that NaN fails.
        if not difference <= limit:
            raise GateError(
                f"{_called(kind, precision)}: logits differ from {what} by {difference:.3g} "
                f"at batch {batch}; {limit:.3g} is allowed"
            )
        worst = max(worst, delta)
        agreed = min(agreed, float((logits.argmax(1) == expected.logits_NK.argmax(1)).mean()))
    return Parity(
        num_images=len(expected.images_NHW3),
        batch_sizes=BATCH_SIZES,
        max_abs_delta_logit=worst,
        logit_range=expected.logit_range,
        top1_agreement=agreed,
        sum_parity_max_abs=_sum_parity(graph, source, preprocessing, expected, precision)
        if kind != "classify"
        else None,
        completeness_max_abs=_completeness(session, expected, precision) if kind == "attribute" else None,
    )


def golden(graph: Path, precision: Precision, expected: Reference) -> tuple[NDArray[np.float64], float]:
    """Return the logits [K] that every engine must give for the golden image, and the tolerance.

    Of an int8 graph they are its own, emulated: how far quantisation moved them is not the engine's doing.
    But it is what this network makes of rounding, and an engine that rounds elsewhere may do as much again.
    """
    if precision in TOLERANCES:
        return expected.logits_NK[0], TOLERANCES[precision].golden * max(1.0, expected.logit_range)
    logits_K = run_as_written(graph, precision, expected.images_NHW3[:1])[0].astype(np.float64)
    noise = float(np.abs(logits_K - expected.logits_NK[0]).max())
    unit = max(1.0, float(np.ptp(logits_K)))
    least, most = GOLDEN_INT8
    return logits_K, min(max(2 * noise, least * unit), most * unit)


def _called(kind: GraphKind, precision: Precision) -> str:
    return kind if precision == "fp32" else f"{kind} in {precision}"


def _completeness(session: ort.InferenceSession, expected: Reference, precision: Precision) -> float | None:
    """max |sum of all parts - the top class's logit|; None for a network without contributions.

    Raises:
        GateError: more than the tolerance for parity.
    """
    if len(session.get_inputs()) == 2:
        return None
    images = expected.images_NHW3[: max(BATCH_SIZES)]
    outputs = ("logits", "contributions", "constants")
    logits, maps, constants = (
        np.asarray(array, np.float64) for array in session.run(outputs, feed(session, images))
    )
    error = float(np.abs(maps.sum(1) + constants.sum(1) - logits.max(1)).max())
    limit = TOLERANCES[precision].parity * max(1.0, expected.logit_range)
    if not error <= limit:
        raise GateError(
            f"{_called('attribute', precision)}: contributions and constants miss the logit by {error:.3g}; "
            f"{limit:.3g} is allowed"
        )
    return error


@torch.no_grad()
def _sum_parity(
    graph: Path, source: ResNet, preprocessing: Preprocessing, expected: Reference, precision: Precision
) -> float:
    """max |(F + s) in the graph - the sum that the source network computed| over all blocks.

    Raises:
        GateError: more than the tolerance for parity of the sums' largest value.
    """
    images = expected.images_NHW3[: max(BATCH_SIZES)]
    names = tap_names(source)
    session = open_as_written(graph, precision, names)
    raw = dict(zip(names, session.run(names, feed(session, images)), strict=True))
    _, taps = source.forward_taps(normalised(images, preprocessing, torch.float64))
    names_of = {id(tensor): name for name, tensor in distinct_tensors(taps).items()}
    worst = 0.0
    for name, tap in taps.items():
        own = tap.total.numpy()
        total = raw[names_of[id(tap.residual)]]
        if tap.shortcut is not None:
            total = total + raw[names_of[id(tap.shortcut)]]
        delta = float(np.abs(total - own).max())
        limit = TOLERANCES[precision].sums * max(1.0, float(np.abs(own).max()))
        if not delta <= limit:
            raise GateError(
                f"{graph.stem}: F + s differs from the network's own sum by {delta:.3g} at {name}"
            )
        worst = max(worst, delta)
    return worst

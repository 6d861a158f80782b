"""The gates between an export and an artifact: parity with the source model, and accuracy on given images.

Graphs are run by ONNX Runtime on the CPU, from the file that will be served.

Shapes: N batch, H W space, K classes, L blocks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.graph import measured, tap_names
from models.manifest import Accuracy, GraphKind, Parity, Preprocessing
from models.resnet import ResNet

# ONNX Runtime reports its use to its maker unless told not to, and at exit waits where it cannot.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

BATCH_SIZES = (1, 3, 8)
PARITY_TOLERANCE = 1e-4  # of the logits' range, and of 1 where that is smaller
GOLDEN_TOLERANCE = 1e-2  # likewise: room for another engine's rounding, not for another answer


class GateError(Exception):
    """An exported graph is not what it was made from; the message names the figure."""


@dataclass(frozen=True)
class Reference:
    """What the unfused source model says, in float64, of some images."""

    images_NHW3: NDArray[np.uint8]
    logits_NK: NDArray[np.float64]

    @property
    def logit_range(self) -> float:
        return float(np.ptp(self.logits_NK))


def synthetic_images(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Smooth random colour fields with some grain, uint8 [count, size, size, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    field = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    grain = torch.randn(count, 3, size, size, generator=generator)
    pixels = (127.5 + 60 * field + 12 * grain).clamp(0, 255).permute(0, 2, 3, 1)
    return pixels.to(torch.uint8).contiguous().numpy()


@torch.no_grad()
def source_input(images_NHW3: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """What the source model takes: float64 [N, 3, H, W], normalised outside of any graph."""
    x = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2).double() / 255
    mean, std = (
        torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    return (x - mean) / std


@torch.no_grad()
def reference(source: ResNet, preprocessing: Preprocessing, images_NHW3: NDArray[np.uint8]) -> Reference:
    """`source` is in float64 and evaluation mode, with its BatchNorms in place."""
    logits = torch.cat([source(chunk) for chunk in torch.split(source_input(images_NHW3, preprocessing), 8)])
    return Reference(images_NHW3, logits.numpy())


def open_session(graph: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def feed(
    kind: GraphKind, session: ort.InferenceSession, images_NHW3: NDArray[np.uint8]
) -> dict[str, NDArray[np.generic]]:
    """The inputs of one run; gates are all ones."""
    inputs: dict[str, NDArray[np.generic]] = {"images": images_NHW3}
    if kind == "introspect":
        num_blocks = session.get_inputs()[1].shape[1]
        inputs["gates"] = np.ones((len(images_NHW3), num_blocks), np.float32)
    return inputs


def check_parity(
    kind: GraphKind, graph: Path, source: ResNet, preprocessing: Preprocessing, expected: Reference
) -> Parity:
    """Hold the graph's logits against the source model's at several batch sizes.

    Raises:
        GateError: the logits differ by more than PARITY_TOLERANCE, or F + s from the network's own sum.
    """
    session = open_session(graph)
    limit = PARITY_TOLERANCE * max(1.0, expected.logit_range)
    worst, agreed = 0.0, 1.0
    for batch in BATCH_SIZES:
        logits = np.concatenate(
            [
                np.asarray(
                    session.run(["logits"], feed(kind, session, expected.images_NHW3[start : start + batch]))[
                        0
                    ]
                )
                for start in range(0, len(expected.images_NHW3), batch)
            ]
        )
        delta = float(np.abs(logits - expected.logits_NK).max())
        # Written so that NaN fails.
        if not delta <= limit:
            raise GateError(
                f"{kind}: logits differ from the source model's by {delta:.3g} at batch {batch}; "
                f"{limit:.3g} is allowed"
            )
        worst = max(worst, delta)
        agreed = min(agreed, float((logits.argmax(1) == expected.logits_NK.argmax(1)).mean()))
    return Parity(
        num_images=len(expected.images_NHW3),
        batch_sizes=BATCH_SIZES,
        max_abs_delta_logit=worst,
        logit_range=expected.logit_range,
        top1_agreement=agreed,
        sum_parity_max_abs=_sum_parity(graph, source, preprocessing, expected)
        if kind == "introspect"
        else None,
    )


@torch.no_grad()
def _sum_parity(graph: Path, source: ResNet, preprocessing: Preprocessing, expected: Reference) -> float:
    """max |(F + s) in the graph - the sum that the source network computed| over all blocks.

    Raises:
        GateError: more than PARITY_TOLERANCE of the sums' largest value.
    """
    images = expected.images_NHW3[: max(BATCH_SIZES)]
    proto = onnx.load(graph)
    names = list(tap_names(source))
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(proto.SerializeToString())
    raw = dict(zip(names, session.run(names, feed("introspect", session, images)), strict=True))
    _, taps = source.forward_taps(source_input(images, preprocessing))
    names_of = {id(tensor): name for name, tensor in measured(taps).items()}
    worst = 0.0
    for name, tap in taps.items():
        own = tap.total.numpy()
        total = raw[names_of[id(tap.residual)]]
        if tap.shortcut is not None:
            total = total + raw[names_of[id(tap.shortcut)]]
        delta = float(np.abs(total - own).max())
        limit = PARITY_TOLERANCE * max(1.0, float(np.abs(own).max()))
        if not delta <= limit:
            raise GateError(f"introspect: F + s differs from the network's own sum by {delta:.3g} at {name}")
        worst = max(worst, delta)
    return worst


def measure_accuracy(
    kind: GraphKind, graph: Path, images_NHW3: NDArray[np.uint8], labels_N: NDArray[np.int64], dataset: str
) -> Accuracy:
    """Top-1 and top-5 of the graph on preprocessed images."""
    session = open_session(graph)
    logits = np.concatenate(
        [
            np.asarray(session.run(["logits"], feed(kind, session, images_NHW3[start : start + 64]))[0])
            for start in range(0, len(images_NHW3), 64)
        ]
    )
    # How many are not below the right one, itself left out: ties and NaN count against it.
    own_N1 = np.take_along_axis(logits, labels_N[:, None], 1)
    ranks = (~(logits < own_N1)).sum(1) - 1
    return Accuracy(
        dataset=dataset,
        num_images=len(labels_N),
        top1=float((ranks < 1).mean()),
        top5=float((ranks < 5).mean()),
    )

"""Accuracy on labelled images, and the gate that limits how much of it a precision may lose.

The functions take logits as arrays (`export.emulate.run_as_written`), so that no graph is run twice.

Shapes: N batch, K classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Accuracy, Precision
from export.verify import GateError

# Allowed loss of top-1, as a fraction, against the fp32 graph of the same weights.
ALLOWED_LOSS: dict[Precision, float] = {"fp16": 0.001, "bf16": 0.001, "int8": 0.003, "int8-trt": 0.003}
# On fewer images the gate allows for chance as well: one-sided, 95 %.
ENOUGH_IMAGES = 10_000
NEEDED_AGREEMENT = 0.9  # with fp32's top class, without labels; a broken graph is far below
QUANTILE = 1.645


def score(
    logits_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    dataset: str,
    reference_NK: NDArray[np.float32] | None = None,
) -> Accuracy:
    """Return top-1 and top-5, and the agreement with `reference`, the logits of the fp32 graph, if given."""
    ranks = _ranks(logits_NK, labels_N)
    agreement = None
    if reference_NK is not None:
        agreement = float((logits_NK.argmax(1) == reference_NK.argmax(1)).mean())
    return Accuracy(
        dataset=dataset,
        num_images=len(labels_N),
        top1=float((ranks < 1).mean()),
        top5=float((ranks < 5).mean()),
        agreement=agreement,
    )


def check_accuracy(
    precision: Precision,
    logits_NK: NDArray[np.float32],
    fp32_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    *,
    allow_loss: bool = False,
) -> str:
    """Return one sentence for people on why the precision passes.

    Both graphs saw the same images. So the standard error of the difference is sqrt(n) / N, where n counts
    the images that exactly one of the graphs gets right.

    Raises:
        GateError: it loses more than ALLOWED_LOSS and chance together, and `allow_loss` is not given.
    """
    right, fp32_right = (_ranks(logits, labels_N) < 1 for logits in (logits_NK, fp32_NK))
    num_images = len(labels_N)
    loss = float(fp32_right.mean() - right.mean())
    allowed, chance = ALLOWED_LOSS[precision], 0.0
    if num_images < ENOUGH_IMAGES:
        chance = QUANTILE * math.sqrt(np.count_nonzero(right != fp32_right)) / num_images
    change = f"loses {100 * loss:.2f}" if loss > 0 else f"gains {-100 * loss:.2f}" if loss < 0 else "loses no"
    measured = (
        f"{precision} {change} point of top-1 against fp32 "
        f"({100 * right.mean():.2f} % after {100 * fp32_right.mean():.2f} % of {num_images:,} images)"
    )
    limit = f"{100 * allowed:.1f} is allowed"
    if chance:
        limit += f", and {100 * chance:.2f} more for chance on so few images"
    # 1e-9 is for the rounding of fractions of N.
    if loss <= allowed + chance + 1e-9:
        return f"{measured}; {limit}."
    if allow_loss:
        return f"{measured}; {limit}, but --allow-loss let it pass."
    remedy = "--keep-layers 3 or --qat-epochs 1 may mend it; " if precision.startswith("int8") else ""
    raise GateError(f"{measured}; {limit}. {remedy}--allow-loss exports it all the same.")


def check_agreement(
    precision: Precision,
    logits_NK: NDArray[np.float32],
    fp32_NK: NDArray[np.float32],
    *,
    allow_loss: bool = False,
) -> str:
    """Return one sentence for people on why the precision passes, from images without labels.

    Raises:
        GateError: the graphs agree on the top class too rarely, and `allow_loss` is not given.
    """
    agreement = float((logits_NK.argmax(1) == fp32_NK.argmax(1)).mean())
    measured = (
        f"{precision} gives fp32's top class for {100 * agreement:.2f} % of {len(logits_NK):,} images "
        f"without labels ({100 * NEEDED_AGREEMENT:.0f} % is needed); its accuracy was not measured"
    )
    if agreement >= NEEDED_AGREEMENT:
        return f"{measured}."
    if allow_loss:
        return f"{measured}; --allow-loss let it pass."
    raise GateError(f"{measured}. Give labelled images with --data, or --allow-loss exports it all the same.")


def _ranks(logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many other classes are not below the right one: ties and NaN count against it."""
    own_N1 = np.take_along_axis(logits_NK, labels_N[:, None], 1)
    ranks: NDArray[np.int64] = (~(logits_NK < own_N1)).sum(1) - 1
    return ranks

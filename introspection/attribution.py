"""Logits and contributions -> what each block did for an answer: contributions, lens and lesions, in numbers.

A contribution is what a block adds directly to one class's logit; a lens is what the network would have said,
had it stopped at a block; a lesion is what it says without one. introspection.py puts them beside the other
quantities. It knows no graph, no requests and no files.

Shapes: B blocks asked for, L blocks of the network, M blocks that have a lens, K classes, P positions of all
blocks one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Block, lens_blocks

FloatArray = NDArray[np.float64]


class Decomposition(NamedTuple):
    """What the target's logit is made of; `blocks` are all contributions, `sum` all of the first four."""

    stem: float
    shortcut_biases: float
    head_bias: float
    blocks: float
    sum: float
    logit: float


@dataclass(frozen=True)
class LesionLogits:
    """Logits of one image without each of some blocks.

    Attributes:
        blocks: [B], indices into the network's blocks.
        logits: [B + 1, K]; the first row is of the network with nothing removed.
    """

    blocks: tuple[int, ...]
    logits: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """[B]: activations stayed finite without the block, and with it."""
        finite = np.asarray(np.isfinite(self.logits).all(1))
        return np.asarray(finite[1:] & finite[0])


def decompose(
    contributions_P: FloatArray, constants_3: FloatArray, slices: Sequence[slice], logit: float
) -> tuple[FloatArray, Decomposition]:
    """Every block's contribution to the logit, [L], and what all of it sums to."""
    by_block_L = np.array([contributions_P[part].sum() for part in slices])
    blocks = float(by_block_L.sum())
    stem, shortcut_biases, head_bias = (float(value) for value in constants_3)
    total = blocks + stem + shortcut_biases + head_bias
    return by_block_L, Decomposition(stem, shortcut_biases, head_bias, blocks, total, logit)


def lens_scalars(lens_MK: FloatArray, blocks: Sequence[Block], target: int) -> dict[str, FloatArray]:
    """`lens.*`, [L] each: of the most probable class at the block, and of `target`; NaN without a lens."""
    log_p_MK = log_softmax(lens_MK)
    found = {
        "lens.probability": np.exp(log_p_MK.max(1)),
        "lens.target_probability": np.exp(log_p_MK[:, target]),
        "lens.target_logit": lens_MK[:, target],
    }
    return {name: _at(lens_blocks(blocks), values, len(blocks)) for name, values in found.items()}


def lens_classes(lens_MK: FloatArray, blocks: Sequence[Block]) -> NDArray[np.int64]:
    """The most probable class at each block, [L]; -1 without a lens."""
    classes_L = np.full(len(blocks), -1)
    classes_L[lens_blocks(blocks)] = lens_MK.argmax(1)
    return classes_L


def lesion_scalars(lesions: LesionLogits, num_blocks: int, top1: int, target: int) -> dict[str, FloatArray]:
    """`lesion.*`, [L] each; NaN for blocks that were not removed, or without which nothing finite comes out.

    Without the block minus with it, of the classes `top1` and `target`; and KL(p || p without the block) in
    nats. `top1` is the answer's: the graph that ran the lesions may round otherwise and prefer another class.
    """
    known = lesions.known
    logits_BK = lesions.logits[1:][known].astype(np.float64)
    whole_1K = np.nan_to_num(
        lesions.logits[:1].astype(np.float64)
    )  # where it is not finite, no block is known
    log_p_BK, log_p_1K = log_softmax(logits_BK), log_softmax(whole_1K)
    p_BK, p_1K = np.exp(log_p_BK), np.exp(log_p_1K)
    found = {"lesion.kl": np.maximum((p_1K * (log_p_1K - log_p_BK)).sum(1), 0)}
    for prefix, index in (("lesion.", top1), ("lesion.target_", target)):
        found[f"{prefix}delta_logit"] = (logits_BK - whole_1K)[:, index]
        found[f"{prefix}delta_probability"] = (p_BK - p_1K)[:, index]
    removed = np.array(lesions.blocks, np.int64)[known]
    return {name: _at(removed, values, num_blocks) for name, values in found.items()}


def lesion_classes(lesions: LesionLogits, num_blocks: int) -> NDArray[np.int64]:
    """The most probable class without each block, [L]; -1 where `lesion_scalars` has NaN."""
    known = lesions.known
    classes_L = np.full(num_blocks, -1)
    classes_L[np.array(lesions.blocks, np.int64)[known]] = lesions.logits[1:][known].argmax(1)
    return classes_L


def log_softmax(logits_RK: FloatArray) -> FloatArray:
    """Logarithms of the probabilities in each row; none of its numbers may be infinite."""
    shifted = logits_RK - logits_RK.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _at(indices: Sequence[int] | NDArray[np.int64], values: FloatArray, length: int) -> FloatArray:
    """The values at their indices, NaN elsewhere."""
    spread = np.full(length, np.nan)
    spread[indices] = values
    return spread

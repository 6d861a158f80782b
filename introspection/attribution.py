"""Logits and contributions: what each block did for an answer. Formulas of contributions, lens and lesions.

A contribution is what a block adds directly to one class's logit; a lens is what the network would have said,
had it stopped at a block; a lesion is what it says without one. A formula takes `Readings` and returns the
members of a group, [L] each. Knows no graph, no requests and no files.

Shapes: B blocks asked for, L blocks of the network, M blocks that have a lens, K classes, P positions of all
blocks one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import lens_blocks
from introspection.readings import FloatArray, LesionLogits, Readings

Members = dict[str, NDArray[Any]]


class Decomposition(NamedTuple):
    """What the target's logit is made of; `blocks` are all contributions, `sum` all of the first four."""

    stem: float
    shortcut_biases: float
    head_bias: float
    blocks: float
    sum: float
    logit: float


def contribution_map(found: Readings) -> FloatArray:
    """Return what every position adds to the target's logit, [P], as the graph gives it."""
    return found.outputs["contributions"]


def contribution(found: Readings) -> Members:
    """Return what every block adds to the target's logit: the sum of its map."""
    return {"": found.contributions}


NUM_TOP_CHANNELS = 5


def top_channels(found: Readings) -> Members:
    """Return the channels of every block that add most to the target's logit, best first.

    A channel adds the sum of gradient times F over its positions; all channels of a block sum to the block's
    contribution. NaN where a block has fewer channels.
    """
    shape = (len(found.blocks), NUM_TOP_CHANNELS)
    best = {"channel": np.full(shape, np.nan), "sum": np.full(shape, np.nan)}
    ends = np.cumsum([block.shape[0] for block in found.blocks])
    for index, sums_C in enumerate(np.split(found.outputs["channels"], ends[:-1])):
        chosen = np.argsort(-sums_C, kind="stable")[:NUM_TOP_CHANNELS]
        best["channel"][index, : len(chosen)] = chosen
        best["sum"][index, : len(chosen)] = sums_C[chosen]
    return best


def decompose(found: Readings) -> Decomposition:
    """Return the target's logit as a sum of contributions and constants."""
    blocks = float(found.contributions.sum())
    stem, shortcut_biases, head_bias = (float(value) for value in found.outputs["constants"])
    total = blocks + stem + shortcut_biases + head_bias
    logit = float(found.logits[found.target])
    return Decomposition(stem, shortcut_biases, head_bias, blocks, total, logit)


def lens(found: Readings) -> Members:
    """Return the most probable class at each block and the probabilities there, -1 and NaN without a lens."""
    lens_MK, placed, num_blocks = found.outputs["lens"], lens_blocks(found.blocks), len(found.blocks)
    log_p_MK = log_softmax(lens_MK)
    numbers = {
        "probability": np.exp(log_p_MK.max(1)),
        "target_probability": np.exp(log_p_MK[:, found.target]),
        "target_logit": lens_MK[:, found.target],
    }
    return {
        "index": _classes_at(placed, lens_MK, num_blocks),
        **{name: _at(placed, values, num_blocks) for name, values in numbers.items()},
    }


def lesion(found: Readings) -> Members:
    """Return the most probable class without each block, and what changed.

    -1 and NaN for blocks that were not removed, or without which nothing finite comes out.
    """
    assert found.lesions is not None
    num_blocks = len(found.blocks)
    removed = np.array(found.lesions.blocks, np.int64)[found.lesions.known]
    without_BK = found.lesions.logits[1:][found.lesions.known]
    return {
        "index": _classes_at(removed, without_BK, num_blocks),
        **lesion_scalars(found.lesions, num_blocks, found.top1, found.target),
    }


def lesion_scalars(lesions: LesionLogits, num_blocks: int, top1: int, target: int) -> dict[str, FloatArray]:
    """Return the numbers of `lesion`, [L] each.

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
    found = {"kl": np.maximum((p_1K * (log_p_1K - log_p_BK)).sum(1), 0)}
    for prefix, index in (("", top1), ("target_", target)):
        found[f"{prefix}delta_logit"] = (logits_BK - whole_1K)[:, index]
        found[f"{prefix}delta_probability"] = (p_BK - p_1K)[:, index]
    removed = np.array(lesions.blocks, np.int64)[known]
    return {name: _at(removed, values, num_blocks) for name, values in found.items()}


def log_softmax(logits_RK: FloatArray) -> FloatArray:
    """Return the logarithms of the probabilities in each row; no logit may be infinite."""
    shifted = logits_RK - logits_RK.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _at(indices: Sequence[int] | NDArray[np.int64], values: FloatArray, length: int) -> FloatArray:
    """Return the values at their indices, NaN elsewhere."""
    spread = np.full(length, np.nan)
    spread[indices] = values
    return spread


def _classes_at(
    indices: Sequence[int] | NDArray[np.int64], logits_RK: NDArray[Any], length: int
) -> NDArray[np.int64]:
    """Return the most probable class of each row at its index, -1 elsewhere."""
    classes = np.full(length, -1)
    classes[indices] = logits_RK.argmax(1)
    return classes

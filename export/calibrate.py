"""The ranges of a graph's tensors over given images, chosen to minimise the squared rounding error.

Two passes go over the images, a few at a time: the first finds the extremes, the second fills histograms
between them. Only histograms are kept, so memory does not grow with the number of images; onnxruntime's
calibrators keep every tensor of every image (onnxruntime#10503).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export.emulate import open_session

NUM_BINS = 2048
_SHARES = tuple(float(share) for share in np.linspace(0.3, 1, 36))  # of the whole range, as candidates
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Range:
    """The range of a tensor's values; it always contains 0, so that padding is exact."""

    low: float
    high: float


Pass = Callable[[], Iterator[dict[str, NDArray[np.float32]]]]


def calibrate(observations: Pass, num_levels: int, signed: bool) -> dict[str, Range]:
    """Return the range of every tensor for `num_levels` even steps; `signed`: symmetric around 0.

    Args:
        observations: called twice; yields the tensors' values by name, a few images at a time.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for values in observations():
        for name, value in values.items():
            lows[name] = min(lows.get(name, 0.0), float(value.min()))
            highs[name] = max(highs.get(name, 0.0), float(value.max()))
    counts = {name: np.zeros(NUM_BINS) for name in lows}
    for values in observations():
        for name, value in values.items():
            if highs[name] > lows[name]:
                bins = torch.histc(torch.from_numpy(value), NUM_BINS, lows[name], highs[name])
                counts[name] += bins.double().numpy()
    return {
        name: _best_range(counts[name], Range(lows[name], highs[name]), num_levels, signed) for name in lows
    }


def observe(
    proto: onnx.ModelProto, images_NHW3: NDArray[np.uint8], tensors: Sequence[str]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the values of `tensors` for a few images at a time; Q and DQ run in floating point."""
    extended = onnx.ModelProto()
    extended.CopyFrom(proto)
    del extended.graph.output[:]
    extended.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    session = open_session(extended.SerializeToString())
    first = session.run(list(tensors), {"images": images_NHW3[:1]})
    chunk = max(1, min(64, _CHUNK_BYTES // max(1, sum(value.nbytes for value in first))))
    for start in range(0, len(images_NHW3), chunk):
        values = session.run(list(tensors), {"images": images_NHW3[start : start + chunk]})
        yield {
            name: value.astype(np.float32, copy=False) for name, value in zip(tensors, values, strict=True)
        }


def _best_range(counts: NDArray[np.float64], whole: Range, num_levels: int, signed: bool) -> Range:
    """Return the range with the least squared error; candidates are the whole range shrunk on either side."""
    centres = whole.low + (np.arange(NUM_BINS) + 0.5) * (whole.high - whole.low) / NUM_BINS

    def error(candidate: Range) -> float:
        step = (candidate.high - candidate.low) / (num_levels - 1)
        if not step > 0:
            return math.inf
        rounded = np.clip(np.round(centres / step) * step, candidate.low, candidate.high)
        # Values are uniform within a bin, and a bin may be wider than the step.
        width = (whole.high - whole.low) / NUM_BINS
        return float((counts * ((centres - rounded) ** 2 + (width**2) / 12)).sum())

    if signed:
        limit = max(-whole.low, whole.high)
        return min((Range(-share * limit, share * limit) for share in _SHARES), key=error)
    best = min((Range(share * whole.low, share * whole.high) for share in _SHARES), key=error)
    best = min((Range(share * whole.low, best.high) for share in _SHARES), key=error)
    return min((Range(best.low, share * whole.high) for share in _SHARES), key=error)


def channel_means(
    proto: onnx.ModelProto, images_NHW3: NDArray[np.uint8], tensors: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean over images and positions of each channel of `tensors`, which are [N, C, ...]."""
    sums: dict[str, NDArray[np.float64]] = {}
    for values in observe(proto, images_NHW3, tensors):
        for name, value in values.items():
            total = value.reshape(*value.shape[:2], -1).mean(2, dtype=np.float64).sum(0)
            sums[name] = sums.get(name, 0) + total
    return {name: total / len(images_NHW3) for name, total in sums.items()}

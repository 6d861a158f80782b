"""Rounding to significant digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGITS = 5  # of numbers in documents and references: sums in float32 promise no more
LOGIT_DIGITS = 8  # of logits and probabilities, so that they compare with those of /classify


def significant(value: float | np.floating[Any], digits: int = DIGITS) -> float:
    """Return the nearest number with `digits` significant digits."""
    return float(f"{value:.{digits}g}")


def significant_above(value: float, digits: int) -> float:
    """Return the smallest number with `digits` significant digits that is not below `value` >= 0."""
    if value == 0:
        return 0.0
    rounded = significant(value, digits)
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return rounded if rounded >= value else significant(value + step / 2, digits)


def json_number(value: float | np.floating[Any], digits: int = DIGITS) -> float | None:
    """Return a number for a document: rounded, whole numbers as integers (shorter in JSON); None for NaN."""
    return _json_number(float(value), f".{digits}g")


def json_numbers(values: NDArray[Any], digits: int = DIGITS) -> list[float | None]:
    """Return `json_number` of each value of a one-dimensional array."""
    spec = f".{digits}g"
    return [_json_number(value, spec) for value in values.tolist()]


def _json_number(value: float, spec: str) -> float | None:
    if not math.isfinite(value):
        return None
    rounded = float(format(value, spec))  # Python formats its own floats 4 times as fast as NumPy's
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded

"""Running estimates: each new measurement moves an estimate part of the way."""

from __future__ import annotations

SMOOTHING = 0.2  # weight of the newest measurement


def follow(estimate: float, measured: float) -> float:
    """Return the estimate after one more measurement."""
    return estimate + SMOOTHING * (measured - estimate)


def follow_ratio(estimate: float, measured: float) -> float:
    """Return `follow` of the logarithms: a value fifty times too large only doubles the estimate."""
    return float(estimate * (max(measured, 1e-6) / estimate) ** SMOOTHING)

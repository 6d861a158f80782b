"""Norms of F, s, u and y: how large a block's branch is, and where it points. Formulas of scalars and maps.

A formula takes `Readings`. It returns the members of a group of scalars, [L] each, or a map, [P]; as if the
variant had them all, NaN where undefined. F is the residual branch (times its gate), s the shortcut,
u = s + F, y the block's output; <a, b> is the mean of a*b over the elements in question, |a|^2 = <a, a>.

Shapes: L blocks, P positions of all blocks one after the other.
"""

from __future__ import annotations

import numpy as np

from introspection.readings import FloatArray, Readings

EPSILON = 1e-6  # of RMS(u): a norm below this is noise beside the sum
COSINE_ERROR_LIMIT = 0.1  # a cosine known worse than this is null
ROUNDING = 2.0**-24  # half a unit in the last place of float32, relative
RATIO_LIMIT = 4.0  # of the map, in log2: sixteenfold either way
_TINY = float(np.finfo(np.float64).tiny)

Members = dict[str, FloatArray]


def rms(found: Readings) -> Members:
    """Return |F|, |s|, |y|."""
    squares = found.squares
    return {
        "residual": np.sqrt(squares.F),
        "shortcut": np.sqrt(squares.s),
        "output": np.sqrt(squares.y),
    }


def std_residual(found: Readings) -> Members:
    """Return sqrt(<F, F> - mean(F)^2): He's layer response (arXiv 1512.03385, figure 7)."""
    return {"": np.sqrt(np.maximum(found.squares.F - found.column("residual_mean") ** 2, 0))}


def ratio(found: Readings) -> Members:
    """Return |F| / |s| (Jastrzebski, arXiv 1710.04773): 0 for a dead branch, null for a dead shortcut."""
    return {"": np.sqrt(_divide(found.squares.F, found.squares.s))}


def cosine(found: Readings) -> Members:
    """Return <F, s> / (|F| |s|).

    Cancellation: <F, s> is a difference, known to about 1e-7 to 4e-7 of |s|^2, and so a cosine to that over
    `ratio`: 4e-4 at a ratio of 1e-3. It is null where that passes 0.1, or where a norm is under epsilon.
    """
    squares = found.squares
    # An average over many positions is known better than one position, but not better than one rounding.
    rounding = ROUNDING * (1 + np.sqrt(found.channels / found.areas))
    return {
        "": _cosine(
            (squares.product, rounding * squares.product_scale),
            (squares.F, rounding),
            (squares.s, rounding),
            EPSILON**2 * squares.u,
        )
    }


def cosine_centered(found: Readings) -> Members:
    """Return the cosine after each channel's mean over positions is taken off F and s.

    A v1 identity shortcut is never negative, which biases the plain cosine. Null as the plain one.
    """
    squares, channels, areas = found.squares, found.channels, found.areas
    channel_F = found.column("residual_channel_mean_square")
    channel_s = found.column("shortcut_channel_mean_square")
    channel_product = found.column("channel_mean_product")
    rounding = ROUNDING * (1 + np.sqrt(channels / areas))
    channel_rounding = ROUNDING * np.sqrt(np.maximum(channels, areas))
    centered_F, centered_s = squares.F - channel_F, squares.s - channel_s
    return {
        "": _cosine(
            (
                squares.product - channel_product,
                rounding * squares.product_scale + channel_rounding * np.abs(channel_product),
            ),
            (centered_F, _divide(rounding * squares.F + channel_rounding * channel_F, centered_F)),
            (centered_s, _divide(rounding * squares.s + channel_rounding * channel_s, centered_s)),
            EPSILON**2 * squares.u,
        )
    }


def energy(found: Readings) -> Members:
    """Return <F, F>, <s, s> and 2<F, s> over <u, u>: they sum to 1, and the first can pass 1."""
    of_F, of_s = (_divide(part, found.squares.u) for part in (found.squares.F, found.squares.s))
    return {"residual": of_F, "shortcut": of_s, "cross": 1 - of_F - of_s}


def share(found: Readings) -> Members:
    """Return <F, u> and <s, u> over <u, u>: they sum to 1."""
    of_F = _divide(found.squares.F + found.squares.product, found.squares.u)
    return {"residual": of_F, "shortcut": 1 - of_F}


def relu(found: Readings) -> Members:
    """Return mean[u <= 0], |min(u, 0)|^2 / |u|^2, mean[s > 0 and u <= 0], mean[s <= 0 and u > 0]."""
    squares, active, both_active = found.squares, found.column("active"), found.column("both_active")
    return {
        "clip_fraction": _clip(1 - active, 0, 1),
        "clip_energy": _clip(_divide(squares.u - squares.y, squares.u), 0, 1),
        "erased": _clip(found.column("shortcut_active") - both_active, 0, 1),
        "written": _clip(active - both_active, 0, 1),
    }


# Maps. M is the RMS over channels at a position; epsilon = 1e-6 * RMS(u) of the whole block.


def residual_map(found: Readings) -> FloatArray:
    """Return M_F."""
    return found.map("residual")


def shortcut_map(found: Readings) -> FloatArray:
    """Return M_s."""
    return found.map("shortcut")


def output_map(found: Readings) -> FloatArray:
    """Return M_y."""
    return found.map("output")


def share_map(found: Readings) -> FloatArray:
    """Return M_F^2 / (M_F^2 + M_s^2), 0.5 where both are 0."""
    total = found.positions.F + found.positions.s
    return np.divide(found.positions.F, total, out=np.full_like(total, 0.5), where=total > 0)


def ratio_map(found: Readings) -> FloatArray:
    """Return log2((M_F + epsilon) / (M_s + epsilon)), clipped to -4 .. 4."""
    epsilon = _epsilon(found)
    quotient = (residual_map(found) + epsilon) / (shortcut_map(found) + epsilon)
    return _clip(np.log2(quotient), -RATIO_LIMIT, RATIO_LIMIT)


def cosine_map(found: Readings) -> FloatArray:
    """Return <F, s> / (M_F M_s), clamped to -1 .. 1.

    Cancellation: a sum of C squares in float32 is off by about 2^-24 sqrt(C) of its value (on ONNX Runtime's
    CPU provider the largest error of <F, s> over 3,136 positions was 0.3 to 0.9 of that times |s|^2), so
    where F is small beside s the cosine is known to about 2^-24 sqrt(C) M_s / M_F: 1e-3 for 256 channels
    at a ratio of 1e-3. It is null where that estimate passes 0.1, or where a norm is under epsilon.
    """
    squares, rounding = found.positions, found.by_position(ROUNDING * np.sqrt(found.channels))
    return _cosine(
        (squares.product, rounding * squares.product_scale),
        (squares.F, rounding),
        (squares.s, rounding),
        _epsilon(found) ** 2,
    )


def _epsilon(found: Readings) -> FloatArray:
    """Return the epsilon of every position's block, [P]."""
    return found.by_position(np.maximum(EPSILON * np.sqrt(found.squares.u), _TINY))


# How far the numbers can be trusted.


def energy_sum_error(found: Readings) -> float:
    """Return the largest |energy.residual + energy.shortcut + cross - 1| over the blocks.

    The reported cross term is what is left of 1. Here the cross term comes from other numbers: 2<F, s>/<u, u>
    from the means that the graph reduced itself, while the two energies come from the maps.
    """
    squares, reduced = found.squares, found.reduced
    cross = _divide(2 * reduced.product, reduced.u)
    total = _divide(squares.F, squares.u) + _divide(squares.s, squares.u) + cross
    return _largest(np.abs(total - 1))


def map_scalar_error(found: Readings) -> float:
    """Return the largest relative difference between a mean of squared maps and the graph's mean square."""
    ours_4L, theirs_4L = (
        np.stack((squares.F, squares.s, squares.u, squares.y)) for squares in (found.squares, found.reduced)
    )
    return _largest(_divide(np.abs(ours_4L - theirs_4L), ours_4L))


def _largest(values: FloatArray) -> float:
    """Return the largest value, which is not below 0; NaN does not count."""
    return float(np.fmax.reduce(values, axis=None, initial=0.0))


def _clip(values: FloatArray, low: float, high: float) -> FloatArray:
    """Return `np.clip`; on arrays as short as these it takes three times as long as its two halves."""
    return np.minimum(np.maximum(values, low), high)


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return the quotient, NaN where the denominator is not positive."""
    quotient = np.empty_like(denominator)
    quotient.fill(np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)


def _cosine(
    product: tuple[FloatArray, FloatArray],
    square_F: tuple[FloatArray, FloatArray],
    square_s: tuple[FloatArray, FloatArray],
    floor: FloatArray,
) -> FloatArray:
    """Return product / sqrt(square_F * square_s).

    The product is given with its absolute error, the squares with their relative errors.
    NaN where a square is not above `floor` or the propagated error passes `COSINE_ERROR_LIMIT`.
    """
    norm = np.sqrt(np.maximum(square_F[0], 0) * np.maximum(square_s[0], 0))
    divisor = np.where(norm > 0, norm, 1)  # where it is 0, a square is not above `floor`
    quotient = product[0] / divisor
    error = product[1] / divisor + np.abs(quotient) * (square_F[1] + square_s[1]) / 2
    known = (square_F[0] > floor) & (square_s[0] > floor) & (error <= COSINE_ERROR_LIMIT)
    return np.where(known, _clip(quotient, -1, 1), np.nan)

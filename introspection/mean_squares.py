"""Norms of F, s, u and y -> how large a block's branch is, and where it points: scalars and maps.

All in float64. F is the residual branch (times its gate), s the shortcut, u = s + F, y the block's output;
<a, b> is the mean of a*b over the elements in question, |a|^2 = <a, a>. It knows no networks and no variants.

Shapes: L blocks, P positions of all blocks one after the other, S = len(SCALARS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import SCALARS, ScalarName
from introspection.quantities import RATIO_LIMIT

if TYPE_CHECKING:
    from introspection.quantities import MapQuantity


FloatArray = NDArray[np.float64]
EPSILON = 1e-6  # of RMS(u): a norm below this is noise beside the sum
COSINE_ERROR_LIMIT = 0.1  # a cosine known worse than this is null
ROUNDING = 2.0**-24  # half a unit in the last place of float32, relative
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class MeanSquares:
    """<F, F>, <s, s>, <u, u> and <y, y>, by block [L] or by position [P]."""

    F: FloatArray
    s: FloatArray
    u: FloatArray
    y: FloatArray

    @property
    def product(self) -> FloatArray:
        """<F, s>, from |u|^2 = |s|^2 + 2<F, s> + |F|^2."""
        return (self.u - self.F - self.s) / 2

    @property
    def product_scale(self) -> FloatArray:
        """What `product` is a difference of: its absolute error is its inputs' relative error times this."""
        return (self.u + self.F + self.s) / 2


def scalar_quantities(
    squares: MeanSquares,
    scalars_LS: FloatArray,
    channels: FloatArray,
    areas: NDArray[np.int64],
) -> dict[str, FloatArray]:
    """The scalars of every block, [L] each, as if the variant had them all.

    - `rms.*` = |F|, |s|, |y|
    - `std_residual` = sqrt(<F, F> - mean(F)^2): He's layer response (arXiv 1512.03385, figure 7)
    - `ratio` = |F| / |s| (Jastrzebski, arXiv 1710.04773); 0 for a dead branch, null for a dead shortcut
    - `energy.*` = <F, F>, <s, s> and 2<F, s>, over <u, u>: they sum to 1, and the first can pass 1
    - `share.*` = <F, u> and <s, u>, over <u, u>: they sum to 1
    - `cosine` = <F, s> / (|F| |s|); `cosine_centered` the same after each channel's mean over positions
      is taken off F and s, because a v1 identity shortcut is never negative and biases the plain one
    - `relu.*`: mean[u <= 0], |min(u, 0)|^2 / |u|^2, mean[s > 0 and u <= 0], mean[s <= 0 and u > 0]

    `squares` come from the maps, averaged here in float64, and not from the graph's own means in
    `scalars_LS`, which only check them: summing 800,000 squares one by one in float32, as ONNX Runtime's
    ReduceSumSquare does on a CPU, was measured 7e-4 off, an average of the maps 1e-8 to 4e-7.

    Cancellation: <F, s> is a difference, known to about 1e-7 to 4e-7 of |s|^2, and so a cosine to that over
    `ratio`: 4e-4 at a ratio of 1e-3. It is null where that passes 0.1, or where a norm is under epsilon.
    """
    mean_F = column(scalars_LS, "residual_mean")
    channel_F = column(scalars_LS, "residual_channel_mean_square")
    channel_s = column(scalars_LS, "shortcut_channel_mean_square")
    channel_product = column(scalars_LS, "channel_mean_product")
    # An average over many positions is known better than one position, but not better than one rounding.
    rounding = ROUNDING * (1 + np.sqrt(channels / areas))
    channel_rounding = ROUNDING * np.sqrt(np.maximum(channels, areas))
    energy_F, energy_s = _divide(squares.F, squares.u), _divide(squares.s, squares.u)
    share_F = _divide(squares.F + squares.product, squares.u)
    return {
        "rms.residual": np.sqrt(squares.F),
        "rms.shortcut": np.sqrt(squares.s),
        "rms.output": np.sqrt(squares.y),
        "std_residual": np.sqrt(np.maximum(squares.F - mean_F**2, 0)),
        "ratio": np.sqrt(_divide(squares.F, squares.s)),
        "cosine": _cosine(
            (squares.product, rounding * squares.product_scale),
            (squares.F, rounding * squares.F),
            (squares.s, rounding * squares.s),
            EPSILON**2 * squares.u,
        ),
        "cosine_centered": _cosine(
            (
                squares.product - channel_product,
                rounding * squares.product_scale + channel_rounding * np.abs(channel_product),
            ),
            (squares.F - channel_F, rounding * squares.F + channel_rounding * channel_F),
            (squares.s - channel_s, rounding * squares.s + channel_rounding * channel_s),
            EPSILON**2 * squares.u,
        ),
        "energy.residual": energy_F,
        "energy.shortcut": energy_s,
        "energy.cross": 1 - energy_F - energy_s,
        "share.residual": share_F,
        "share.shortcut": 1 - share_F,
        **_relu_quantities(squares, scalars_LS),
    }


def _relu_quantities(squares: MeanSquares, scalars_LS: FloatArray) -> dict[str, FloatArray]:
    active = column(scalars_LS, "active")
    both_active = column(scalars_LS, "both_active")
    return {
        "relu.clip_fraction": np.clip(1 - active, 0, 1),
        "relu.clip_energy": np.clip(_divide(squares.u - squares.y, squares.u), 0, 1),
        "relu.erased": np.clip(column(scalars_LS, "shortcut_active") - both_active, 0, 1),
        "relu.written": np.clip(active - both_active, 0, 1),
    }


def map_quantities(
    squares: MeanSquares, block_u_P: FloatArray, channels_P: FloatArray
) -> dict[MapQuantity, FloatArray]:
    """Six of the maps, [P] each, from the mean squares over channels at every position.

    With M the RMS over channels and epsilon = 1e-6 * RMS(u) of the whole block (`block_u_P` = <u, u>):

    - `residual`, `shortcut`, `output` = M_F, M_s, M_y
    - `share` = M_F^2 / (M_F^2 + M_s^2), 0.5 where both are 0
    - `ratio` = log2((M_F + epsilon) / (M_s + epsilon)), clipped to -4 .. 4
    - `cosine` = <F, s> / (M_F M_s), clamped to -1 .. 1

    Cancellation: a sum of C squares in float32 is off by about 2^-24 sqrt(C) of its value (on ONNX Runtime's
    CPU provider the largest error of <F, s> over 3,136 positions was 0.3 to 0.9 of that times |s|^2), so
    where F is small beside s the cosine is known to about 2^-24 sqrt(C) M_s / M_F: 1e-3 for 256 channels
    at a ratio of 1e-3. It is null where that estimate passes 0.1, or where a norm is under epsilon.
    """
    epsilon = np.maximum(EPSILON * np.sqrt(block_u_P), _TINY)
    rounding = ROUNDING * np.sqrt(channels_P)
    total = squares.F + squares.s
    residual, shortcut = np.sqrt(squares.F), np.sqrt(squares.s)
    return {
        "residual": residual,
        "shortcut": shortcut,
        "output": np.sqrt(squares.y),
        "share": np.divide(squares.F, total, out=np.full_like(total, 0.5), where=total > 0),
        "ratio": np.clip(np.log2((residual + epsilon) / (shortcut + epsilon)), -RATIO_LIMIT, RATIO_LIMIT),
        "cosine": _cosine(
            (squares.product, rounding * squares.product_scale),
            (squares.F, rounding * squares.F),
            (squares.s, rounding * squares.s),
            epsilon**2,
        ),
    }


def energy_sum_error(blocks: MeanSquares, reduced: MeanSquares) -> float:
    """Largest |energy.residual + energy.shortcut + cross - 1| over the blocks.

    The reported cross term is what is left of 1, so here it is taken by another road: 2<F, s>/<u, u> from
    the means that the graph reduced itself, while the two energies come from the maps.
    """
    cross = _divide(2 * reduced.product, reduced.u)
    total = _divide(blocks.F, blocks.u) + _divide(blocks.s, blocks.u) + cross
    return float(np.nanmax(np.abs(total - 1), initial=0.0))


def map_scalar_error(blocks: MeanSquares, reduced: MeanSquares) -> float:
    """Largest relative difference between a block's mean of squared maps and the graph's own mean square."""
    pairs = ((getattr(blocks, name), getattr(reduced, name)) for name in ("F", "s", "u", "y"))
    largest = (np.nanmax(_divide(np.abs(ours - theirs), ours), initial=0.0) for ours, theirs in pairs)
    return float(max(largest))


def column(scalars_LS: FloatArray, name: ScalarName) -> FloatArray:
    return scalars_LS[:, SCALARS.index(name)]


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """The quotient, NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)


def _cosine(
    product: tuple[FloatArray, FloatArray],
    square_F: tuple[FloatArray, FloatArray],
    square_s: tuple[FloatArray, FloatArray],
    floor: FloatArray,
) -> FloatArray:
    """product / sqrt(square_F * square_s), each given with its absolute error.

    NaN where a square is not above `floor` or the propagated error passes `COSINE_ERROR_LIMIT`.
    """
    norm = np.sqrt(np.maximum(square_F[0], 0) * np.maximum(square_s[0], 0))
    cosine = _divide(product[0], norm)
    relative = _divide(square_F[1], square_F[0]) + _divide(square_s[1], square_s[0])
    error = _divide(product[1], norm) + np.abs(cosine) * relative / 2
    known = (square_F[0] > floor) & (square_s[0] > floor) & (error <= COSINE_ERROR_LIMIT)
    return np.where(known, np.clip(cosine, -1, 1), np.nan)

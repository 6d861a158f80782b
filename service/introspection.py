"""What the introspect graph measured -> what every residual block did, in numbers.

Takes the graph's three outputs for one image (arrays; no engine and no HTTP needed) and derives every
quantity of docs/introspection.md in float64. `introspection_answer.py` makes JSON and NPZ of them,
`rendering.py` a picture. It knows nothing of images, requests or files.

Shapes: L blocks, P positions of all blocks one after the other (the sum of H*W), K classes,
S = len(SCALARS), M = len(MAPS). F is the residual branch (times its gate), s the shortcut, u = s + F,
y the block's output; <a, b> is the mean of a*b over the elements in question, |a|^2 = <a, a>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from models.manifest import MAPS, SCALARS, Block, Manifest, MapName, ScalarName, Variant, map_slices

FloatArray = NDArray[np.float64]

MapQuantity = Literal["residual", "shortcut", "output", "share", "ratio", "cosine"]
MAP_QUANTITIES: tuple[MapQuantity, ...] = get_args(MapQuantity)

# A group of scalars in the answer and its members; a group without members is a number by itself.
SCALAR_GROUPS: dict[str, tuple[str, ...]] = {
    "rms": ("residual", "shortcut", "output"),
    "std_residual": (),
    "ratio": (),
    "cosine": (),
    "cosine_centered": (),
    "energy": ("residual", "shortcut", "cross"),
    "share": ("residual", "shortcut"),
    "relu": ("clip_fraction", "clip_energy", "erased", "written"),
}

# What does not exist for a variant, and why: maps, scalar groups and single members of these.
NO_SHORTCUT = "a plain network has no shortcut"
NO_RELU = "no ReLU follows the addition"
ABSENT: dict[Variant, dict[str, str]] = {
    "v1": {},
    "v2": {"relu": NO_RELU},
    "highway": {"relu": NO_RELU},
    "plain": dict.fromkeys(
        (
            "rms.shortcut",
            "ratio",
            "cosine",
            "cosine_centered",
            "energy",
            "share",
            "relu.erased",
            "relu.written",
            "shortcut",
        ),
        NO_SHORTCUT,
    ),
}

RATIO_LIMIT = 4.0  # in log2: sixteenfold either way
EPSILON = 1e-6  # of RMS(u): a norm below this is noise beside the sum
COSINE_ERROR_LIMIT = 0.1  # a cosine known worse than this is null
ROUNDING = 2.0**-24  # half a unit in the last place of float32, relative
_TINY = float(np.finfo(np.float64).tiny)

_Name = TypeVar("_Name", bound=str)


class NotFiniteError(Exception):
    """The graph's outputs hold NaN or infinity: the activations left float32's range."""


@dataclass(frozen=True)
class Quantities:
    """Every quantity of one image; NaN stands for null.

    Attributes:
        logits_K: the graph's logits.
        scalars: [L] each, by `group` or `group.member` of SCALAR_GROUPS.
        maps: [P] each, raw units; one block's part is `slices[l]`.
        energy_sum_err, map_scalar_err: see `energy_sum_error` and `map_scalar_error`.
    """

    logits_K: FloatArray
    scalars: dict[str, FloatArray]
    maps: dict[MapQuantity, FloatArray]
    slices: list[slice]
    energy_sum_err: float
    map_scalar_err: float


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


def why_absent(quantity: str, variant: Variant) -> str | None:
    """Why a map, a scalar group or a member (`rms.shortcut`) does not exist for a variant; None: it does."""
    reasons = ABSENT[variant]
    return reasons.get(quantity) or reasons.get(quantity.partition(".")[0])


def measure(
    manifest: Manifest,
    logits_K: NDArray[np.float32],
    scalars_LS: NDArray[np.float32],
    maps_MP: NDArray[np.float32],
) -> Quantities:
    """Every quantity of one image, from its rows of the outputs `logits`, `scalars` and `maps`.

    What does not exist for the network's variant (`ABSENT`) is NaN throughout.

    Raises:
        NotFiniteError: an output holds NaN or infinity.
    """
    logits, scalars, maps = (np.asarray(array, np.float64) for array in (logits_K, scalars_LS, maps_MP))
    if not all(np.isfinite(array).all() for array in (logits, scalars, maps)):
        raise NotFiniteError("the introspect graph returned values that are not finite")
    channels, areas = _channels_and_areas(manifest.blocks)
    positions = MeanSquares(*(maps[MAPS.index(name)] ** 2 for name in _MAPS_OF_MEAN_SQUARES))
    blocks = _means_by_block(positions, areas)
    reduced = MeanSquares(*(_column(scalars, name) for name in _SCALARS_OF_MEAN_SQUARES))
    by_block = scalar_quantities(blocks, scalars, channels, areas)
    by_position = map_quantities(positions, np.repeat(blocks.u, areas), np.repeat(channels, areas))
    return Quantities(
        logits_K=logits,
        scalars=_null_where_absent(by_block, manifest.variant),
        maps=_null_where_absent(by_position, manifest.variant),
        slices=map_slices(manifest.blocks),
        energy_sum_err=energy_sum_error(blocks, reduced),
        map_scalar_err=map_scalar_error(blocks, reduced),
    )


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
    mean_F = _column(scalars_LS, "residual_mean")
    channel_F = _column(scalars_LS, "residual_channel_mean_square")
    channel_s = _column(scalars_LS, "shortcut_channel_mean_square")
    channel_product = _column(scalars_LS, "channel_mean_product")
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
    active = _column(scalars_LS, "active")
    both_active = _column(scalars_LS, "both_active")
    return {
        "relu.clip_fraction": np.clip(1 - active, 0, 1),
        "relu.clip_energy": np.clip(_divide(squares.u - squares.y, squares.u), 0, 1),
        "relu.erased": np.clip(_column(scalars_LS, "shortcut_active") - both_active, 0, 1),
        "relu.written": np.clip(active - both_active, 0, 1),
    }


def map_quantities(
    squares: MeanSquares, block_u_P: FloatArray, channels_P: FloatArray
) -> dict[MapQuantity, FloatArray]:
    """The six maps, [P] each, from the mean squares over channels at every position.

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


_MAPS_OF_MEAN_SQUARES: tuple[MapName, ...] = ("residual", "shortcut", "sum", "output")
_SCALARS_OF_MEAN_SQUARES: tuple[ScalarName, ...] = (
    "residual_mean_square",
    "shortcut_mean_square",
    "sum_mean_square",
    "output_mean_square",
)


def _null_where_absent(values: dict[_Name, FloatArray], variant: Variant) -> dict[_Name, FloatArray]:
    return {
        name: np.full_like(array, np.nan) if why_absent(name, variant) else array
        for name, array in values.items()
    }


def _column(scalars_LS: FloatArray, name: ScalarName) -> FloatArray:
    return scalars_LS[:, SCALARS.index(name)]


def _channels_and_areas(blocks: tuple[Block, ...]) -> tuple[FloatArray, NDArray[np.int64]]:
    shapes = np.array([block.shape for block in blocks], np.int64)
    return shapes[:, 0].astype(np.float64), shapes[:, 1] * shapes[:, 2]


def _means_by_block(positions: MeanSquares, areas: NDArray[np.int64]) -> MeanSquares:
    starts = np.concatenate(([0], np.cumsum(areas)[:-1]))
    squares = (positions.F, positions.s, positions.u, positions.y)
    return MeanSquares(*(np.add.reduceat(values, starts) / areas for values in squares))


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

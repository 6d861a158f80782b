"""What a graph measured -> what every residual block did, in numbers.

Takes the graph's outputs for one image (arrays; no engine and no HTTP needed) and derives every quantity of
docs/introspection.md in float64: mean_squares.py what a block did to its input, attribution.py what that
means for the logits. introspection_answer.py makes JSON and NPZ of them, rendering.py a picture. It knows
nothing of images, requests or files.

Shapes: L blocks, P positions of all blocks one after the other (the sum of H*W), K classes,
S = len(SCALARS), M blocks that have a lens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import MAPS, Block, Manifest, MapName, ScalarName, Variant, map_slices
from introspection.attribution import (
    Decomposition,
    LesionLogits,
    decompose,
    lens_classes,
    lens_scalars,
    lesion_classes,
    lesion_scalars,
)
from introspection.mean_squares import (
    MeanSquares,
    column,
    energy_sum_error,
    map_quantities,
    map_scalar_error,
    scalar_quantities,
)
from introspection.quantities import ABSENT, FloatArray, MapQuantity

_Name = TypeVar("_Name", bound=str)


class NotFiniteError(ResiduumError):
    """The graph's outputs hold NaN or infinity: the activations left float32's range."""


@dataclass(frozen=True)
class Quantities:
    """Every quantity of one image; NaN stands for null.

    Attributes:
        logits_K: the graph's logits.
        target: the class that contributions and lens are about.
        scalars: [L] each, by `group` or `group.member` of SCALAR_GROUPS; without what was not measured.
        maps: [P] each, raw units; one block's part is `slices[l]`; without what was not measured.
        energy_sum_err, map_scalar_err: see `energy_sum_error` and `map_scalar_error`.
        classes: [L] each, by group: the most probable class at a block (`lens`), or without it (`lesion`); -1
            where there is none. Without what was not measured.
        lens_MK, decomposition, lesions: None where they were not measured.
    """

    logits_K: FloatArray
    target: int
    scalars: dict[str, FloatArray]
    maps: dict[MapQuantity, FloatArray]
    slices: list[slice]
    energy_sum_err: float
    map_scalar_err: float
    classes: dict[str, NDArray[np.int64]]
    lens_MK: FloatArray | None = None
    decomposition: Decomposition | None = None
    lesions: LesionLogits | None = None

    @property
    def top1(self) -> int:
        """The most probable class."""
        return int(self.logits_K.argmax())


def measure(
    manifest: Manifest,
    outputs: Mapping[str, NDArray[Any]],
    *,
    target: int | None = None,
    lesions: LesionLogits | None = None,
) -> Quantities:
    """Every quantity of one image that can be had from its rows of a graph's outputs.

    What does not exist for the network's variant (`ABSENT`) is NaN throughout, or absent.

    Args:
        outputs: of the introspect or the attribute graph.
        target: the class that the graph was asked about; None: the most probable one.

    Raises:
        NotFiniteError: an output holds NaN or infinity.
    """
    exact = {name: np.asarray(array, np.float64) for name, array in outputs.items()}
    if not all(np.isfinite(array).all() for array in exact.values()):
        raise NotFiniteError("the graph returned values that are not finite")
    logits_K, scalars_LS, maps_MP = exact["logits"], exact["scalars"], exact["maps"]
    top1 = int(logits_K.argmax())
    if target is None:
        target = top1
    channels, areas = _channels_and_areas(manifest.blocks)
    slices = map_slices(manifest.blocks)
    positions = MeanSquares(*(maps_MP[MAPS.index(name)] ** 2 for name in _MAPS_OF_MEAN_SQUARES))
    blocks = _means_by_block(positions, areas)
    reduced = MeanSquares(*(column(scalars_LS, name) for name in _SCALARS_OF_MEAN_SQUARES))
    by_block = scalar_quantities(blocks, scalars_LS, channels, areas)
    by_position = map_quantities(positions, np.repeat(blocks.u, areas), np.repeat(channels, areas))
    classes = {}
    decomposition = None
    if "contributions" in exact:
        by_position["contribution"] = exact["contributions"]
        by_block["contribution"], decomposition = decompose(
            exact["contributions"], exact["constants"], slices, float(logits_K[target])
        )
    if "lens" in exact:
        by_block |= lens_scalars(exact["lens"], manifest.blocks, target)
        classes["lens"] = lens_classes(exact["lens"], manifest.blocks)
    if lesions is not None:
        by_block |= lesion_scalars(lesions, len(manifest.blocks), top1, target)
        classes["lesion"] = lesion_classes(lesions, len(manifest.blocks))
    return Quantities(
        logits_K=logits_K,
        target=target,
        scalars=_null_where_absent(by_block, manifest.variant),
        maps=_null_where_absent(by_position, manifest.variant),
        slices=slices,
        energy_sum_err=energy_sum_error(blocks, reduced),
        map_scalar_err=map_scalar_error(blocks, reduced),
        classes=classes,
        lens_MK=exact.get("lens"),
        decomposition=decomposition,
        lesions=lesions,
    )


_MAPS_OF_MEAN_SQUARES: tuple[MapName, ...] = ("residual", "shortcut", "sum", "output")
_SCALARS_OF_MEAN_SQUARES: tuple[ScalarName, ...] = (
    "residual_mean_square",
    "shortcut_mean_square",
    "sum_mean_square",
    "output_mean_square",
)


def _null_where_absent(values: dict[_Name, FloatArray], variant: Variant) -> dict[_Name, FloatArray]:
    absent = ABSENT[variant]
    return {
        name: np.full_like(array, np.nan) if name in absent or name.partition(".")[0] in absent else array
        for name, array in values.items()
    }


def _channels_and_areas(blocks: tuple[Block, ...]) -> tuple[FloatArray, NDArray[np.int64]]:
    shapes = np.array([block.shape for block in blocks], np.int64)
    return shapes[:, 0].astype(np.float64), shapes[:, 1] * shapes[:, 2]


def _means_by_block(positions: MeanSquares, areas: NDArray[np.int64]) -> MeanSquares:
    starts = np.concatenate(([0], np.cumsum(areas)[:-1]))
    squares = (positions.F, positions.s, positions.u, positions.y)
    return MeanSquares(*(np.add.reduceat(values, starts) / areas for values in squares))

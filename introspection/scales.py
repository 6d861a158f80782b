"""What the colours and codes of a map stand for: its range in an image, a stage or the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from artifact.manifest import Manifest
from introspection.measure import Quantities
from introspection.quantities import (
    FIXED_RANGES,
    SIGNED,
    FloatArray,
    MapQuantity,
    Scale,
    why_absent,
)
from introspection.question import Options

Bounds = tuple[float, float]  # the values of the first and the last colour


class Scales(NamedTuple):
    """What the colours of a map stand for in each stage; `common` is None if every stage has its own."""

    common: Bounds | None
    by_stage: dict[int, Bounds]


def scales_of(
    several: Sequence[Quantities], manifest: Manifest, options: Options, quantity: MapQuantity
) -> Scales:
    """What the colours of a map stand for in the stages asked for, in all of these images."""
    stages = dict.fromkeys(manifest.blocks[index].stage for index in options.blocks)
    if options.scale == "stage" and quantity not in FIXED_RANGES:
        return Scales(
            None, {stage: colors_of(several, manifest, options, quantity, stage) for stage in stages}
        )
    common = colors_of(several, manifest, options, quantity, manifest.blocks[0].stage)
    return Scales(common, dict.fromkeys(stages, common))


def colors_of(
    several: Sequence[Quantities], manifest: Manifest, options: Options, quantity: MapQuantity, stage: int
) -> Bounds:
    """The values of the first and the last colour for the blocks of a stage: wide enough for every image."""
    ranges = [map_range(one, manifest, quantity, options.scale, stage) for one in several]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    # All zero: the middle of a signed map is where zero is.
    return (-1.0, 1.0) if quantity in SIGNED and high == 0 else (low, high)


SCALE_DIGITS = 6  # of a declared vmax


def map_range(
    quantities: Quantities,
    manifest: Manifest,
    quantity: MapQuantity,
    scale: Scale = "image",
    stage: int | None = None,
) -> tuple[float, float]:
    """vmin and vmax of a map: fixed by its definition, or 0 (-vmax where SIGNED) to the largest value.

    That is the largest absolute value in the image, in its blocks of `stage`, or on the validation images.
    Every block of the network counts, whichever were asked for, so that two answers compare. A largest value
    is rounded up to 6 digits.
    """
    if quantity in FIXED_RANGES:
        return FIXED_RANGES[quantity]
    if scale == "reference":
        assert manifest.reference is not None, "checked when the query was resolved"
        largest = max(manifest.reference.maps[quantity])
    else:
        parts = zip(manifest.blocks, quantities.slices, strict=True)
        values = np.abs(quantities.maps[quantity])
        largest = max(
            float(values[part].max()) for block, part in parts if scale == "image" or block.stage == stage
        )
    vmax = _round_up(largest)
    return (0.0 - vmax if quantity in SIGNED else 0.0), vmax


def ranges_of_blocks(
    quantities: Quantities, manifest: Manifest, options: Options
) -> list[dict[MapQuantity, tuple[float, float]]]:
    """vmin and vmax of every map asked for that exists, by block asked for; computed once a stage."""
    existing = [quantity for quantity in options.maps if not why_absent(quantity, manifest)]
    stages = [manifest.blocks[index].stage if options.scale == "stage" else None for index in options.blocks]
    by_stage = {
        stage: {
            quantity: map_range(quantities, manifest, quantity, options.scale, stage) for quantity in existing
        }
        for stage in set(stages)
    }
    return [by_stage[stage] for stage in stages]


def block_map(quantities: Quantities, manifest: Manifest, quantity: MapQuantity, index: int) -> FloatArray:
    """One block's map, [H, W], NaN where null."""
    _, height, width = manifest.blocks[index].shape
    return quantities.maps[quantity][quantities.slices[index]].reshape(height, width)


def _round_up(value: float) -> float:
    """The next number of SCALE_DIGITS significant digits that is not below `value`."""
    if value == 0:
        return 0.0
    rounded = float(f"{value:.{SCALE_DIGITS}g}")
    step = 10.0 ** (math.floor(math.log10(value)) - SCALE_DIGITS + 1)
    return rounded if rounded >= value else float(f"{value + step / 2:.{SCALE_DIGITS}g}")

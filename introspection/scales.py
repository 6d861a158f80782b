"""The scale of a map, which colours and codes refer to: of one image, of a stage, or of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from introspection.digits import significant_above
from introspection.quantities import MAPS, why_absent
from introspection.question import Question, Scale
from introspection.seen import Seen

Bounds = tuple[float, float]  # the values of the first and the last colour


class Scales(NamedTuple):
    """The scale of a map in each stage; `common` is None if every stage has its own."""

    common: Bounds | None
    by_stage: dict[int, Bounds]


def scales_of(several: Sequence[Seen], question: Question, quantity: str) -> Scales:
    """Return the scale of a map in the stages asked for, common to all of these images."""
    blocks = several[0].manifest.blocks
    stages = dict.fromkeys(blocks[index].stage for index in question.blocks)
    if question.scale == "stage" and MAPS[quantity].range is None:
        return Scales(None, {stage: colors_of(several, question, quantity, stage) for stage in stages})
    common = colors_of(several, question, quantity, blocks[0].stage)
    return Scales(common, dict.fromkeys(stages, common))


def colors_of(several: Sequence[Seen], question: Question, quantity: str, stage: int) -> Bounds:
    """Return the values of the first and the last colour in a stage: wide enough for every image."""
    ranges = [map_range(seen, quantity, question.scale, stage) for seen in several]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    # All zero: the middle of a symmetric scale is where zero is.
    return (-1.0, 1.0) if MAPS[quantity].symmetric and high == 0 else (low, high)


SCALE_DIGITS = 6  # of a declared vmax


def map_range(
    seen: Seen, quantity: str, scale: Scale = "image", stage: int | None = None
) -> tuple[float, float]:
    """Return vmin and vmax of a map: fixed, or 0 (-vmax if symmetric) to the largest value.

    That is the largest absolute value in the image, in its blocks of `stage`, or on the validation images.
    Every block of the network counts, whichever were asked for, so that two answers compare. A largest value
    is rounded up to 6 digits.
    """
    row, manifest = MAPS[quantity], seen.manifest
    if row.range is not None:
        return row.range
    if scale == "reference":
        assert manifest.reference is not None, "checked when the query was resolved"
        largest = max(manifest.reference.maps[quantity])
    else:
        parts = zip(manifest.blocks, seen.values.slices, strict=True)
        values = np.abs(seen.values.maps[quantity])
        largest = max(
            float(values[part].max()) for block, part in parts if scale == "image" or block.stage == stage
        )
    vmax = significant_above(largest, SCALE_DIGITS)
    return (0.0 - vmax if row.symmetric else 0.0), vmax


def ranges_of_blocks(seen: Seen, question: Question) -> list[dict[str, tuple[float, float]]]:
    """Return vmin and vmax of every map asked for that exists, for each block asked for."""
    blocks = seen.manifest.blocks
    existing = [quantity for quantity in question.maps if not why_absent(quantity, seen.manifest)]
    stages = [blocks[index].stage if question.scale == "stage" else None for index in question.blocks]
    by_stage = {
        stage: {quantity: map_range(seen, quantity, question.scale, stage) for quantity in existing}
        for stage in set(stages)
    }
    return [by_stage[stage] for stage in stages]

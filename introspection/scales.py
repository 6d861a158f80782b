"""The scale of a map, which colours and codes refer to: of one image, of a stage, or of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from introspection.digits import significant_above
from introspection.quantities import MAPS, reasons_absent
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
        values = seen.values.maps[quantity]
        if scale == "stage":
            of_stage = [index for index, block in enumerate(manifest.blocks) if block.stage == stage]
            values = values[seen.positions(of_stage)]
        largest = float(np.abs(values).max())
    vmax = significant_above(largest, SCALE_DIGITS)
    return (0.0 - vmax if row.symmetric else 0.0), vmax


def parts_of_one_scale(seen: Seen, question: Question) -> Iterator[tuple[tuple[int, ...], dict[str, Bounds]]]:
    """Yield the blocks asked for in parts that share their scales, with vmin and vmax of every map asked for
    that exists.
    """
    blocks = seen.manifest.blocks
    absent = reasons_absent(seen.manifest)
    existing = [quantity for quantity in question.maps if quantity not in absent]

    def stage_of(index: int) -> int | None:
        return blocks[index].stage if question.scale == "stage" else None

    for stage, part in groupby(question.blocks, stage_of):
        yield (
            tuple(part),
            {quantity: map_range(seen, quantity, question.scale, stage) for quantity in existing},
        )

"""The usual range of each scalar over the validation images, and which scalars of an answer lie outside."""

from __future__ import annotations

from collections.abc import Sequence

from introspection.quantities import NUMBERS, scalar_names
from introspection.question import Question
from introspection.seen import Seen


def outside_bands(seen: Seen, question: Question, blocks: Sequence[int]) -> list[dict[str, str] | None]:
    """Return, for each of the blocks, the scalars asked for whose value is lower or higher than in most
    validation images.
    """
    if seen.manifest.reference is None:
        return [None for _ in blocks]
    outside: list[dict[str, str]] = [{} for _ in blocks]
    for name in (name for group in question.groups for name in scalar_names(group)):
        bands, values_L = _bands(seen, name), seen.values.scalars.get(name)
        if bands is None or values_L is None:
            continue
        values = values_L.tolist()
        for index, of_block in zip(blocks, outside, strict=True):
            if (band := bands[index]) is None:
                continue
            low, _, high = band
            if values[index] < low:
                of_block[name] = "below"
            elif values[index] > high:
                of_block[name] = "above"
    return list(outside)


def usual_band(seen: Seen, name: str, index: int) -> tuple[float, float] | None:
    """Return the 5th and 95th percentile of a block's scalar over the validation images.

    Return None if that was not measured, or is about another class than this answer.
    """
    bands = _bands(seen, name)
    band = None if bands is None else bands[index]
    return None if band is None else (band[0], band[2])


def _bands(seen: Seen, name: str) -> Sequence[tuple[float, float, float] | None] | None:
    """Return the percentiles of a scalar for every block; None where `usual_band` is None throughout."""
    reference, values = seen.manifest.reference, seen.values
    bands = reference.scalars.get(name) if reference else None
    _, member = NUMBERS[name]
    if bands is None or (member.of_target and values.target != values.top1):
        return None
    return bands

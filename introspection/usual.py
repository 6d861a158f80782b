"""The usual range of each scalar over the validation images, and which scalars of an answer lie outside."""

from __future__ import annotations

from introspection.quantities import NUMBERS, scalar_names
from introspection.question import Question
from introspection.seen import Seen


def outside_band(seen: Seen, question: Question, index: int) -> dict[str, str] | None:
    """Return the scalars asked for whose value is lower or higher than in most validation images, in this
    block.
    """
    if seen.manifest.reference is None:
        return None
    outside = {}
    for name in (name for group in question.groups for name in scalar_names(group)):
        band, values_L = usual_band(seen, name, index), seen.values.scalars.get(name)
        if band is None or values_L is None:
            continue
        low, high = band
        if values_L[index] < low or values_L[index] > high:
            outside[name] = "below" if values_L[index] < low else "above"
    return outside


def usual_band(seen: Seen, name: str, index: int) -> tuple[float, float] | None:
    """Return the 5th and 95th percentile of a block's scalar over the validation images.

    Return None if that was not measured, or is about another class than this answer.
    """
    reference, values = seen.manifest.reference, seen.values
    bands = reference.scalars.get(name) if reference else None
    _, member = NUMBERS[name]
    if bands is None or (member.of_target and values.target != values.top1):
        return None
    band = bands[index]
    return None if band is None else (band[0], band[2])

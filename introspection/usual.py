"""What is usual: where a block's scalars lie beside those of the validation images."""

from __future__ import annotations

from artifact.manifest import Manifest
from introspection.measure import Quantities
from introspection.quantities import (
    OF_TOP_CLASS,
    scalar_names,
)
from introspection.question import Options


def outside_band(
    quantities: Quantities, manifest: Manifest, options: Options, index: int
) -> dict[str, str] | None:
    """The scalars asked for that few validation images have as low, or as high, in this block."""
    if manifest.reference is None:
        return None
    outside = {}
    for name in (name for group in options.groups for name in scalar_names(group)):
        band, values_L = usual_band(quantities, manifest, name, index), quantities.scalars.get(name)
        if band is None or values_L is None:
            continue
        low, high = band
        if values_L[index] < low or values_L[index] > high:
            outside[name] = "below" if values_L[index] < low else "above"
    return outside


def usual_band(
    quantities: Quantities, manifest: Manifest, name: str, index: int
) -> tuple[float, float] | None:
    """The 5th and 95th percentile of a block's scalar over the validation images.

    None where that was not measured, or is about another class than `quantities` are.
    """
    bands = manifest.reference.scalars.get(name) if manifest.reference else None
    if bands is None or (name in OF_TOP_CLASS and quantities.target != quantities.top1):
        return None
    band = bands[index]
    return None if band is None else (band[0], band[2])

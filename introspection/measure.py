"""What a graph measured -> the values of every quantity, for each block and each position.

Goes through the rows of quantities.py, and runs the formula of each that the graph's outputs allow. No engine
and no HTTP is needed; nothing is known of images, requests and files.

Shapes: L blocks, P positions of all blocks one after the other (the sum of H*W), K classes, R ranks,
M blocks that have a lens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Manifest
from introspection.attribution import Decomposition, decompose
from introspection.mean_squares import energy_sum_error, map_scalar_error
from introspection.quantities import GROUPS, MAPS, group_of, lacking
from introspection.quantity import Group
from introspection.readings import FloatArray, LesionLogits, Readings, read


@dataclass(frozen=True)
class Values:
    """The values of every quantity of one image; NaN stands for null.

    Without what was not measured.

    Attributes:
        logits_K: the graph's logits.
        target: the class that contributions and lens are about.
        scalars: [L] each, by the names of `NUMBERS`.
        maps: [P] each, raw units; one block's part is `slices[l]`.
        energy_sum_err, map_scalar_err: see `energy_sum_error` and `map_scalar_error`.
        classes: [L] each, by group: the most probable class at a block (`lens`), or without it (`lesion`); -1
            where there is none.
        ranked: [L, R] each, by `group.member` of the groups that are ranked.
        lens_MK, decomposition, lesions: None where they were not measured.
    """

    logits_K: FloatArray
    target: int
    scalars: dict[str, FloatArray]
    maps: dict[str, FloatArray]
    slices: list[slice]
    energy_sum_err: float
    map_scalar_err: float
    classes: dict[str, NDArray[np.int64]]
    ranked: dict[str, FloatArray]
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
) -> Values:
    """Return the values of every quantity that one image's rows of a graph's outputs give.

    What does not exist for the network's variant is NaN throughout, or absent.

    Args:
        outputs: of the introspect or the attribute graph.
        target: the class that the graph was asked about; None: the most probable one.

    Raises:
        NotFiniteError: an output holds NaN or infinity.
    """
    found = read(manifest.blocks, outputs, target, lesions)
    absent = lacking(manifest.variant)

    def known(name: str, values: FloatArray) -> FloatArray:
        if not absent:
            return values
        gone = name in absent or name.partition(".")[0] in absent
        return np.full_like(values, np.nan) if gone else values

    scalars: dict[str, FloatArray] = {}
    classes: dict[str, NDArray[np.int64]] = {}
    ranked: dict[str, FloatArray] = {}
    for group in GROUPS.values():
        if not _measured(group, found):
            continue
        values = group.formula(found)
        for member in group.numbers:
            name = group.full_name(member)
            scalars[name] = known(name, values[member.name])
        if group.ranked:
            ranked |= {group.full_name(member): values[member.name] for member in group.members}
        elif "index" in values:
            classes[group.name] = values["index"]
    return Values(
        logits_K=found.logits,
        target=found.target,
        scalars=scalars,
        maps={
            name: known(name, row.formula(found))
            for name, row in MAPS.items()
            if _measured(group_of(name), found)
        },
        slices=found.slices,
        energy_sum_err=energy_sum_error(found),
        map_scalar_err=map_scalar_error(found),
        classes=classes,
        ranked=ranked,
        lens_MK=found.outputs.get("lens"),
        decomposition=decompose(found) if "contributions" in found.outputs else None,
        lesions=lesions,
    )


def _measured(group: Group, found: Readings) -> bool:
    """Return whether the readings have what the group's formula takes."""
    if group.source == "lesions":
        return found.lesions is not None
    return not group.output or group.output in found.outputs

"""Other projects' parameter names, in both directions, by the table of `models.styles`.

A style is recognised by the names that it has rows for, then by shapes. Shapes are needed because some
projects name pre-activation networks (v2) as others name v1: `layer1.0.bn1` comes after `conv1` in v1 and
before it in v2, and `bn1` belongs to the stem in v1 and comes after the last stage in v2. As `layer2.0.conv1`
changes the number of channels, a BatchNorm fits on one side of it only; a final BatchNorm has the
classifier's number.

`models.identify` lists what names and shapes do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from torch import Tensor

from artifact.errors import ResiduumError
from models.resnet import ResNet
from models.styles import BESIDE, CONVOLUTION_HEADS, POOLED, STYLES, WRAPPER


class WeightsError(ResiduumError):
    """The file or state dict is not a network that we know; the message names what does not fit."""


# --- a template as a pattern ------------------------------------------------------------------------------

PLACEHOLDER = re.compile(r"\{([a-z]+)(\d)\}")
Place = dict[str, int]  # indices from 0 of stage, block and convolution, by the placeholder's name


@cache
def _pattern(template: str) -> tuple[re.Pattern[str], Place]:
    """Return the template as a pattern, and the number from which each placeholder counts."""
    bases: Place = {}
    pattern = ""
    for index, part in enumerate(PLACEHOLDER.split(template)):
        match index % 3:
            case 0:
                pattern += re.escape(part)
            case 1:
                name = part
                pattern += f"(?P={name})" if name in bases else rf"(?P<{name}>[0-9]{{1,4}})"
            case _:
                bases[name] = int(part)
    return re.compile(pattern), bases


def read(template: str, name: str) -> Place | None:
    """Return the place that `name` stands for; None if the template does not fit."""
    pattern, bases = _pattern(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    place = {kind: int(number) - bases[kind] for kind, number in found.groupdict().items()}
    return place if all(number >= 0 for number in place.values()) else None


def write(template: str, place: Place) -> str:
    """Return the name of a place."""
    return PLACEHOLDER.sub(lambda found: str(place[found[1]] + int(found[2])), template)


def unwrapped(name: str) -> str:
    """Return the name without the prefixes of wrappers such as DataParallel."""
    while (bare := WRAPPER.sub("", name)) != name:
        name = bare
    return name


@cache
def _our_module(style: str, module: str) -> str | None:
    """Return our name of a foreign module; `module` has no wrapper's prefix."""
    for theirs, ours in STYLES[style]:
        if (place := read(unwrapped(theirs), module)) is not None:
            return write(ours, place)
    return None


def foreign_name(name: str, style: str) -> str | None:
    """Return the style's name of our tensor; None if it has none."""
    module, _, leaf = name.rpartition(".")
    for theirs, ours in STYLES[style]:
        if (place := read(ours, module)) is not None:
            return f"{write(theirs, place)}.{leaf}"
    return None


def our_names(names: Iterable[str], style: str) -> dict[str, str | None]:
    """Map the style's names to ours; to None if it has no row."""
    ours: dict[str, str | None] = {}
    for name in names:
        module, _, leaf = unwrapped(name).rpartition(".")
        found = _our_module(style, module)
        ours[name] = None if found is None else f"{found}.{leaf}"
    return ours


# --- state dicts ------------------------------------------------------------------------------------------


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return the style that knows the most names; of several, the one with the fewest contradictions."""

    def misfits(style: str) -> tuple[int, int]:
        names = our_names(state, style)
        shapes = {ours: tuple(state[name].shape) for name, ours in names.items() if ours is not None}
        return sum(ours is None for ours in names.values()), contradictions(shapes)

    return min(STYLES, key=misfits)


def contradictions(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the BatchNorms whose number of channels differs from that of the adjacent layer."""
    count = 0
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        if module == "postact.norm":
            beside, axis = "head", 1
        elif module.endswith("preact.norm"):
            beside, axis = module.replace("preact.norm", "branch.conv1"), 1
        elif ".norm" in module and ".transition." not in module:
            beside, axis = module.replace(".norm", ".conv"), 0
        else:
            continue
        other = shapes.get(f"{beside}.weight", ())
        count += len(shape) != 1 or (len(other) > axis and other[axis] != shape[0])
    return count


def to_ours(state: Mapping[str, Tensor], style: str | None = None) -> dict[str, Tensor]:
    """Return a foreign state dict under our names; the classifier as a matrix [K, C], SE as convolutions.

    Args:
        style: a key of STYLES; None: recognised.

    Raises:
        WeightsError: names without a row, or two names of the same tensor of ours.
    """
    state = {name: tensor for name, tensor in state.items() if name not in BESIDE}
    names = our_names(state, style or recognise(state))
    if unknown := [name for name, ours in names.items() if ours is None]:
        raise WeightsError(f"unknown tensor names: {listed(unknown)}")
    ours: dict[str, Tensor] = {}
    for name, own in names.items():
        assert own is not None
        if own in ours:
            twins = [theirs for theirs, other in names.items() if other == own]
            raise WeightsError(f"{' and '.join(twins)} mean the same tensor, {own}")
        ours[own] = state[name]
        if ".se." in own and own.endswith("weight") and state[name].ndim == 2:
            ours[own] = state[name][:, :, None, None]
    weight, bias = ours.get("head.weight"), ours.get("head.bias")
    if weight is not None and weight.ndim != 2 and bias is not None:
        num_classes = bias.numel()
        if num_classes and weight.numel() % num_classes == 0:
            ours["head.weight"] = weight.reshape(num_classes, -1)
    return ours


def to_foreign(model: ResNet, style: str) -> dict[str, Tensor]:
    """Return our network's state dict under another project's names and in its shapes.

    Args:
        style: a key of STYLES, or a project's name: then its first style with names for all tensors.

    Raises:
        WeightsError: no such style, or a tensor without a name in it.
    """
    family = [known for known in STYLES if known == style or known.startswith(f"{style}-")]
    if not family:
        raise WeightsError(f"unknown style {style!r}: known are {', '.join(STYLES)}")
    has_pool = model.spec.shortcut == "pooled-projection"
    state = model.state_dict()
    nameless: list[str] = []
    for known in family:
        if known != "residuum" and has_pool != (known in POOLED):
            continue
        names = {name: foreign_name(name, known) for name in state}
        nameless = [name for name, theirs in names.items() if theirs is None]
        if not nameless:
            foreign = {theirs: state[name] for name, theirs in names.items() if theirs is not None}
            if known in CONVOLUTION_HEADS:
                head = names["head.weight"] or ""
                foreign[head] = foreign[head][:, :, None, None]
            return foreign
    raise WeightsError(
        f"{style} has no names for {model.spec.name}: {listed(nameless) or 'its pooled shortcuts'}"
    )


def listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

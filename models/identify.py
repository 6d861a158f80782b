"""Recognise the architecture of a state dict under our names.

Tensors do not tell everything. Assumed: blocks have shortcuts; after a 3x3 stem there is no pooling,
and its stride is 1; the zeros of option A lie half before and half after the old channels (a DenseNet's:
after); a bottleneck's stride is on its 3x3; projections of v2 take the pre-activation; three convolutions as
stem mean shortcuts that pool before they project; BatchNorm's epsilon is 1e-5. What only the zoo's
row tells (dropout, input size) is taken from the row. `untold` says which assumptions apply and can be
changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from models.key_map import WeightsError, listed
from models.layers import hidden_channels
from models.resnet import ResNet
from models.zoo import NUM_CONVS, ZOO, Architecture

BLOCK = re.compile(r"stage(\d+)\.(\d+)\.")
# The weights by which `_described` recognises: matrices and convolutions.
TELLING = re.compile(
    r"(?:(head)|stem\.conv[13]?|stage\d+\.0\.(?:branch\.conv[1-3]|branch\.se\.reduce|shortcut\.conv))\.weight"
)
COUNTER = "num_batches_tracked"
Shapes = dict[str, tuple[int, ...]]


def identify(ours: Mapping[str, Tensor], *, pooled: bool | None = None) -> Architecture:
    """Return the architecture of renamed tensors: a row of the zoo if one fits.

    Args:
        pooled: whether an average pool comes before a projection; None: assume it for a deep stem.

    Raises:
        WeightsError: there is no stem, stage or head among them.
    """
    shapes = shapes_of(ours)
    stem = "stem.conv3.weight" if "stem.conv1.weight" in shapes else "stem.conv.weight"
    needed = (stem, "stage1.0.branch.conv1.weight", "head.weight")
    if absent := [name for name in needed if name not in shapes]:
        raise WeightsError(f"not a ResNet: no tensor became {', '.join(absent)}")
    for name, shape in shapes.items():
        if (found := TELLING.fullmatch(name)) and (len(shape) != (2 if found[1] else 4) or 0 in shape):
            raise WeightsError(f"not a ResNet: {name} has the shape {list(shape)}")
    stages = sorted({int(found[1]) for name in shapes if (found := BLOCK.match(name))})
    if stages != list(range(1, len(stages) + 1)):
        raise WeightsError(f"not a ResNet: its stages are {listed([str(stage) for stage in stages])}")
    spec = _described(shapes, shapes[stem], pooled)
    for row in ZOO.values():
        if _told(row) == _told(spec):
            return replace(row, num_classes=spec.num_classes)
    return spec


def untold(spec: Architecture) -> tuple[str, ...]:
    """What was assumed of a network that `identify` found, in sentences that name the `--set` against it."""
    assumed = []
    if spec.stem == "3x3":
        assumed.append(
            "no pooling follows the 3x3 stem, and its stride is 1: else --set stem=3x3/pool or stem=3x3/2"
        )
    if spec.shortcut == "pad" and spec.has_shortcuts:
        assumed.append(
            "option A's zeros lie on both sides of the old channels: else --set shortcut=pad-after"
        )
        if spec.variant == "v1":  # a highway's gates show, and a plain network has no pre-activation
            assumed.append("there are shortcuts: else --set variant=plain")
    return tuple(assumed)


def _described(shapes: Shapes, stem: tuple[int, ...], pooled: bool | None) -> Architecture:
    """Every field that tensors tell, each from the first place that shows it."""
    stages = [_block_of(shapes, number) for number in range(1, _last_stage(shapes) + 1)]
    branch = _branch(shapes)
    widths = [_width(block, branch) for block in stages]
    variant = _variant(shapes, branch)
    kernel = "deep" if "stem.conv1.weight" in shapes else "imagenet" if stem[-1] == 7 else "3x3"
    whole = (widths[0], widths[0])
    inner = stages[0].get("branch.conv2.weight", whole) if branch == "bottleneck" else whole
    cardinality, group_width = max(1, inner[0] // inner[1]), inner[1]
    reduction, round_to = _squeeze(stages)
    doubling = all(width == widths[0] * 2**number for number, width in enumerate(widths))
    spec = Architecture(
        name="",
        depths=tuple(_depth(shapes, number) for number in range(1, len(stages) + 1)),
        branch=branch,
        variant=variant,
        stem=kernel,
        shortcut=_shortcut(shapes, branch, kernel == "deep" if pooled is None else pooled),
        width=widths[0],
        stem_width=None if stem[0] == widths[0] else stem[0],
        max_width=None if doubling else max(widths),
        cardinality=cardinality,
        group_width=None if cardinality == 1 and group_width == widths[0] else group_width,
        se_reduction=reduction,
        se_round_to=round_to,
        num_classes=shapes["head.weight"][0],
        input_size=32 if kernel == "3x3" else 224,
        source="foreign",
    )
    return replace(spec, name=_name(spec))


def _last_stage(shapes: Shapes) -> int:
    return max(int(found[1]) for name in shapes if (found := BLOCK.match(name)))


def _depth(shapes: Shapes, stage: int) -> int:
    return len({found[2] for name in shapes if (found := BLOCK.match(name)) and int(found[1]) == stage})


def _block_of(shapes: Shapes, stage: int) -> Shapes:
    """Return the tensors of a stage's first block by name, completed from later blocks."""
    block: Shapes = {}
    for name, shape in shapes.items():
        if (found := BLOCK.match(name)) and int(found[1]) == stage:
            block.setdefault(name[found.end() :], shape)
    return block


def _branch(shapes: Shapes) -> str:
    if "stage2.transition.conv.weight" in shapes:
        return "dense"
    for number, branch in ((3, "bottleneck"), (2, "basic")):
        if f"stage1.0.branch.conv{number}.weight" in shapes:
            return branch
    return "conv"


def _width(block: Shapes, branch: str) -> int:
    """Return the width of a stage; 1 if its tensors are missing."""
    channels = block.get(f"branch.conv{NUM_CONVS[branch]}.weight", (1,))[0]
    return max(1, channels // 4) if branch == "bottleneck" else channels


def _variant(shapes: Shapes, branch: str) -> str:
    if any(".preact." in name for name in shapes):
        return "v2"
    if any(".transform." in name for name in shapes):
        return "highway"
    return "plain" if branch == "conv" else "v1"


def _shortcut(shapes: Shapes, branch: str, pooled: bool) -> str:
    projected = {name: shape for name, shape in shapes.items() if name.endswith("shortcut.conv.weight")}
    if not projected:  # a VGG's row says "projection", and has none
        return {"dense": "pad-after", "conv": "projection"}.get(branch, "pad")
    first_in, first_out = projected.get("stage1.0.shortcut.conv.weight", (0, 1))[:2]
    if first_in == first_out or any(name.split(".")[1] != "0" for name in projected):
        return "projection-all"
    return "pooled-projection" if pooled else "projection"


def _squeeze(stages: list[Shapes]) -> tuple[int | None, int]:
    """Return SE's reduction and rounding that explain the hidden channels of every stage."""
    pairs = [block["branch.se.reduce.weight"][:2] for block in stages if "branch.se.reduce.weight" in block]
    if not pairs:
        return None, 1
    candidates = sorted({max(1, channels // hidden) for hidden, channels in pairs}, reverse=True)
    for round_to in (1, 8, 4, 16):
        for reduction in candidates:
            if all(hidden_channels(channels, reduction, round_to) == hidden for hidden, channels in pairs):
                return reduction, round_to
    return candidates[0], 1


def _told(spec: Architecture) -> tuple[object, ...]:
    """Return what tensors tell of an architecture, in one form for all ways to write a row."""
    widths = [min(spec.width * 2**number, spec.max_width or 2**62) for number in range(len(spec.depths))]
    expansion = 4 if spec.branch == "bottleneck" else 1
    squeezed = spec.se_reduction and [
        hidden_channels(width * expansion, spec.se_reduction, spec.se_round_to) for width in widths
    ]
    return (
        *(spec.depths, spec.branch, spec.variant, spec.stem, spec.shortcut),
        *(widths, spec.stem_width or spec.width, spec.cardinality, spec.group_width or spec.width, squeezed),
    )


def _name(spec: Architecture) -> str:
    """Return the usual name of such a network."""
    convs = NUM_CONVS[spec.branch] * sum(spec.depths)
    if spec.variant == "v2" and spec.branch == "basic" and spec.stem_width:
        return f"wrn{4 + convs}_{spec.width // spec.stem_width}"
    if spec.branch in ("dense", "conv"):
        return f"{'densenet' if spec.branch == 'dense' else 'vgg'}{2 + convs}"
    kind = {"v2": "resnetv2_", "highway": "highway"}.get(
        spec.variant, "resnext" if spec.cardinality > 1 else "resnet"
    )
    wide = "wide_" if spec.cardinality == 1 and spec.group_width else ""
    squeezed = "se" if spec.se_reduction else ""
    deep = {"pooled-projection": "d", "projection": "c"}.get(spec.shortcut, "") if spec.stem == "deep" else ""
    return f"{wide}{squeezed}{kind}{2 + convs}{deep}"


# --- what a mismatch is compared with ---------------------------------------------------------------------


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return shapes by name, without BatchNorm's counters, which older files lack."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


@cache
def _shapes_of_row(name: str) -> frozenset[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        shapes = shapes_of(ResNet(ZOO[name]).state_dict())
    return frozenset((tensor, shape) for tensor, shape in shapes.items() if not tensor.startswith("head."))


def nearest(ours: Mapping[str, Tensor]) -> str:
    """Name the row of the zoo that shares the most tensors; the classifier does not count."""
    found = {pair for pair in shapes_of(ours).items() if not pair[0].startswith("head.")}
    num_blocks = len({place[0] for name in ours if (place := BLOCK.match(name))})

    def likeness(name: str) -> float:
        row = _shapes_of_row(name)
        return len(found & row) / max(1, len(found | row))

    # Building a thousand layers takes a moment: rows of another depth are left out.
    rows = [name for name, row in ZOO.items() if num_blocks / 2 <= sum(row.depths) <= 2 * num_blocks]
    best = max(rows or ZOO, key=likeness)
    row = _shapes_of_row(best)
    if not found & row:
        return "no architecture is near"
    return f"nearest architecture: {best} ({len(found & row)} of its {len(row)} tensors)"

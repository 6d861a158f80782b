"""The question put to `/introspect`: its parameters, and what they mean for one artifact.

Two steps, because only the second needs a manifest: `IntrospectQuery` checks every value by itself (the
route and the command line share it), `resolve` turns names into indices of blocks and classes: a `Question`.
Knows no HTTP and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from artifact.errors import ParameterError
from artifact.manifest import Block, Label, Manifest
from artifact.postprocess import TopKError, allowed_top_k
from introspection.encoding import MapEncoding
from introspection.quantities import GROUPS, LESIONS, MAPS, why_absent
from introspection.quantity import ColormapName

GATE_LIMIT = 4.0  # either way: enough to double or invert a branch; far beyond, activations overflow
Render = Literal["raw", "overlay"]
Scale = Literal["image", "stage", "reference"]
TargetMode = Literal["top1", "index", "label"]


def _and(names: Iterable[str]) -> str:
    *others, last = names
    return " and ".join(filter(None, (", ".join(others), last)))


class IntrospectQuery(BaseModel):
    """The parameters of a question about an image; all have defaults."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(
        "top1",
        description="the class that the answer is about: `top1`, an index, or a label (any case; the whole "
        "label, its first comma-separated word, or the WordNet id)",
    )
    blocks: str = Field(
        "",
        description="comma-separated blocks (`stage3.0`) or stages (`stage3`), answered in the "
        "network's order; all if empty",
    )
    quantities: str = Field(
        "",
        description=f"comma-separated maps ({', '.join(MAPS)}) and scalars "
        f"({', '.join(GROUPS)}); names of both select both; empty: all but "
        f"{_and(name for name, group in GROUPS.items() if group.on_request)}, and in an image "
        "`share` (`residual` in a plain network)",
    )
    maps: MapEncoding | None = Field(
        None, description="how maps are encoded, or `none`; `u8` in JSON and `f32` in NPZ if not given"
    )
    scale: Scale = Field(
        "image",
        description="magnitudes and contribution have one vmax over all blocks (`image`), over each stage "
        "(`stage`), or over all blocks on the validation images (`reference`: the same for every image)",
    )
    gates: str = Field(
        "",
        description="factors on the residual branches, -4 to 4, 1 = untouched: one for every block, as "
        "`1,1,0,1`, or by name, as `stage2.0:0,stage3:0.5` (a later pair overrides an earlier one)",
    )
    top_k: int = Field(5, ge=1, description="how many predictions; at most the number of classes")
    render: Render = Field(
        "overlay", description="image only: cells over the photograph, or the map by itself"
    )
    colormap: ColormapName | None = Field(
        None,
        description="image only; by quantity if not given: coolwarm for "
        f"{_and(name for name, row in MAPS.items() if row.diverging)}, else viridis",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="image only: opacity of the map")
    lesion: bool = Field(
        False,
        description="run the network once more without each block asked for, and say what changes; as "
        "`lesion` among the quantities",
    )


@dataclass(frozen=True)
class Target:
    """The class asked for; `index` is None for the most probable one."""

    mode: TargetMode
    index: int | None


@dataclass(frozen=True)
class Question:
    """A query resolved against one manifest.

    Attributes:
        blocks: indices into the manifest's blocks, ascending.
        maps: the maps asked for, in the order of `MAPS`.
        groups: the scalar groups asked for, in the order of `GROUPS`.
        complete: `quantities` left nothing out, but for groups that are answered only on request.
        encoding: None where the query leaves it to the format.
        gates_L: float32, for every block of the network.
    """

    target: Target
    blocks: tuple[int, ...]
    maps: tuple[str, ...]
    groups: tuple[str, ...]
    complete: bool
    encoding: MapEncoding | None
    scale: Scale
    gates_L: NDArray[np.float32]
    top_k: int
    render: Render
    colormap: ColormapName | None
    alpha: float

    def digest(self) -> bytes:
        """Return a SHA-256 of what is asked: the same for the same question, however it was written."""
        parts = vars(self) | {"gates_L": self.gates_L.tobytes()}
        return sha256(repr(parts).encode()).digest()


def resolve(query: IntrospectQuery, manifest: Manifest) -> Question:
    """Return what `query` means for the artifact of `manifest`.

    Raises:
        ParameterError: an unknown block, class or quantity, unusable gates, or no reference to scale by.
    """
    if query.scale == "reference" and manifest.reference is None:
        raise ParameterError(
            "scale",
            "scale=reference: this artifact was exported without validation images.",
            "Choose image or stage.",
        )
    try:
        top_k = allowed_top_k(query.top_k, manifest, default="top_k" not in query.model_fields_set)
    except TopKError as error:
        raise ParameterError(
            "top_k", f"top_k={query.top_k}: {error}.", f"At most {manifest.num_classes}."
        ) from error
    maps, groups = parse_quantities(query.quantities, manifest)
    if query.lesion:
        groups = tuple(name for name in GROUPS if name in groups or name == LESIONS)
    return Question(
        target=parse_target(query.target, manifest.labels),
        blocks=parse_blocks(query.blocks, manifest.blocks),
        maps=maps,
        groups=groups,
        complete=not _names(query.quantities),
        encoding=query.maps,
        scale=query.scale,
        gates_L=parse_gates(query.gates, manifest.blocks),
        top_k=top_k,
        render=query.render,
        colormap=query.colormap,
        alpha=query.alpha,
    )


def parse_target(text: str, labels: Sequence[Label]) -> Target:
    """Return the class that `top1`, an index or a label names."""
    wanted = text.strip().casefold()
    if wanted == "top1":
        return Target("top1", None)
    if wanted.isdecimal() and wanted.isascii():
        digits = wanted.lstrip("0") or "0"
        if len(digits) > len(str(len(labels))) or int(digits) >= len(labels):
            raise ParameterError("target", f"target={text}: classes go from 0 to {len(labels) - 1}.")
        return Target("index", int(digits))
    spellings = (
        [label.label for label in labels],
        [label.wnid or "" for label in labels],
        [label.label.split(",")[0] for label in labels],
    )
    for names in spellings:
        found = [i for i, name in enumerate(names) if wanted and name.strip().casefold() == wanted]
        if len(found) == 1:
            return Target("label", found[0])
        if found:
            indices = ", ".join(str(index) for index in found)
            raise ParameterError(
                "target", f"target={text}: several classes have this label.", f"Choose by index: {indices}."
            )
    raise ParameterError(
        "target",
        f"target={text}: this model has no such class.",
        "Use top1, an index, a label, its first word before a comma, or a WordNet id.",
    )


def parse_blocks(text: str, blocks: Sequence[Block]) -> tuple[int, ...]:
    """Return the indices of the blocks that a list of block and stage names covers; all for an empty list."""
    names = _names(text)
    if not names:
        return tuple(range(len(blocks)))
    return tuple(sorted({index for name in names for index in _blocks_named(name, blocks, "blocks")}))


def parse_quantities(text: str, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the maps and the groups of numbers that a list of names covers.

    An empty list covers all but the groups that are answered only on request.

    What does not exist for the artifact may be named, and is null; what is suggested exists.
    """
    names = _names(text)
    if not names:
        return tuple(MAPS), tuple(name for name, group in GROUPS.items() if not group.on_request)
    for name in names:
        if name not in MAPS and name not in GROUPS:
            raise ParameterError("quantities", f"quantities: there is no {name!r}.", _instead(name, manifest))
    return tuple(name for name in MAPS if name in names), tuple(name for name in GROUPS if name in names)


def _instead(name: str, manifest: Manifest) -> str:
    """Return a hint that lists allowed names in place of a wrong one."""
    group, dot, _ = name.partition(".")
    if dot and group in GROUPS:
        return f"Ask for {group}."
    maps, scalars = (
        ", ".join(known for known in names if not why_absent(known, manifest)) for names in (MAPS, GROUPS)
    )
    return f"Maps: {maps}. Scalars: {scalars}."


def parse_gates(text: str, blocks: Sequence[Block]) -> NDArray[np.float32]:
    """Return a factor for each block, from a list of all or from `name:value` pairs; by default ones."""
    items = _names(text)
    gates = np.ones(len(blocks), np.float32)
    if any(":" in item for item in items):
        for item in items:
            name, _, value = item.partition(":")
            named = _blocks_named(name.strip(), blocks, "gates")
            gates[named] = _gate(value, item)
    elif items:
        if len(items) != len(blocks):
            raise ParameterError(
                "gates",
                f"gates: {len(items)} values for {len(blocks)} blocks.",
                f"Give {len(blocks)} numbers, or pairs such as {blocks[-1].name}:0.",
            )
        gates[:] = [_gate(item, item) for item in items]
    return gates


def _gate(value: str, item: str) -> float:
    try:
        gate = float(value)
    except ValueError:
        gate = math.nan
    if not abs(gate) <= GATE_LIMIT:
        raise ParameterError(
            "gates",
            f"gates: {item!r} is not usable.",
            f"A gate is a number from {-GATE_LIMIT:g} to {GATE_LIMIT:g}.",
        )
    return gate


def _blocks_named(name: str, blocks: Sequence[Block], parameter: str) -> list[int]:
    found = [i for i, block in enumerate(blocks) if name in (block.name, f"stage{block.stage}")]
    if not found:
        known = ", ".join(block.name for block in blocks)
        raise ParameterError(
            parameter, f"{parameter}: there is no block or stage {name!r}.", f"Blocks: {known}."
        )
    return found


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

"""The JSON answer of `/introspect`, as FastAPI documents it and tests check it.

The fields of a block come from the rows of quantities.py. document.py builds the document itself, as plain
dicts: a hundred maps need no second validation.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from artifact.manifest import ReceptiveField, ShortcutKind, Variant
from artifact.postprocess import Prediction
from introspection.quantities import GROUPS
from introspection.quantity import Group, Member, Reasons


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelIdentity(Part):
    name: str
    version: str
    variant: Variant
    precision: str
    engine: str


class PhotographInfo(Part):
    """The upright photograph, and which part of it (x0, y0, x1, y1) the model saw, at what size."""

    width: int
    height: int
    model_box: tuple[int, int, int, int]
    input: tuple[int, int]


class TargetClass(Part):
    index: int
    label: str
    mode: Literal["top1", "index", "label"]
    probability: float
    logit: float


class EncodedMap(Part):
    """A map, row-major in base64; u8: value = vmin + code * (vmax - vmin) / levels."""

    shape: tuple[int, int]
    dtype: Literal["u8", "f16", "f32"]
    vmin: float
    vmax: float
    levels: int | None = Field(description="u8 only: the code of vmax")
    null: int | Literal["nan"] | None = Field(description="what stands for null, if anything does")
    data: str = ""


class BlockPlace(Part):
    """Where a block is in the network, and its maps."""

    name: str
    stage: int
    index: int
    shortcut: ShortcutKind
    shape: tuple[int, int, int]
    stride: int
    receptive_field: ReceptiveField
    outside_band: dict[str, Literal["above", "below"]] | None = Field(
        description="the scalars that are outside of the 5 to 95 % band of the validation images"
    )
    maps: dict[str, EncodedMap | None]


def _null_in(lacking: Reasons) -> str:
    return "".join(f"; null in {variant} networks: {why}" for variant, why in lacking.items())


def _field_of_member(member: Member) -> Any:
    # Null is missing precision, a block that lacks something, or a variant that does.
    optional = member.optional or member.lacking
    kind: Any = member.kind | None if optional else member.kind
    return kind, Field(description=f"{member.sentence}{_null_in(member.lacking)}")


def _field_of_group(group: Group) -> Any:
    """Return the field of a group: a number, an object with the members, or a list of such objects."""
    kind: Any = float
    if group.members[0].name:
        name = group.name.title().replace("_", "")
        fields = {member.name: _field_of_member(member) for member in group.members}
        kind = create_model(name, __base__=Part, __doc__=group.meaning, **fields)
    if group.ranked:
        kind = list[kind]
    return kind | None, Field(None, description=f"{group.meaning}{_null_in(group.lacking)}")


BlockAnswer = create_model(
    "BlockAnswer",
    __base__=BlockPlace,
    __doc__="One residual block. What was not asked for is absent; what does not exist is null.",
    **{group.name: _field_of_group(group) for group in GROUPS.values()},
)


class DecomposedLogit(Part):
    """The target's logit as a sum: stem + shortcut_biases + head_bias + blocks = sum = logit, to rounding."""

    stem: float
    shortcut_biases: float = Field(description="of convolutions and BatchNorms on the way of the shortcuts")
    head_bias: float
    blocks: float = Field(description="the contributions of all blocks of the network")
    sum: float
    logit: float


class Checks(Part):
    """How far the figures can be trusted."""

    sum_parity_max_abs: float | None = Field(
        description="largest |(F + s) - the source network's own sum|, measured when the graph was exported"
    )
    completeness_abs_err: float | None = Field(
        description="|sum - logit| of the decomposition: how exact the contributions are"
    )
    energy_sum_err: float = Field(
        description="largest |energies + cross term - 1|, the cross term from sums that the graph made itself"
    )
    map_scalar_err: float = Field(
        description="largest relative difference between a mean of squared maps and the graph's mean square"
    )


class ReferenceInfo(Part):
    """The images that `outside_band` and scale=reference rest on."""

    dataset: str
    num_images: int
    num_lesion_images: int = Field(description="the number for `lesion`, which costs a run a block")
    percentiles: tuple[int, int, int]


class Answer(Part):
    """`Introspection` for blocks without their quantities."""

    model: ModelIdentity
    image: PhotographInfo
    target: TargetClass
    predictions: list[Prediction]
    gates: list[float] = Field(description="the factor on every residual branch of the network; 1: untouched")
    blocks: list[BlockPlace]
    decomposition: DecomposedLogit | None
    checks: Checks
    reference: ReferenceInfo | None
    timing_ms: dict[str, float]
    null_reasons: dict[str, str] = Field(
        description="why a field is null in every block, by its name (`share`, `rms.shortcut`): the network "
        "or the artifact lacks it, or it was not asked for"
    )


Introspection = create_model(
    "Introspection",
    __base__=Answer,
    __doc__="What every residual block did with one photograph.",
    blocks=(list[BlockAnswer], ...),  # type: ignore[valid-type]
)

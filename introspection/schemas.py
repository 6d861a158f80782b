"""What `/introspect` answers in JSON, as FastAPI documents it and tests check it.

introspection_answer.py builds the document itself, as plain dicts: a hundred maps need no second validation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from artifact.manifest import ReceptiveField, ShortcutKind, Variant
from artifact.postprocess import Prediction


class Member(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelIdentity(Member):
    name: str
    version: str
    variant: Variant
    precision: str
    engine: str


class PhotographInfo(Member):
    """The upright photograph, and which part of it (x0, y0, x1, y1) the model saw, at what size."""

    width: int
    height: int
    model_box: tuple[int, int, int, int]
    input: tuple[int, int]


class TargetClass(Member):
    index: int
    label: str
    mode: Literal["top1", "index", "label"]
    probability: float
    logit: float


class Rms(Member):
    """Of F, of s (null in a plain network) and of the block's output."""

    residual: float
    shortcut: float | None
    output: float


class Energy(Member):
    """Of F, of s, and 2<F, s>, over that of u = s + F: they sum to 1, and the first can pass 1."""

    residual: float | None
    shortcut: float | None
    cross: float | None


class Share(Member):
    """<F, u> and <s, u> over <u, u>: they sum to 1."""

    residual: float | None
    shortcut: float | None


class Relu(Member):
    """What the ReLU after the addition does; null in v2 and highway networks, which have none."""

    clip_fraction: float
    clip_energy: float | None
    erased: float | None = Field(description="null in a plain network, which has no shortcut to erase")
    written: float | None


class Lens(Member):
    """What the head would say, were it put on this block's output."""

    index: int
    label: str
    probability: float
    target_probability: float
    target_logit: float


class Lesion(Member):
    """Without the block minus with it: negative where the block supported the class."""

    delta_logit: float = Field(description="of the class that is most probable with the block")
    delta_probability: float
    kl: float = Field(description="KL(p || p without the block), in nats")
    flipped: bool = Field(description="another class is the most probable one without the block")
    index: int = Field(description="of the most probable class without the block")
    label: str
    target_delta_logit: float = Field(description="of the answer's target class")
    target_delta_probability: float


class EncodedMap(Member):
    """A map, row-major in base64; u8: value = vmin + code * (vmax - vmin) / levels."""

    shape: tuple[int, int]
    dtype: Literal["u8", "f16", "f32"]
    vmin: float
    vmax: float
    levels: int | None = Field(description="u8 only: the code of vmax")
    null: int | Literal["nan"] | None = Field(description="what stands for null, if anything does")
    data: str = ""


class BlockAnswer(Member):
    """One residual block. What was not asked for is absent; what does not exist is null."""

    name: str
    stage: int
    index: int
    shortcut: ShortcutKind
    shape: tuple[int, int, int]
    stride: int
    receptive_field: ReceptiveField
    rms: Rms | None = None
    std_residual: float | None = None
    ratio: float | None = None
    cosine: float | None = None
    cosine_centered: float | None = None
    energy: Energy | None = None
    share: Share | None = None
    relu: Relu | None = None
    contribution: float | None = Field(
        None, description="what the branch adds directly to the target's logit: the sum of its map"
    )
    lens: Lens | None = Field(None, description="null in blocks whose output the head does not fit")
    lesion: Lesion | None = None
    outside_band: dict[str, Literal["above", "below"]] | None = Field(
        description="the scalars that are outside of the 5 to 95 % band of the validation images"
    )
    maps: dict[str, EncodedMap | None]


class DecomposedLogit(Member):
    """The target's logit as a sum: stem + shortcut_biases + head_bias + blocks = sum = logit, to rounding."""

    stem: float
    shortcut_biases: float = Field(description="of convolutions and BatchNorms on the way of the shortcuts")
    head_bias: float
    blocks: float = Field(description="the contributions of all blocks of the network")
    sum: float
    logit: float


class Checks(Member):
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


class ReferenceInfo(Member):
    """The images that `outside_band` and scale=reference rest on."""

    dataset: str
    num_images: int
    num_lesion_images: int = Field(description="the number for `lesion`, which costs a run a block")
    percentiles: tuple[int, int, int]


class Introspection(Member):
    """What every residual block did with one photograph."""

    model: ModelIdentity
    image: PhotographInfo
    target: TargetClass
    predictions: list[Prediction]
    gates: list[float] = Field(description="the factor on every residual branch of the network; 1: untouched")
    blocks: list[BlockAnswer]
    decomposition: DecomposedLogit | None
    checks: Checks
    reference: ReferenceInfo | None
    timing_ms: dict[str, float]
    null_reasons: dict[str, str] = Field(
        description="why a field is null in every block, by its name (`share`, `rms.shortcut`): the network "
        "or the artifact lacks it, or it was not asked for"
    )

"""What `/introspect` answers in JSON, as FastAPI documents it and tests check it.

introspection_answer.py builds the document itself, as plain dicts: a hundred maps need no second validation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.manifest import ReceptiveField, ShortcutKind, Variant
from service.schemas import Prediction


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
    contribution: None = None
    lens: None = None
    lesion: None = None
    maps: dict[str, EncodedMap | None]


class Checks(Member):
    """How far the figures can be trusted."""

    sum_parity_max_abs: float | None = Field(
        description="largest |(F + s) - the source network's own sum|, measured when the graph was exported"
    )
    completeness_abs_err: float | None
    energy_sum_err: float = Field(
        description="largest |energies + cross term - 1|, the cross term from sums that the graph made itself"
    )
    map_scalar_err: float = Field(
        description="largest relative difference between a mean of squared maps and the graph's mean square"
    )


class Introspection(Member):
    """What every residual block did with one photograph."""

    model: ModelIdentity
    image: PhotographInfo
    target: TargetClass
    predictions: list[Prediction]
    gates: list[float] = Field(description="the factor on every residual branch of the network; 1: untouched")
    blocks: list[BlockAnswer]
    checks: Checks
    timing_ms: dict[str, float]
    null_reasons: dict[str, str] = Field(
        description="why a quantity asked for is null in every block, by its name (`share`, `rms.shortcut`): "
        "the network's variant lacks it, or this version does not compute it"
    )

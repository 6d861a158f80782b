"""The description of an artifact, which `export` writes and `service` reads.

An artifact is an immutable directory with `manifest.json`, the graphs that it names, and a golden image. This
module knows no torch, ONNX or HTTP; it uses the standard library and pydantic only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.config import JsonDict

from artifact.errors import ResiduumError

MANIFEST_FILE = "manifest.json"

# attribute: introspect, and what it adds to one class's logit.
GraphKind = Literal["classify", "introspect", "attribute"]
# int8: U8 activations and S8 weights, for CPUs. int8-trt: symmetric S8 and fp16, for TensorRT.
Precision = Literal["fp32", "bf16", "fp16", "int8", "int8-trt"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
ShortcutKind = Literal["identity", "projection", "pad", "gated", "none"]
Variant = Literal["v1", "v2", "plain", "highway"]

# The last axis of the introspect graph's `scalars`, in this order: one value for each block and image.
# Each is a mean over the C*H*W elements of the block, so that it stays in the range of fp16.
#   F residual branch (times its gate), s shortcut, u = s + F, y the block's output
ScalarName = Literal[
    "residual_mean_square",  # mean F^2
    "shortcut_mean_square",  # mean s^2
    "sum_mean_square",  # mean u^2
    "output_mean_square",  # mean y^2
    "residual_mean",  # mean F
    "residual_channel_mean_square",  # mean_c (mean_p F_c)^2
    "shortcut_channel_mean_square",  # mean_c (mean_p s_c)^2
    "channel_mean_product",  # mean_c (mean_p F_c)(mean_p s_c)
    "active",  # mean [u > 0]
    "shortcut_active",  # mean [s > 0]
    "both_active",  # mean [u > 0 and s > 0]
]
SCALARS: tuple[ScalarName, ...] = get_args(ScalarName)

# The second axis of the introspect graph's `maps`: root mean square over channels, per position.
MapName = Literal["residual", "shortcut", "sum", "output"]
MAPS: tuple[MapName, ...] = get_args(MapName)

# The last axis of the attribute graph's `constants`: what is added to the target's logit beside the blocks.
CONSTANTS = ("stem", "shortcut_biases", "head_bias")
TOP_CLASS = -1  # a value of its input `target`: the most probable class
# Variants without contributions: their logit is not linear in the branches, or each branch carries all of it.
WITHOUT_CONTRIBUTIONS: tuple[Variant, ...] = ("plain", "highway")


class ManifestError(ResiduumError):
    """The directory is not an artifact that this version can read; the message says why."""


class Record(BaseModel):
    """The base of what a manifest consists of: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(Record):
    """A class: its English name and, where it has one, its WordNet id such as `n02124075`."""

    label: str
    wnid: str | None = None


class Preprocessing(Record):
    """Image -> uint8 [crop, crop, 3]: shorter side to `resize`, centre crop; mean and std in [0, 1] units.

    `scaled_decoding`: JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if both sides then still have 2.75
    times `resize` pixels. This is faster, and changes pixels a little.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    scaled_decoding: bool = Field(
        default=False, exclude_if=lambda on: not on
    )  # older versions know no such field
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Accuracy(Record):
    """Agreement with labels, as fractions in [0, 1], measured through the graph that carries it.

    `agreement`: the fraction of images to which this graph and the fp32 graph give the same top class.
    """

    dataset: str
    num_images: int
    top1: float
    top5: float
    agreement: float | None = None


class PublishedAccuracy(Record):
    """Accuracy that the weights' publisher measured, as fractions, on images of `pixels` x `pixels`."""

    dataset: str
    top1: float
    top5: float
    pixels: int


class Parity(Record):
    """Agreement of an exported graph with the unfused source model, over `num_images` images."""

    num_images: int
    batch_sizes: tuple[int, ...]
    max_abs_delta_logit: float
    logit_range: float
    top1_agreement: float
    sum_parity_max_abs: float | None = None  # introspect: max |(F + s) - the source network's own sum|
    completeness_max_abs: float | None = None  # attribute: max |sum of all parts - the target's logit|


class Tensor(Record):
    """A graph's input or output; a string in `shape` is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Quantization(Record):
    """How the scales of an int8 graph were determined; layers are named as in the graph.

    `weight_bits` is 7 if weights use half of their range only, so that processors without VNNI, which add
    pairs of products in 16 bits, cannot overflow.
    """

    method: str
    dataset: str
    num_images: int
    weight_bits: int
    kept_layers: tuple[str, ...] = ()  # in floating point: rounding them loses most accuracy
    qat_epochs: int = 0


class Speed(Record):
    """Speed of an engine on the machine that exported the graph, with full batches one after another."""

    engine: str
    mode: str
    machine: str
    batch: int
    images_per_s: float


def _engines_are_always_shown(schema: JsonDict) -> None:
    """Mark `Graph.engines` as required in the HTTP schema, because answers always have it."""
    required = schema["required"]
    assert isinstance(required, list)
    required.insert(required.index("parity"), "engines")


class Graph(Record):
    """One ONNX file of the artifact."""

    model_config = ConfigDict(json_schema_extra=_engines_are_always_shown)

    kind: GraphKind
    precision: Precision
    file: str
    sha256: str
    num_bytes: int
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    # Which engines can run it follows from its precision (engines/registry.py). The file does not say it, and
    # what an older file says is ignored. The server fills it in where it shows a manifest.
    engines: tuple[str, ...] = Field(default_factory=tuple)
    parity: Parity
    golden_logits: tuple[float, ...]  # of the golden image, from the source model
    golden_tolerance: float  # how far an engine may be from them, in logits
    accuracy: Accuracy | None = None
    verdict: str | None = None  # a sentence that says why the precision passed its gate
    quantization: Quantization | None = None
    speeds: tuple[Speed, ...] = ()

    @field_validator("engines", mode="before")
    @classmethod
    def _ignore_engines(cls, _of_an_older_file: object) -> tuple[str, ...]:
        return ()


class ReceptiveField(Record):
    """In input pixels: cell i of a block's output is centred at `center0 + i * stride` and sees `size`."""

    center0: float
    size: int


class Block(Record):
    """One residual block, in the order of the network; `shape` is C, H, W of its output."""

    name: str
    stage: int
    index: int
    shortcut: ShortcutKind
    shape: tuple[int, int, int]
    stride: int
    receptive_field: ReceptiveField


PERCENTILES = (5, 50, 95)  # of `Reference.scalars`


class Reference(Record):
    """The usual range of each number: PERCENTILES over validation images, measured through the graphs.

    `scalars`: by name such as `rms.residual`, for each block; None where the scalar does not exist.
    Contribution, lens and lesion are of each image's own top class; lesions were measured on
    `num_lesion_images` of the images. `maps`: by quantity, for each block the 95th percentile over images of
    the largest absolute value.
    """

    dataset: str
    num_images: int
    num_lesion_images: int
    scalars: dict[str, tuple[tuple[float, float, float] | None, ...]]
    maps: dict[str, tuple[float, ...]]


class Provenance(Record):
    """Where the weights came from.

    For published weights `source` is their URL, `weights` their permanent name (`timm/resnet50.a1_in1k`), and
    `licence` their licence. `options` are the options of `residuum pull` that differ from the defaults ({}:
    none do); None if another command made the artifact.
    """

    source: str
    weights_sha256: str
    num_parameters: int
    weights: str | None = None
    licence: str | None = None
    options: dict[str, object] | None = None
    published_accuracy: PublishedAccuracy | None = None
    recipe: dict[str, object] | None = None
    dataset: str | None = None
    commit: str | None = None
    seed: int | None = None
    checkpoint_accuracy: Accuracy | None = None
    pruned: float | None = None  # fraction of the branches' inner channels that were removed


class Manifest(Record):
    """`manifest.json`; see docs/artifact.md."""

    format: Literal[1] = 1
    name: str
    version: str
    architecture: str
    variant: Variant
    num_classes: int
    labels: tuple[Label, ...]
    preprocessing: Preprocessing
    provenance: Provenance
    blocks: tuple[Block, ...]
    graphs: tuple[Graph, ...]
    reference: Reference | None = None  # None: exported without validation images
    golden_image: str  # PNG of exactly [crop, crop, 3], already preprocessed
    reports: tuple[str, ...] = ()  # files for people: accuracy against speed and size
    created: str

    def graph(self, kind: GraphKind, precision: Precision | None = None) -> Graph | None:
        """Return the first graph of that kind, and of that precision if one is given, or None."""
        for graph in self.graphs:
            if graph.kind == kind and precision in (None, graph.precision):
                return graph
        return None

    def files(self) -> tuple[str, ...]:
        """Return all files of the artifact except the manifest; it can be served without the reports."""
        return (self.golden_image, *self.reports, *(graph.file for graph in self.graphs))

    def write(self, directory: Path) -> None:
        """Write the manifest into the artifact's directory."""
        text = self.model_dump_json(indent=1, exclude={"graphs": {"__all__": {"engines"}}})
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_slices(blocks: Sequence[Block]) -> list[slice]:
    """Return where the H*W positions of each block are along the last axis of `maps` [N, 4, sum of H*W]."""
    slices, start = [], 0
    for block in blocks:
        _, height, width = block.shape
        slices.append(slice(start, start + height * width))
        start += height * width
    return slices


def lens_blocks(blocks: Sequence[Block]) -> list[int]:
    """Return the blocks that have a lens: those whose output has the shape that the head takes."""
    return [index for index, block in enumerate(blocks) if block.shape == blocks[-1].shape]


def read_manifest(directory: Path, *, verify: bool = True) -> Manifest:
    """Read an artifact's manifest and, with `verify`, check the SHA-256 of every graph.

    Raises:
        ManifestError: there is no manifest or an unreadable one, a file is missing, or a hash differs.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"no artifact at {directory}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ManifestError(f"{path} is not a manifest of format 1: {where}: {first['msg']}") from error
    try:
        _check_files(directory, manifest, verify)
    except (OSError, ValueError, RuntimeError) as error:  # NUL in a name, a loop of links, no permission
        raise ManifestError(f"{directory}: a file that its manifest names cannot be read: {error}") from error
    return manifest


def _check_files(directory: Path, manifest: Manifest, verify: bool) -> None:
    """Raise ManifestError if a file is missing, lies outside of the directory, or has another hash."""
    for file in manifest.files():
        if not (directory / file).resolve().is_relative_to(directory.resolve()):
            raise ManifestError(f"{directory / MANIFEST_FILE} names a file outside of the artifact: {file}")
        if file not in manifest.reports and not (directory / file).is_file():
            raise ManifestError(f"{directory} lacks the file {file} that its manifest names")
    if verify:
        for graph in manifest.graphs:
            if sha256_of(directory / graph.file) != graph.sha256:
                raise ManifestError(f"{directory / graph.file} differs from the SHA-256 in its manifest")

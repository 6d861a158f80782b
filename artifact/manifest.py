"""The artifact's description: what `export` writes and `service` reads.

An artifact is an immutable directory: `manifest.json`, the graphs it names, and a golden image.
This module knows nothing of torch, ONNX or HTTP: the standard library and pydantic only.
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

# One value a block and image each, in this order: the last axis of the introspect graph's
# `scalars`. All are means over the C*H*W elements of the block, so they stay in range in fp16.
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
TOP_CLASS = -1  # as its input `target`: the most probable class
# In these the logit is not linear in the branches, or all of it goes through every one of them.
WITHOUT_CONTRIBUTIONS: tuple[Variant, ...] = ("plain", "highway")


class ManifestError(ResiduumError):
    """The directory is not an artifact that this version can read; the message says why."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(Record):
    """A class: its English name and, where it has one, its WordNet id such as `n02124075`."""

    label: str
    wnid: str | None = None


class Preprocessing(Record):
    """Image -> uint8 [crop, crop, 3]: shorter side to `resize`, centre crop; mean and std in [0, 1] units."""

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Accuracy(Record):
    """Agreement with labels, as fractions in [0, 1], measured through the graph that carries it.

    `agreement` is with the fp32 graph: the fraction of images that both give the same top class.
    """

    dataset: str
    num_images: int
    top1: float
    top5: float
    agreement: float | None = None


class PublishedAccuracy(Record):
    """What the weights' publisher measured, as fractions, on images of `pixels` x `pixels`."""

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
    """How an int8 graph came by its scales; layers are named as in the graph.

    `weight_bits` is 7 where weights keep to half of their range, so that processors without VNNI, which add
    pairs of products in 16 bits, cannot overflow.
    """

    method: str
    dataset: str
    num_images: int
    weight_bits: int
    kept_layers: tuple[str, ...] = ()  # in floating point, because rounding them harms most
    qat_epochs: int = 0


class Speed(Record):
    """How fast an engine ran a graph on the machine that exported it: full batches, one after another."""

    engine: str
    mode: str
    machine: str
    batch: int
    images_per_s: float


def _engines_are_always_shown(schema: JsonDict) -> None:
    """Let the HTTP schema promise `Graph.engines`, which answers always have."""
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
    verdict: str | None = None  # why the precision passed its gate, in a sentence
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
    """What is usual: PERCENTILES over validation images, measured through the artifact's own graphs.

    `scalars`: by name, as `rms.residual`, for each block; None where the scalar does not exist. Contribution,
    lens and lesion are those of every image's own top class; lesions were measured on `num_lesion_images` of
    the images. `maps`: by quantity, for each block the 95th percentile over images of the largest absolute
    value.
    """

    dataset: str
    num_images: int
    num_lesion_images: int
    scalars: dict[str, tuple[tuple[float, float, float] | None, ...]]
    maps: dict[str, tuple[float, ...]]


class Provenance(Record):
    """Where the weights came from.

    Of weights that others published, `source` is the URL that they came from, `weights` names them for good
    (`timm/resnet50.a1_in1k`), and `licence` is theirs. `options` is what `residuum pull` was asked to do
    otherwise than by default ({}: nothing); None where something else made the artifact.
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
    pruned: float | None = None  # fraction of the branches' inner channels that were dropped


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
        """The graph of that kind (and precision), or None."""
        for graph in self.graphs:
            if graph.kind == kind and precision in (None, graph.precision):
                return graph
        return None

    def files(self) -> tuple[str, ...]:
        """All files of the artifact beside the manifest; it can be served without the reports."""
        return (self.golden_image, *self.reports, *(graph.file for graph in self.graphs))

    def write(self, directory: Path) -> None:
        """Write it into the artifact's directory."""
        text = self.model_dump_json(indent=1, exclude={"graphs": {"__all__": {"engines"}}})
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_slices(blocks: Sequence[Block]) -> list[slice]:
    """Where each block's H*W positions lie along the last axis of `maps` [N, 4, sum of H*W]."""
    slices, start = [], 0
    for block in blocks:
        _, height, width = block.shape
        slices.append(slice(start, start + height * width))
        start += height * width
    return slices


def lens_blocks(blocks: Sequence[Block]) -> list[int]:
    """Which blocks have a lens: their output has the last block's shape, which the head takes."""
    return [index for index, block in enumerate(blocks) if block.shape == blocks[-1].shape]


def read_manifest(directory: Path, *, verify: bool = True) -> Manifest:
    """Read an artifact's manifest and, with `verify`, check every file's SHA-256.

    Raises:
        ManifestError: no manifest, an unreadable one, a missing file, or a hash that differs.
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
    """All are there, inside of the directory, and with `verify` as their hashes say; raises ManifestError."""
    for file in manifest.files():
        if not (directory / file).resolve().is_relative_to(directory.resolve()):
            raise ManifestError(f"{directory / MANIFEST_FILE} names a file outside of the artifact: {file}")
        if file not in manifest.reports and not (directory / file).is_file():
            raise ManifestError(f"{directory} lacks the file {file} that its manifest names")
    if verify:
        for graph in manifest.graphs:
            if sha256_of(directory / graph.file) != graph.sha256:
                raise ManifestError(f"{directory / graph.file} differs from the SHA-256 in its manifest")

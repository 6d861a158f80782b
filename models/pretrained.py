"""Published weights as a table: location, architecture, licence, and the accuracy that was published.

`resolve` finds a row by the name that a person types. The module knows how each source lays out its files and
describes its preprocessing. It downloads nothing and loads no tensors.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ValidationError

from artifact.errors import ResiduumError
from artifact.manifest import Interpolation, Preprocessing, PublishedAccuracy
from models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from models.zoo import UnknownArchitecture, architecture

Kind = Literal["torchvision", "timm", "transformers"]
IMAGENET = "ImageNet-1k"
RESAMPLE: dict[object, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class PretrainedError(ResiduumError):
    """No such weights, or a description that we cannot follow; the message says what to do."""


@dataclass(frozen=True)
class Pretrained:
    """One file of weights.

    Attributes:
        architecture: a row of `zoo.ZOO`.
        weights: the tag by which its source tells several files for one architecture apart.
        location: torchvision: the file's name; else the repository on the Hugging Face hub.
        sha256: the beginning of the file's SHA-256; None: the hub's header tells it.
        preprocessing: None: a file in the repository tells it.
        licence: as SPDX writes it, lower case.
        num_parameters: of the network, exactly.
        published: accuracy as the source states it; None: no figure is known.
    """

    architecture: str
    weights: str
    kind: Kind
    location: str
    licence: str
    num_parameters: int
    published: PublishedAccuracy | None = None
    sha256: str | None = None
    preprocessing: Preprocessing | None = None

    @property
    def key(self) -> str:
        """The lasting name of the row: `torchvision/resnet50:IMAGENET1K_V2`, `timm/resnet50.a1_in1k`."""
        if self.kind == "torchvision":
            return f"torchvision/{self.architecture}:{self.weights}"
        return self.location

    @property
    def is_commercial(self) -> bool:
        return "-nc" not in self.licence

    def describe(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        return asdict(self) | {
            "key": self.key,
            "published": self.published and self.published.model_dump(),
            "preprocessing": self.preprocessing and self.preprocessing.model_dump(),
        }

    def weight_paths(self) -> tuple[str, ...]:
        """Return paths below a base URL; the first one that exists is the file."""
        if self.kind == "torchvision":
            return (f"models/{self.location}",)
        files = ("model.safetensors", "pytorch_model.bin")
        return tuple(f"{self.location}/resolve/main/{file}" for file in files)

    def config_path(self) -> str | None:
        """Below a base URL: where the preprocessing is written."""
        if self.kind == "torchvision":
            return None
        file = "config.json" if self.kind == "timm" else "preprocessor_config.json"
        return f"{self.location}/resolve/main/{file}"


# Counted in timm's networks of these names, and torchvision's where it has them.
NUM_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet18d": 11_708_744,
    "resnet26": 15_995_176,
    "resnet26d": 16_014_408,
    "resnet34": 21_797_672,
    "resnet34d": 21_816_904,
    "resnet50": 25_557_032,
    "resnet50d": 25_576_264,
    "resnet101": 44_549_160,
    "resnet101d": 44_568_392,
    "resnet152": 60_192_808,
    "resnet152d": 60_212_040,
    "resnetv2_18": 11_687_720,
    "resnetv2_34": 21_795_880,
    "resnetv2_50": 25_549_352,
    "resnetv2_101": 44_541_480,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "seresnet50": 28_088_024,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101_32x4d": 48_955_416,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}

# torchvision 0.28, the weights' `meta`: architecture, V1 or V2, how the file's SHA-256 begins (it is in its
# name), top-1 and top-5 in percent, and the shorter side before the crop of 224.
TORCHVISION = (
    ("resnet18", 1, "f37072fd", 69.758, 89.078, 256),
    ("resnet34", 1, "b627a593", 73.314, 91.420, 256),
    ("resnet50", 1, "0676ba61", 76.130, 92.862, 256),
    ("resnet50", 2, "11ad3fa6", 80.858, 95.434, 232),
    ("resnet101", 1, "63fe2227", 77.374, 93.546, 256),
    ("resnet101", 2, "cd907fc2", 81.886, 95.780, 232),
    ("resnet152", 1, "394f9c45", 78.312, 94.046, 256),
    ("resnet152", 2, "f82ba261", 82.284, 96.002, 232),
    ("resnext50_32x4d", 1, "7cdf4587", 77.618, 93.698, 256),
    ("resnext50_32x4d", 2, "1a0047aa", 81.198, 95.340, 232),
    ("resnext101_32x8d", 1, "8ba56ff5", 79.312, 94.526, 256),
    ("resnext101_32x8d", 2, "110c445d", 82.834, 96.228, 232),
    ("resnext101_64x4d", 1, "173b62eb", 83.246, 96.454, 232),
    ("wide_resnet50_2", 1, "95faca4d", 78.468, 94.086, 256),
    ("wide_resnet50_2", 2, "9ba9bcbe", 81.602, 95.758, 232),
    ("wide_resnet101_2", 1, "32ee1156", 78.848, 94.284, 256),
    ("wide_resnet101_2", 2, "d733dc28", 82.510, 96.020, 232),
)

# timm's results/results-imagenet.csv: tag, top-1 and top-5 in percent, and the side of the images that they
# were measured with, which is often larger than what timm's own configuration, and so ours, runs at.
# None: not in that file.
TIMM: dict[str, tuple[tuple[str, float | None, float | None, int], ...]] = {
    "resnet18": (
        ("a1_in1k", 73.158, 91.026, 288),
        ("a2_in1k", 72.372, 90.596, 288),
        ("a3_in1k", 68.254, 88.176, 224),
        ("gluon_in1k", 70.838, 89.754, 224),
        ("tv_in1k", 69.760, 89.070, 224),
        ("fb_ssl_yfcc100m_ft_in1k", 72.594, 91.418, 224),
        ("fb_swsl_ig1b_ft_in1k", 73.282, 91.732, 224),
    ),
    "resnet18d": (("ra2_in1k", 73.794, 91.838, 288), ("ra4_e3600_r224_in1k", None, None, 288)),
    "resnet26": (("bt_in1k", 76.366, 93.180, 288),),
    "resnet26d": (("bt_in1k", 77.408, 93.638, 288),),
    "resnet34": (
        ("a1_in1k", 77.918, 93.766, 288),
        ("a2_in1k", 77.158, 93.274, 288),
        ("a3_in1k", 72.970, 91.108, 224),
        ("bt_in1k", 76.480, 93.354, 288),
        ("gluon_in1k", 74.578, 91.984, 224),
        ("ra4_e3600_r224_in1k", None, None, 288),
        ("tv_in1k", None, None, 224),
    ),
    "resnet34d": (("ra2_in1k", 78.436, 94.344, 288),),
    "resnet50": (
        ("a1_in1k", 81.214, 95.102, 288),
        ("a1h_in1k", 80.676, 95.306, 224),
        ("a2_in1k", 80.772, 94.988, 288),
        ("a3_in1k", 78.048, 93.780, 224),
        ("am_in1k", 78.998, 94.396, 224),
        ("b1k_in1k", 80.706, 95.432, 288),
        ("b2k_in1k", 80.454, 95.318, 288),
        ("bt_in1k", 79.640, 94.892, 288),
        ("c1_in1k", 80.912, 95.552, 288),
        ("c2_in1k", 80.870, 95.534, 288),
        ("d_in1k", 80.972, 95.430, 288),
        ("gluon_in1k", 77.580, 93.718, 224),
        ("ra_in1k", 79.836, 94.966, 288),
        ("ram_in1k", 79.976, 95.052, 288),
        ("tv_in1k", 76.130, 92.858, 224),
        ("tv2_in1k", 80.850, 95.434, 224),
        ("fb_ssl_yfcc100m_ft_in1k", 79.234, 94.826, 224),
        ("fb_swsl_ig1b_ft_in1k", 81.182, 95.992, 224),
    ),
    "resnet50d": (
        ("a1_in1k", 81.450, 95.218, 288),
        ("a2_in1k", 81.164, 95.084, 288),
        ("a3_in1k", 78.722, 94.236, 224),
        ("gluon_in1k", 79.078, 94.468, 224),
        ("ra2_in1k", 81.356, 95.738, 288),
        ("ra4_e3600_r224_in1k", None, None, 288),
    ),
    "resnet101": (
        ("a1_in1k", 82.322, 95.632, 288),
        ("a1h_in1k", 82.778, 96.310, 288),
        ("a2_in1k", 82.236, 95.730, 288),
        ("a3_in1k", 79.814, 94.606, 224),
        ("gluon_in1k", 79.310, 94.522, 224),
        ("tv_in1k", 77.376, 93.542, 224),
        ("tv2_in1k", 81.890, 95.768, 224),
    ),
    "resnet101d": (("gluon_in1k", 80.426, 95.024, 224), ("ra2_in1k", 83.016, 96.452, 320)),
    "resnet152": (
        ("a1_in1k", 82.732, 95.720, 288),
        ("a1h_in1k", 83.450, 96.538, 288),
        ("a2_in1k", 82.608, 95.752, 288),
        ("a3_in1k", 80.546, 95.000, 224),
        ("gluon_in1k", 79.694, 94.736, 224),
        ("tv_in1k", 78.322, 94.048, 224),
        ("tv2_in1k", 82.288, 96.004, 224),
    ),
    "resnet152d": (("gluon_in1k", 80.476, 95.202, 224), ("ra2_in1k", 83.684, 96.740, 320)),
    "resnetv2_18": (("ra4_e3600_r224_in1k", None, None, 288),),
    "resnetv2_34": (("ra4_e3600_r224_in1k", None, None, 288),),
    "resnetv2_50": (("a1h_in1k", 81.398, 95.726, 288),),
    "resnetv2_101": (("a1h_in1k", 83.002, 96.454, 288),),
    "resnext50_32x4d": (
        ("a1_in1k", 81.466, 95.174, 288),
        ("a1h_in1k", 82.014, 95.934, 288),
        ("a2_in1k", 81.304, 95.096, 288),
        ("a3_in1k", 79.268, 94.306, 224),
        ("gluon_in1k", 79.360, 94.430, 224),
        ("ra_in1k", 80.698, 95.390, 288),
        ("tv_in1k", 77.618, 93.696, 224),
        ("tv2_in1k", 81.182, 95.340, 224),
        ("fb_ssl_yfcc100m_ft_in1k", 80.338, 95.398, 224),
        ("fb_swsl_ig1b_ft_in1k", 82.174, 96.222, 224),
    ),
    "resnext101_32x4d": (
        ("gluon_in1k", 80.340, 94.930, 224),
        ("fb_ssl_yfcc100m_ft_in1k", 80.924, 95.734, 224),
        ("fb_swsl_ig1b_ft_in1k", 83.232, 96.758, 224),
    ),
    "resnext101_32x8d": (
        ("tv_in1k", 79.310, 94.520, 224),
        ("tv2_in1k", 82.832, 96.232, 224),
        ("fb_ssl_yfcc100m_ft_in1k", 81.606, 96.040, 224),
        ("fb_swsl_ig1b_ft_in1k", 84.302, 97.176, 224),
        ("fb_wsl_ig1b_ft_in1k", 82.698, 96.632, 224),
    ),
    "resnext101_64x4d": (
        ("c1_in1k", 83.156, 96.374, 288),
        ("gluon_in1k", 80.600, 94.992, 224),
        ("tv_in1k", 82.992, 96.244, 224),
    ),
    "seresnet50": (
        ("a1_in1k", 81.102, 95.120, 288),
        ("a2_in1k", 81.106, 95.222, 288),
        ("a3_in1k", 77.028, 93.074, 224),
        ("ra2_in1k", 81.284, 95.652, 288),
    ),
    "seresnext50_32x4d": (("gluon_in1k", 79.910, 94.824, 224), ("racm_in1k", 82.196, 96.148, 288)),
    "seresnext101_32x4d": (("gluon_in1k", 80.892, 95.296, 224),),
    "wide_resnet50_2": (
        ("racm_in1k", 82.280, 96.064, 288),
        ("tv_in1k", 78.480, 94.086, 224),
        ("tv2_in1k", 81.606, 95.762, 224),
    ),
    "wide_resnet101_2": (("tv_in1k", 78.838, 94.282, 224), ("tv2_in1k", 82.498, 96.018, 224)),
}

# https://huggingface.co/microsoft: the layers of microsoft/resnet-N; its cards give no figures.
MICROSOFT = (18, 26, 34, 50, 101, 152)


def _published(top1: float | None, top5: float | None, pixels: int) -> PublishedAccuracy | None:
    """Percent to fractions, without the rounding error's tail."""
    if top1 is None or top5 is None:
        return None
    return PublishedAccuracy(
        dataset=IMAGENET, top1=round(top1 / 100, 7), top5=round(top5 / 100, 7), pixels=pixels
    )


def _torchvision(name: str, version: int, sha256: str, top1: float, top5: float, resize: int) -> Pretrained:
    return Pretrained(
        name,
        f"IMAGENET1K_V{version}",
        "torchvision",
        f"{name}-{sha256}.pth",
        "bsd-3-clause",
        NUM_PARAMETERS[name],
        _published(top1, top5, 224),
        sha256,
        Preprocessing(
            resize=resize, crop=224, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )


def _timm(name: str, tag: str, top1: float | None, top5: float | None, pixels: int) -> Pretrained:
    licences = {"tv": "bsd-3-clause", "tv2": "bsd-3-clause", "fb": "cc-by-nc-4.0"}
    licence = licences.get(tag.split("_")[0], "apache-2.0")
    published = _published(top1, top5, pixels)
    return Pretrained(name, tag, "timm", f"timm/{name}.{tag}", licence, NUM_PARAMETERS[name], published)


def _microsoft(num_layers: int) -> Pretrained:
    name = f"resnet{num_layers}"
    return Pretrained(
        name,
        "microsoft",
        "transformers",
        f"microsoft/resnet-{num_layers}",
        "apache-2.0",
        NUM_PARAMETERS[name],
    )


PRETRAINED: tuple[Pretrained, ...] = (
    *(_torchvision(*row) for row in TORCHVISION),
    *(_timm(name, *row) for name, rows in TIMM.items() for row in rows),
    *map(_microsoft, MICROSOFT),
)


def weights_of(name: str) -> tuple[Pretrained, ...]:
    """The rows of an architecture, the default first.

    The default is torchvision's V2; where there is none, the highest published top-1 of those whose licence
    lets anyone use them for anything.
    """
    rows = [row for row in PRETRAINED if row.architecture == name]
    return tuple(sorted(rows, key=_rank))


def _rank(row: Pretrained) -> tuple[bool, bool, float]:
    top1 = row.published.top1 if row.published else 0.0
    return row.weights != "IMAGENET1K_V2", not row.is_commercial, -top1


def resolve(name: str) -> Pretrained:
    """Return the row that a name stands for.

    Names: `resnet50`, `resnet50:v1`, `resnet50:a1_in1k`, `resnet50.a1_in1k`, `timm/resnet50.a1_in1k`
    or `microsoft/resnet-50`. Case, `-` and `_` of an architecture do not matter; a tag may lack `_in1k`
    or `IMAGENET1K_`.

    Raises:
        PretrainedError: no row; the message names the nearest ones.
    """
    row: Pretrained | None
    for row in PRETRAINED:
        if name.lower() in (row.key.lower(), f"torchvision/{row.location}".lower()):
            return row
    bare, _, tag = name.partition(":")
    if not tag and "/" not in bare:
        bare, _, tag = bare.partition(".")
    if "/" in bare:
        near = difflib.get_close_matches(name.lower(), [row.key for row in PRETRAINED], n=3, cutoff=0.7)
        raise PretrainedError(f"unknown weights {name!r}{_hint(near)}")
    try:
        spec = architecture(bare)
    except UnknownArchitecture as error:
        # Suggest only architectures that can be pulled.
        near = difflib.get_close_matches(bare.lower(), NUM_PARAMETERS, n=3)
        raise PretrainedError(f"unknown model {bare!r}{_hint(near)}") from error
    rows = weights_of(spec.name)
    if not rows:
        raise PretrainedError(
            f"nobody we know of published weights of {spec.name}; `residuum pull` lists what is"
        )
    if not tag:
        return rows[0]
    by_tag = {_short(row.weights): row for row in reversed(rows)}
    if row := by_tag.get(_short(tag)):
        return row
    if near := difflib.get_close_matches(_short(tag), reversed(by_tag), n=3, cutoff=0.5):
        hint = _hint([by_tag[name].weights for name in near])
    else:
        some = difflib.get_close_matches(_short(tag), reversed(by_tag), n=5, cutoff=0.0)
        hint = f": there are {', '.join(by_tag[name].weights for name in some)}; `residuum pull` lists all"
    raise PretrainedError(f"{spec.name} has no weights {tag!r}{hint}")


def _short(tag: str) -> str:
    """`IMAGENET1K_V1` -> `v1`, `a1_in1k` -> `a1`."""
    return tag.lower().removeprefix("imagenet1k_").removesuffix("_in1k")


def _hint(near: list[str]) -> str:
    if not near:
        return ": `residuum pull` lists what there is"
    return f": did you mean {' or '.join(near)}? `residuum pull` lists all"


def read_preprocessing(kind: Kind, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that the file at `config_path` describes.

    Raises:
        PretrainedError: it describes what our preprocessing cannot do, or is incomplete.
    """
    try:
        return _from_timm(config) if kind == "timm" else _from_transformers(config)
    except (KeyError, TypeError, ValueError, ValidationError, ZeroDivisionError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise PretrainedError(f"the repository's description of its preprocessing: {problem}") from error


def _from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Read it as `timm.data.create_transform` does for the training resolution, which is timm's default."""
    cfg = config["pretrained_cfg"]
    _, height, width = cfg["input_size"]
    if height != width or cfg.get("crop_mode", "center") != "center":
        raise PretrainedError(f"only square centre crops can be served, not {cfg['input_size']}")
    return Preprocessing(
        resize=math.floor(height / cfg["crop_pct"]),
        crop=height,
        interpolation=cfg["interpolation"],
        mean=cfg["mean"],
        std=cfg["std"],
    )


def _from_transformers(config: Mapping[str, Any]) -> Preprocessing:
    """Read it as ConvNextImageProcessor does below 384 pixels; larger images it squeezes instead."""
    kind = config.get("image_processor_type") or config["feature_extractor_type"]
    if not str(kind).startswith("ConvNext"):
        raise PretrainedError(f"its processor is {kind}; known is only ConvNextImageProcessor")
    size = config["size"]
    crop = size["shortest_edge"] if isinstance(size, Mapping) else size
    if crop >= 384:
        raise PretrainedError(f"at {crop} pixels its processor squeezes pictures into a square")
    return Preprocessing(
        resize=int(crop / (config.get("crop_pct") or 224 / 256)),
        crop=crop,
        interpolation=RESAMPLE[config["resample"]],
        mean=config["image_mean"],
        std=config["image_std"],
    )

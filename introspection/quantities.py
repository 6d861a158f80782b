"""Every quantity: its name, group, range, unit and words, and which variants lack it and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import (
    Manifest,
    Variant,
)

MapQuantity = Literal["residual", "shortcut", "output", "share", "ratio", "cosine", "contribution"]
MAP_QUANTITIES: tuple[MapQuantity, ...] = get_args(MapQuantity)

# The numbers in groups: heading, then label and name of each scalar, and how it is written.
SCALAR_ROWS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Root mean square",
        (
            ("branch F", "rms.residual", ".3f"),
            ("shortcut s", "rms.shortcut", ".3f"),
            ("output", "rms.output", ".3f"),
            ("std of F", "std_residual", ".3f"),
        ),
    ),
    (
        "F beside s",
        (
            ("|F| / |s|", "ratio", ".3f"),
            ("cosine", "cosine", "+.3f"),
            ("centred", "cosine_centered", "+.3f"),
        ),
    ),
    (
        "Parts of u = s + F",
        (
            ("share of F", "share.residual", ".3f"),
            ("energy of F", "energy.residual", ".3f"),
            ("energy of s", "energy.shortcut", ".3f"),
            ("cross term", "energy.cross", "+.3f"),
        ),
    ),
    (
        "What the ReLU does",
        (
            ("set to 0", "relu.clip_fraction", ".3f"),
            ("of energy", "relu.clip_energy", ".3f"),
            ("erased", "relu.erased", ".3f"),
            ("written", "relu.written", ".3f"),
        ),
    ),
    (
        "For: {}",
        (
            ("adds, logits", "contribution", "+.2f"),
            ("lens, logit", "lens.target_logit", ".2f"),
            ("lens, prob.", "lens.target_probability", ".3f"),
            ("lens class", "lens.label", ""),
        ),
    ),
    (
        "Without this block",
        (
            ("logit", "lesion.delta_logit", "+.2f"),
            ("probability", "lesion.delta_probability", "+.3f"),
            ("KL, nats", "lesion.kl", ".3f"),
            ("top class", "lesion.label", ""),
        ),
    ),
)


ColormapName = Literal["viridis", "inferno", "magma", "coolwarm", "jet"]


RATIO_LIMIT = 4.0  # in log2: sixteenfold either way

FIXED_RANGES: dict[MapQuantity, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "ratio": (-RATIO_LIMIT, RATIO_LIMIT),
    "cosine": (-1.0, 1.0),
}
NULLABLE: tuple[MapQuantity, ...] = ("cosine",)
SIGNED: tuple[MapQuantity, ...] = ("contribution",)  # from -vmax to vmax
FloatArray = NDArray[np.float64]


# A group of scalars in the answer and its members; a group without members is a number by itself.
SCALAR_GROUPS: dict[str, tuple[str, ...]] = {
    "rms": ("residual", "shortcut", "output"),
    "std_residual": (),
    "ratio": (),
    "cosine": (),
    "cosine_centered": (),
    "energy": ("residual", "shortcut", "cross"),
    "share": ("residual", "shortcut"),
    "relu": ("clip_fraction", "clip_energy", "erased", "written"),
    "contribution": (),
    "lens": ("probability", "target_probability", "target_logit"),
    "lesion": (
        "delta_logit",
        "delta_probability",
        "kl",
        "target_delta_logit",
        "target_delta_probability",
    ),
}
# What only the attribute graph gives.
ATTRIBUTED = ("contribution", "lens")

# What does not exist for a variant, and why: maps, scalar groups and single members of these.
NO_SHORTCUT = "a plain network has no shortcut"
NO_RELU = "no ReLU follows the addition"
NOT_DIRECT = "without shortcuts nothing but the last block reaches the head directly"
NOT_LINEAR = "the shortcuts are gated: the logit is not linear in the branches"
NOT_EXPORTED = "this artifact was exported without it: export it again"
ABSENT: dict[Variant, dict[str, str]] = {
    "v1": {},
    "v2": {"relu": NO_RELU},
    "highway": {"relu": NO_RELU, "contribution": NOT_LINEAR},
    "plain": dict.fromkeys(
        (
            "rms.shortcut",
            "ratio",
            "cosine",
            "cosine_centered",
            "energy",
            "share",
            "relu.erased",
            "relu.written",
            "shortcut",
        ),
        NO_SHORTCUT,
    )
    | {"contribution": NOT_DIRECT},
}


def reasons_absent(manifest: Manifest) -> dict[str, str]:
    """What does not exist for an artifact, and why: maps, scalar groups and members (`rms.shortcut`)."""
    old = manifest.graph("attribute") is None
    return (dict.fromkeys(ATTRIBUTED, NOT_EXPORTED) if old else {}) | ABSENT[manifest.variant]


def why_absent(quantity: str, manifest: Manifest) -> str | None:
    """Why a map, a scalar group or a member does not exist for an artifact; None: it does."""
    reasons = reasons_absent(manifest)
    return reasons.get(quantity) or reasons.get(quantity.partition(".")[0])


# In the reference these are of every image's most probable class, and say nothing about another one.
OF_TOP_CLASS = (
    "contribution",
    "lens.target_probability",
    "lens.target_logit",
    "lesion.target_delta_logit",
    "lesion.target_delta_probability",
)


def scalar_names(group: str) -> list[str]:
    """The names in `Quantities.scalars` of a group of SCALAR_GROUPS."""
    return [f"{group}.{member}" for member in SCALAR_GROUPS[group]] or [group]


LESION = "lesion"  # the one group of scalars that must be asked for

MapEncoding = Literal["none", "u8", "f16", "f32"]
Scale = Literal["image", "stage", "reference"]
ACTIVATION = "RMS, in activation units"

OUTPUTS: dict[Variant, str] = {
    "v1": "ReLU(shortcut s + residual branch F)",
    "v2": "shortcut s + residual branch F",
    "highway": "gated shortcut s + gated branch F",
    "plain": "ReLU(branch F), without a shortcut",
}


@dataclass(frozen=True)
class Style:
    """How a map is shown. `scalar` is the number over each tile, `word` its name there, `digits` its format.

    `brief` says in half a line what `legend` says in two.
    """

    title: str
    brief: str
    legend: str
    unit: str
    colormap: ColormapName
    scalar: str
    word: str
    digits: str = ".3f"


STYLES: dict[MapQuantity, Style] = {
    "residual": Style(
        "Residual branch",
        "F: what the block computes",
        "Size of what the residual branch F gives at each place: root mean square over its channels.",
        ACTIVATION,
        "viridis",
        "rms.residual",
        "rms",
    ),
    "shortcut": Style(
        "Shortcut",
        "s: what is carried past the branch",
        "Size of what the shortcut s carries past the branch: root mean square over its channels.",
        ACTIVATION,
        "viridis",
        "rms.shortcut",
        "rms",
    ),
    "output": Style(
        "Output",
        "what the block hands on",
        "Size of what the block hands on: root mean square over its channels.",
        ACTIVATION,
        "viridis",
        "rms.output",
        "rms",
    ),
    "share": Style(
        "Share",
        "0 = shortcut only, 1 = branch only",
        "Share of the block's output energy written by the residual branch, F^2 / (F^2 + s^2): "
        "0 = shortcut only, 1 = branch only. The number is the whole block's <F, u> / <u, u>; u = s + F.",
        "share of energy",
        "viridis",
        "share.residual",
        "share",
    ),
    "ratio": Style(
        "Ratio",
        "0 = equal, 1 = F is twice s, -1 = half",
        "How much larger the residual branch is than the shortcut, in powers of two: 0 = equal, 1 = twice, "
        "-1 = half; cut off at 4 either way.",
        "log2 of |F| / |s|",
        "coolwarm",
        "ratio",
        "|F| / |s|",
    ),
    "cosine": Style(
        "Cosine",
        "1 = F strengthens s, -1 = takes it away",
        "Whether the residual branch goes the shortcut's way: 1 = it strengthens what is there, "
        "0 = it adds something else, -1 = it takes away. Hatched: one of the two is too small to tell.",
        "cosine of F and s",
        "coolwarm",
        "cosine",
        "cosine",
        "+.3f",
    ),
    "contribution": Style(
        "Contribution",
        "above 0 = for the class, below = against",
        "What each place of the block adds to the class's logit directly, past all later branches: above "
        "0 for the class, below 0 against it. The number is the sum of the cells.",
        "logits, each cell",
        "coolwarm",
        "contribution",
        "sum",
        "+.2f",
    ),
}

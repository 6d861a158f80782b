"""Which maps a picture shows, how, and what is said about them: titles, legends, units, colours, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.manifest import Manifest, Variant
from service.colormaps import ColormapName
from service.introspection import MapQuantity, Quantities, why_absent
from service.introspection_query import Options, ParameterError

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


def chosen_maps(
    options: Options, manifest: Manifest, otherwise: tuple[MapQuantity, ...]
) -> tuple[MapQuantity, ...]:
    """The maps that `quantities` names, or `otherwise` if it names nothing.

    Raises:
        ParameterError: only scalars are named, or a map that does not exist for the artifact.
    """
    if options.complete:
        return otherwise
    hint = f"Maps: {', '.join(quantity for quantity in STYLES if not why_absent(quantity, manifest))}."
    if not options.maps:
        raise ParameterError("quantities", "quantities: no map is named, and pictures need one.", hint)
    for quantity in options.maps:
        if reason := why_absent(quantity, manifest):
            raise ParameterError("quantities", f"quantities: no {quantity} to draw: {reason}.", hint)
    return options.maps


def title_of(quantity: MapQuantity, label: str) -> str:
    """The quantity's name; `label` is the class that a contribution is about."""
    return f"Contribution to: {label}" if quantity == "contribution" else STYLES[quantity].title


def number_of(quantities: Quantities, quantity: MapQuantity, index: int) -> str:
    """The number of a whole block that goes with its map, and its name."""
    style = STYLES[quantity]
    value = quantities.scalars[style.scalar][index]
    return f"{style.word} {value:{style.digits}}" if np.isfinite(value) else f"{style.word}: none"


def decomposition_text(parts: Mapping[str, float]) -> str:
    """What the target's logit is the sum of, in one line; `parts` as a `Decomposition` or an answer has."""
    names = ("blocks", "shortcut_biases", "head_bias")
    terms = "".join(
        f" {'-' if parts[name] < 0 else '+'} {name.replace('_', ' ')} {abs(parts[name]):.2f}"
        for name in names
    )
    return f"logit {parts['logit']:.2f} = stem {parts['stem']:.2f}{terms}"

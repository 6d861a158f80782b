"""Parts that pictures are made of: pages, scales and their colour bars, bars of predictions, PNG.

Layout of a whole picture is rendering.py's and block_picture.py's; pixels of a map are overlay.py's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from artifact.manifest import Manifest
from artifact.preprocess import Preprocessed
from introspection.measure import Quantities
from introspection.pictures.cells import color_bar
from introspection.pictures.lettering import text_width, write
from introspection.quantities import FIXED_RANGES, SIGNED, STYLES, MapQuantity, why_absent
from introspection.question import Options, ParameterError
from introspection.scales import Bounds

MARGIN = 32
BAR_HEIGHT = 18
INK, SOFT, FAINT, PAPER = "#16181d", "#555b66", "#d9dce1", "#ffffff"
ACCENT, OTHER, TROUGH = "#31688e", "#9aa3ae", "#f0f2f4"
PNG_EFFORT = 1  # zlib level: a quarter to half the time of the default 6, for a file 15 % larger


def keep_on() -> None:
    """The check of a drawing that nothing ends; a server's raises when nobody waits for it any more."""


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    part = Image.new("RGB", (width, height), PAPER)
    return part, ImageDraw.Draw(part)


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """One under the other, with a margin above and below."""
    height = 2 * MARGIN + sum(part.height for part in parts)
    sheet = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_EFFORT)
    return file.getvalue()


def draw_predictions(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int],
    best: Sequence[dict[str, Any]],
    chosen: int,
    size: int = 16,
) -> None:
    """A line for each prediction: label, bar, logit, percentage; the class `chosen` in the accent's colour.

    Args:
        box: left, top and right.
        size: of the letters; a line is 27 pixels high at 16.
    """
    left, top, right = box
    percent, logit = 4 * size + 16, 5 * size
    name = (right - left - percent - logit) // 2
    bar_left, bar_right = left + name, right - percent - logit
    for line, prediction in enumerate(best):
        y = top + line * round(1.7 * size)
        write(draw, (left, y), prediction["label"], size, INK, name - size)
        draw.rectangle((bar_left, y + 4, bar_right, y + size + 1), fill=TROUGH)
        length = max(1, round((bar_right - bar_left) * prediction["probability"]))
        color = ACCENT if prediction["index"] == chosen else OTHER
        draw.rectangle((bar_left, y + 4, bar_left + length, y + size + 1), fill=color)
        place = (bar_right + 14, y + 2)
        write(draw, place, f"logit {prediction['logit']:.2f}", size - 2, SOFT, logit)
        place = (right - percent + 14, y)
        write(draw, place, f"{100 * prediction['probability']:.1f} %", size, INK, percent)


def draw_color_bar(
    part: Image.Image,
    box: tuple[int, int, int],
    options: Options,
    quantity: MapQuantity,
    bounds: Bounds | None,
) -> None:
    """The colour bar, with its unit above and the values at its ends and middle below.

    Args:
        box: left, top and width of the bar itself; the unit takes 22 pixels above it, the values 24 below.
        bounds: None where every stage has its own.
    """
    left, top, width = box
    style = STYLES[quantity]
    alpha = 1.0 if options.render == "raw" else options.alpha
    draw = ImageDraw.Draw(part)
    caption = style.unit if alpha == 1 else f"{style.unit}  (lower half: over grey)"
    write(draw, (left, top - 22), caption, 13, SOFT, width)
    part.paste(color_bar(width, BAR_HEIGHT, options.colormap or style.colormap, alpha), (left, top))
    labels = ["", "0", "largest of each stage"] if quantity in SIGNED else ["0", "", "largest of each stage"]
    if bounds:
        labels = [f"{value:.3g}" for value in (bounds[0], sum(bounds) / 2, bounds[1])]
        if options.scale == "reference" and quantity not in FIXED_RANGES:  # what lies beyond is cut off
            labels[0] += " or less" if bounds[0] < 0 else ""
            labels[2] += " or more"
    for label, at in zip(labels, (0.0, 0.5, 1.0), strict=True):
        x = left + round(at * (width - 1))
        draw.line((x, top + BAR_HEIGHT, x, top + BAR_HEIGHT + 4), fill=SOFT)
        shift = round(at * text_width(label, 13))
        write(draw, (x - shift, top + BAR_HEIGHT + 6), label, 13, SOFT, width)


def notes(manifest: Manifest, options: Options, image: Preprocessed) -> str:
    """What is unusual about this picture: what the model never saw, whose scale it has, changed gates."""
    found = []
    if image.original is not None and tuple(image.model_box) != (0, 0, image.width, image.height):
        found.append("Hatched: outside of the model's crop, never seen.")
    if options.scale == "reference" and manifest.reference:
        found.append(
            f"Scale: that of {manifest.reference.num_images:,} images of {manifest.reference.dataset}."
        )
    gates = zip(manifest.blocks, options.gates_L.tolist(), strict=True)
    if changed := [f"{block.name} x {gate:g}" for block, gate in gates if gate != 1]:
        found.append(f"Branches changed by gates: {', '.join(changed)}.")
    return " ".join(found)


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

"""Parts that pictures are made of: pages, scales and their colour bars, bars of predictions, PNG.

The layout of a whole picture is in sheet.py, block.py and comparison.py; the pixels of a map are in cells.py.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from artifact.errors import ParameterError
from artifact.manifest import Block, Manifest
from artifact.preprocess import Preprocessed
from introspection.measure import Values
from introspection.pictures.cells import color_bar
from introspection.pictures.lettering import text_width, write
from introspection.quantities import MAPS, NUMBERS, why_absent
from introspection.question import Question
from introspection.scales import Bounds

MARGIN = 32
BAR_HEIGHT = 18
INK, SOFT, FAINT, PAPER = "#16181d", "#555b66", "#d9dce1", "#ffffff"
ACCENT, OTHER, TROUGH = "#31688e", "#9aa3ae", "#f0f2f4"
PNG_EFFORT = 1  # zlib level: a quarter to half the time of the default 6, for a file 15 % larger


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    part = Image.new("RGB", (width, height), PAPER)
    return part, ImageDraw.Draw(part)


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Put parts one under the other, with a margin above and below."""
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
    """Draw a line for each prediction: label, bar, logit, percentage; the class `chosen` in an accent colour.

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
    question: Question,
    quantity: str,
    bounds: Bounds | None,
) -> None:
    """Draw the colour bar, with its unit above and the values at its ends and middle below.

    Args:
        box: left, top and width of the bar itself; the unit takes 22 pixels above it, the values 24 below.
        bounds: None where every stage has its own.
    """
    left, top, width = box
    row = MAPS[quantity]
    alpha = 1.0 if question.render == "raw" else question.alpha
    draw = ImageDraw.Draw(part)
    caption = row.unit if alpha == 1 else f"{row.unit}  (lower half: over grey)"
    write(draw, (left, top - 22), caption, 13, SOFT, width)
    part.paste(color_bar(width, BAR_HEIGHT, question.colormap or row.colormap, alpha), (left, top))
    labels = ["", "0", "largest of each stage"] if row.symmetric else ["0", "", "largest of each stage"]
    if bounds:
        labels = [f"{value:.3g}" for value in (bounds[0], sum(bounds) / 2, bounds[1])]
        if question.scale == "reference" and row.range is None:  # what lies beyond is cut off
            labels[0] += " or less" if bounds[0] < 0 else ""
            labels[2] += " or more"
    for label, at in zip(labels, (0.0, 0.5, 1.0), strict=True):
        x = left + round(at * (width - 1))
        draw.line((x, top + BAR_HEIGHT, x, top + BAR_HEIGHT + 4), fill=SOFT)
        shift = round(at * text_width(label, 13))
        write(draw, (x - shift, top + BAR_HEIGHT + 6), label, 13, SOFT, width)


def notes(manifest: Manifest, question: Question, image: Preprocessed) -> str:
    """Return what is unusual about this picture: unseen pixels, the scale, changed gates."""
    found = []
    if image.original is not None and tuple(image.model_box) != (0, 0, image.width, image.height):
        found.append("Hatched: outside of the model's crop, never seen.")
    if question.scale == "reference" and manifest.reference:
        found.append(
            f"Scale: that of {manifest.reference.num_images:,} images of {manifest.reference.dataset}."
        )
    gates = zip(manifest.blocks, question.gates_L.tolist(), strict=True)
    if changed := [f"{block.name} x {gate:g}" for block, gate in gates if gate != 1]:
        found.append(f"Branches changed by gates: {', '.join(changed)}.")
    return " ".join(found)


def chosen_maps(question: Question, manifest: Manifest, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """Return the maps that `quantities` names, or `otherwise` if it names nothing.

    Raises:
        ParameterError: only scalars are named, or a map that does not exist for the artifact.
    """
    if question.complete:
        return otherwise
    hint = f"Maps: {', '.join(quantity for quantity in MAPS if not why_absent(quantity, manifest))}."
    if not question.maps:
        raise ParameterError("quantities", "quantities: no map is named, and pictures need one.", hint)
    for quantity in question.maps:
        if reason := why_absent(quantity, manifest):
            raise ParameterError("quantities", f"quantities: no {quantity} to draw: {reason}.", hint)
    return question.maps


def title_of(quantity: str, label: str) -> str:
    """Return the quantity's name; `label` is the class that a contribution is about."""
    row = MAPS[quantity]
    return row.title_for.format(label) if row.title_for else row.title


def number_format(quantity: str) -> str:
    """Return how the number of a whole block that goes with a map is written."""
    _, member = NUMBERS[MAPS[quantity].number]
    return member.drawn.digits if member.drawn else ".3g"


def number_of(values: Values, quantity: str, index: int) -> str:
    """Return the number of a whole block that goes with its map, and its name."""
    row = MAPS[quantity]
    value = values.scalars[row.number][index]
    return f"{row.word} {value:{number_format(quantity)}}" if np.isfinite(value) else f"{row.word}: none"


def kind_of(block: Block, noun: str = "") -> str:
    """Return the kind of a block's shortcut, followed by `noun`; "no shortcut" for a block without one."""
    return "no shortcut" if block.shortcut == "none" else f"{block.shortcut}{noun}"


def decomposition_text(parts: Mapping[str, float]) -> str:
    """Return the target's logit as a sum, in one line; `parts` as a `Decomposition` or a document has."""
    names = ("blocks", "shortcut_biases", "head_bias")
    terms = "".join(
        f" {'-' if parts[name] < 0 else '+'} {name.replace('_', ' ')} {abs(parts[name]):.2f}"
        for name in names
    )
    return f"logit {parts['logit']:.2f} = stem {parts['stem']:.2f}{terms}"

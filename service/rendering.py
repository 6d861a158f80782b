"""Quantities -> a contact sheet: every block's map over the photograph, as one PNG.

Only layout and text: what a tile shows is made by overlay.py. Every part is drawn by itself and returned as
an image; a sheet is parts stacked on each other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.manifest import Manifest, Variant
from models.preprocess import Preprocessed
from service.colormaps import ColormapName
from service.introspection import MapQuantity, Quantities, why_absent
from service.introspection_answer import FIXED_RANGES, block_map, map_range, predictions, target_index
from service.introspection_query import Options, ParameterError
from service.lettering import text_width, wrapped, write
from service.overlay import color_bar, grey_input, overlay, photograph, raw_cells

WIDTH = 1240
MARGIN = 32
GAP = 14  # between tiles
MIN_COLUMNS, MAX_COLUMNS = 4, 9
MAX_TILE = 284
HEADER_HEIGHT = 236
PHOTO_WIDTH = 340
BAR_WIDTH, BAR_HEIGHT = 320, 18
TITLE_HEIGHT = 40  # of a tile: two lines of text

INK, SOFT, FAINT, PAPER = "#16181d", "#555b66", "#d9dce1", "#ffffff"
ACCENT = "#31688e"
PNG_EFFORT = 2  # zlib level: a third of the time of the default 6, for a file 8 % larger


@dataclass(frozen=True)
class Style:
    """How a quantity is shown, and what is said about it. `scalar` is the number over each tile."""

    title: str
    legend: str
    unit: str
    colormap: ColormapName
    scalar: str
    word: str


OUTPUTS: dict[Variant, str] = {
    "v1": "ReLU(shortcut s + residual branch F)",
    "v2": "shortcut s + residual branch F",
    "highway": "gated shortcut s + gated branch F",
    "plain": "ReLU(branch F), without a shortcut",
}

STYLES: dict[MapQuantity, Style] = {
    "share": Style(
        "Share",
        "Share of the block's output energy written by the residual branch, F^2 / (F^2 + s^2): "
        "0 = shortcut only, 1 = branch only. The number is the whole block's <F, u> / <u, u>; u = s + F.",
        "share of energy",
        "viridis",
        "share.residual",
        "share",
    ),
    "residual": Style(
        "Residual branch",
        "Size of what the residual branch F gives at each place: root mean square over its channels.",
        "RMS, in activation units",
        "viridis",
        "rms.residual",
        "rms",
    ),
    "shortcut": Style(
        "Shortcut",
        "Size of what the shortcut s carries past the branch: root mean square over its channels.",
        "RMS, in activation units",
        "viridis",
        "rms.shortcut",
        "rms",
    ),
    "output": Style(
        "Output",
        "Size of what the block hands on: root mean square over its channels.",
        "RMS, in activation units",
        "viridis",
        "rms.output",
        "rms",
    ),
    "ratio": Style(
        "Ratio",
        "How much larger the residual branch is than the shortcut, in powers of two: 0 = equal, 1 = twice, "
        "-1 = half; cut off at 4 either way.",
        "log2 of |F| / |s|",
        "coolwarm",
        "ratio",
        "|F| / |s|",
    ),
    "cosine": Style(
        "Cosine",
        "Whether the residual branch goes the shortcut's way: 1 = it strengthens what is there, "
        "0 = it adds something else, -1 = it takes away. Hatched: one of the two is too small to tell.",
        "cosine of F and s",
        "coolwarm",
        "cosine",
        "cosine",
    ),
}


def contact_sheet(quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed) -> bytes:
    """The PNG: photograph and predictions, then for every quantity one tile a block.

    Raises:
        ParameterError: `quantities` names no map, or one that does not exist for the network's variant.
    """
    parts = [_header(quantities, manifest, options, image)]
    for quantity in sheet_quantities(options, manifest.variant):
        parts += _section(quantities, manifest, options, image, quantity)
    sheet = _stacked(parts)
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=PNG_EFFORT)
    return file.getvalue()


def sheet_quantities(options: Options, variant: Variant) -> tuple[MapQuantity, ...]:
    """The maps that a sheet shows: those named; if none is, `share`, or `residual` where there is no share.

    Raises:
        ParameterError: only scalars are named, or a map that does not exist for the variant.
    """
    if options.complete:
        return ("residual",) if why_absent("share", variant) else ("share",)
    hint = f"Maps: {', '.join(quantity for quantity in STYLES if not why_absent(quantity, variant))}."
    if not options.maps:
        raise ParameterError("quantities", "quantities: an image needs a map.", hint)
    for quantity in options.maps:
        if reason := why_absent(quantity, variant):
            raise ParameterError("quantities", f"quantities: no {quantity} to draw: {reason}.", hint)
    return options.maps


def packed(counts: Sequence[int]) -> tuple[int, list[list[int]]]:
    """How stages with so many blocks share a sheet: its columns, and the stages that stand side by side.

    As many columns as the longest stage has blocks; where those would be too many, the number that takes
    the fewest rows, and of these the smallest, for its larger tiles.
    """
    columns = max(MIN_COLUMNS, *counts)
    if columns > MAX_COLUMNS:
        columns = min(range(MAX_COLUMNS - 3, MAX_COLUMNS + 1), key=lambda c: _num_rows(counts, c))
    return columns, _lines(counts, columns)


def _lines(counts: Sequence[int], columns: int) -> list[list[int]]:
    lines: list[list[int]] = []
    room = 0
    for stage, count in enumerate(counts):
        if not lines or count > room:
            lines.append([])
            room = columns
        lines[-1].append(stage)
        room -= count
    return lines


def _num_rows(counts: Sequence[int], columns: int) -> int:
    return sum(max(-(-counts[stage] // columns) for stage in line) for line in _lines(counts, columns))


def _header(quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed) -> Image.Image:
    part, draw = _blank(HEADER_HEIGHT)
    picture = photograph(image, PHOTO_WIDTH, HEADER_HEIGHT)
    part.paste(picture, (MARGIN, (HEADER_HEIGHT - picture.height) // 2))
    left = MARGIN + picture.width + 32
    room = WIDTH - MARGIN - left
    write(draw, (left, -3), manifest.name, 24, INK, room)
    write(draw, (left, 30), _subtitle(manifest, image), 15, SOFT, room)
    best = predictions(quantities, manifest, min(options.top_k, 5))
    chosen = target_index(options.target, quantities)
    bar_left, bar_right = left + 260, WIDTH - MARGIN - 80
    for line, prediction in enumerate(best):
        top = 66 + line * 27
        color = ACCENT if prediction["index"] == chosen else "#9aa3ae"
        write(draw, (left, top), prediction["label"], 16, INK, 245)
        draw.rectangle((bar_left, top + 4, bar_right, top + 17), fill="#f0f2f4")
        length = max(1, round((bar_right - bar_left) * prediction["probability"]))
        draw.rectangle((bar_left, top + 4, bar_left + length, top + 17), fill=color)
        write(draw, (bar_right + 14, top), f"{100 * prediction['probability']:.1f} %", 16, INK, 80)
    write(draw, (left, HEADER_HEIGHT - 18), _note(manifest, options, image), 14, SOFT, room)
    return part


def _subtitle(manifest: Manifest, image: Preprocessed) -> str:
    crop = manifest.preprocessing.crop
    return (
        f"{image.width} x {image.height} pixels, seen as {crop} x {crop} · "
        f"every block: output = {OUTPUTS[manifest.variant]}"
    )


def _note(manifest: Manifest, options: Options, image: Preprocessed) -> str:
    """What is unusual about this picture: parts of it that the model never saw, or changed gates."""
    notes = []
    if image.original is not None and tuple(image.model_box) != (0, 0, image.width, image.height):
        notes.append("Hatched: outside of the model's crop, never seen.")
    changed = [
        f"{block.name} x {gate:g}"
        for block, gate in zip(manifest.blocks, options.gates_L.tolist(), strict=True)
        if gate != 1
    ]
    if changed:
        notes.append("Branches changed by gates: " + ", ".join(changed))
    return " ".join(notes)


def _section(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, quantity: MapQuantity
) -> list[Image.Image]:
    """Title, legend and colour bar of one quantity, then its tiles."""
    style = STYLES[quantity]
    colormap = options.colormap or style.colormap
    by_stage_only = options.scale == "stage" and quantity not in FIXED_RANGES
    bounds = None if by_stage_only else map_range(quantities, manifest, quantity)
    title, draw = _blank(126)
    draw.line((MARGIN, 22, WIDTH - MARGIN, 22), fill=FAINT)
    write(draw, (MARGIN, 38), style.title, 22, INK, 600)
    bar_left = WIDTH - MARGIN - BAR_WIDTH
    for line, text in enumerate(wrapped(style.legend, 15, bar_left - MARGIN - 60)):
        write(draw, (MARGIN, 70 + 20 * line), text, 15, SOFT, WIDTH)
    alpha = 1.0 if options.render == "raw" else options.alpha
    _draw_bar(title, (bar_left, 60), colormap, alpha, bounds, style.unit)

    by_stage: dict[int, list[int]] = {}
    for index in options.blocks:
        by_stage.setdefault(manifest.blocks[index].stage, []).append(index)
    columns, lines = packed([len(indices) for indices in by_stage.values()])
    size = min(MAX_TILE, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns)
    grey = grey_input(image, size)
    groups = []
    for stage, indices in by_stage.items():
        limits = bounds or map_range(quantities, manifest, quantity, stage)
        heading = _stage_heading(manifest, stage, indices, None if bounds else limits)
        tiles = [_tile(quantities, manifest, options, quantity, index, grey, limits) for index in indices]
        groups.append((heading, tiles))
    return [title, *(_line([groups[place] for place in line], columns) for line in lines)]


def _line(groups: Sequence[tuple[str, list[Image.Image]]], columns: int) -> Image.Image:
    """Groups of tiles side by side, each under its heading; a group longer than the line goes on below."""
    width, height = groups[0][1][0].size
    num_rows = max(-(-len(tiles) // columns) for _, tiles in groups)
    part, draw = _blank(30 + num_rows * (height + GAP) + 6)
    column = 0
    for heading, tiles in groups:
        left = MARGIN + column * (width + GAP)
        room = min(len(tiles), columns) * (width + GAP) - GAP
        write(draw, (left, 2), heading, 14, SOFT, room)
        draw.line((left, 24, left + room, 24), fill=FAINT)
        for place, tile in enumerate(tiles):
            row, offset = divmod(place, columns)
            part.paste(tile, (left + offset * (width + GAP), 32 + row * (height + GAP)))
        column += len(tiles)
    return part


def _stage_heading(
    manifest: Manifest, stage: int, indices: Sequence[int], limits: tuple[float, float] | None
) -> str:
    block = manifest.blocks[indices[0]]
    channels, height, width = block.shape
    scale = f" · {limits[0]:.4g} to {limits[1]:.4g}" if limits else ""
    return f"Stage {stage} · {height} x {width} cells, {channels} channels{scale}"


def _tile(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    quantity: MapQuantity,
    index: int,
    grey: NDArray[np.uint8],
    limits: tuple[float, float],
) -> Image.Image:
    """One block: its name, its number, and its map over the grey photograph."""
    block, style, size = manifest.blocks[index], STYLES[quantity], len(grey)
    values = block_map(quantities, manifest, quantity, index)
    colormap = options.colormap or style.colormap
    if options.render == "raw":
        pixels = raw_cells(values, size, *limits, colormap)
    else:
        crop = manifest.preprocessing.crop
        pixels = overlay(values, block, crop, grey, *limits, colormap, options.alpha)
    tile = Image.new("RGB", (size, size + TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(tile)
    number = quantities.scalars[style.scalar][index]
    summary = f"{style.word} {number:.3g}" if np.isfinite(number) else f"{style.word}: none"
    name_width = write(draw, (0, 0), block.name, 14, INK, size)
    kind = "no shortcut" if block.shortcut == "none" else block.shortcut
    write(draw, (name_width + 8, 0), kind, 14, SOFT, size - name_width - 8)
    write(draw, (0, 18), summary, 14, INK, size)
    tile.paste(Image.fromarray(pixels), (0, TITLE_HEIGHT))
    return tile


def _draw_bar(
    part: Image.Image,
    place: tuple[int, int],
    colormap: ColormapName,
    alpha: float,
    bounds: tuple[float, float] | None,
    unit: str,
) -> None:
    """The colour bar, with its unit above and the values at its ends and middle below."""
    left, top = place
    draw = ImageDraw.Draw(part)
    caption = unit if alpha == 1 else f"{unit}  (lower half: over grey)"
    write(draw, (left, top - 22), caption, 13, SOFT, BAR_WIDTH)
    part.paste(color_bar(BAR_WIDTH, BAR_HEIGHT, colormap, alpha), (left, top))
    labels = ["0", "", "largest of each stage"]
    if bounds:
        labels = [f"{value:.3g}" for value in (bounds[0], sum(bounds) / 2, bounds[1])]
    for label, at in zip(labels, (0.0, 0.5, 1.0), strict=True):
        x = left + round(at * (BAR_WIDTH - 1))
        draw.line((x, top + BAR_HEIGHT, x, top + BAR_HEIGHT + 4), fill=SOFT)
        shift = round(at * text_width(label, 13))
        write(draw, (x - shift, top + BAR_HEIGHT + 6), label, 13, SOFT, BAR_WIDTH)


def _blank(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    part = Image.new("RGB", (WIDTH, height), PAPER)
    return part, ImageDraw.Draw(part)


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(part.height for part in parts)), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet

"""Quantities -> a contact sheet: every block's map over the photograph, as one PNG.

Only layout and text: what a tile shows is made by overlay.py, what is said about it stands in legends.py.
Every part is drawn by itself and returned as an image; a sheet is parts stacked on each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from artifact.manifest import Manifest
from artifact.preprocess import Preprocessed
from introspection.document import predictions_with_target
from introspection.measure import Quantities
from introspection.pictures.cells import grey_input, overlay, photograph, raw_cells
from introspection.pictures.lettering import wrapped, write
from introspection.pictures.parts import (
    FAINT,
    INK,
    MARGIN,
    PAPER,
    SOFT,
    blank,
    chosen_maps,
    decomposition_text,
    draw_color_bar,
    draw_predictions,
    keep_on,
    notes,
    number_of,
    png,
    stacked,
    title_of,
)
from introspection.quantities import OUTPUTS, STYLES, MapQuantity, why_absent
from introspection.question import Options, ParameterError
from introspection.scales import Bounds, Scales, block_map, scales_of

WIDTH = 1240
GAP = 14  # between tiles
MIN_COLUMNS, MAX_COLUMNS = 4, 9
MAX_TILE = 284
HEADER_HEIGHT = 236
MAX_PREDICTIONS = 5
PHOTO_WIDTH = 340
BAR_WIDTH = 320
TITLE_HEIGHT = 40  # of a tile: two lines of text
MAX_TILES = 1000  # of a picture: about six seconds, and 250 MB until it is PNG


def contact_sheet(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    image: Preprocessed,
    check: Callable[[], None] = keep_on,
) -> bytes:
    """The PNG: photograph and predictions, then for every quantity one tile a block.

    Args:
        check: called before each tile; what it raises ends the drawing.

    Raises:
        ParameterError: as of `sheet_quantities`.
    """
    parts = [_header(quantities, manifest, options, image)]
    for quantity in sheet_quantities(options, manifest):
        parts += _section(quantities, manifest, options, image, quantity, check)
    return png(stacked(parts))


def sheet_quantities(options: Options, manifest: Manifest) -> tuple[MapQuantity, ...]:
    """The maps that a sheet shows: those named; if none is, `share`, or `residual` where there is no share.

    Raises:
        ParameterError: only scalars are named, a map that does not exist for the artifact, or too many tiles.
    """
    maps = chosen_maps(options, manifest, ("residual",) if why_absent("share", manifest) else ("share",))
    check_tiles(len(maps) * len(options.blocks))
    return maps


def check_tiles(num_tiles: int) -> None:
    """Raise ParameterError if they are too many for one picture."""
    if num_tiles > MAX_TILES:
        raise ParameterError(
            "blocks",
            f"blocks: the picture would have {num_tiles:,} tiles, and {MAX_TILES:,} is the most.",
            "Name fewer in blocks= or quantities=.",
        )


def packed(counts: Sequence[int]) -> tuple[int, list[list[int]]]:
    """How stages with so many blocks share a sheet: its columns, and the stages that stand side by side.

    As many columns as the longest stage has blocks; where those would be too many, the number that takes
    the fewest rows, and of these the smallest, for its larger tiles.
    """
    columns = max(MIN_COLUMNS, *counts)
    if columns > MAX_COLUMNS:
        columns = min(range(MAX_COLUMNS - 3, MAX_COLUMNS + 1), key=lambda c: _num_rows(counts, c))
    return columns, lines_of(counts, columns)


def lines_of(counts: Sequence[int], columns: int) -> list[list[int]]:
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
    return sum(max(-(-counts[stage] // columns) for stage in line) for line in lines_of(counts, columns))


def _header(quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed) -> Image.Image:
    part, draw = blank(WIDTH, HEADER_HEIGHT)
    picture = photograph(image, PHOTO_WIDTH, HEADER_HEIGHT)
    part.paste(picture, (MARGIN, (HEADER_HEIGHT - picture.height) // 2))
    left = MARGIN + picture.width + 32
    room = WIDTH - MARGIN - left
    write(draw, (left, -3), manifest.name, 24, INK, room)
    write(draw, (left, 30), subtitle(manifest, image), 15, SOFT, room)
    best = predictions_with_target(quantities, manifest, options.top_k, MAX_PREDICTIONS)
    draw_predictions(draw, (left, 66, WIDTH - MARGIN), best, quantities.target)
    write(draw, (left, HEADER_HEIGHT - 18), notes(manifest, options, image), 14, SOFT, room)
    return part


def subtitle(manifest: Manifest, image: Preprocessed) -> str:
    crop = manifest.preprocessing.crop
    return (
        f"{image.width} x {image.height} pixels, seen as {crop} x {crop} · "
        f"every block: output = {OUTPUTS[manifest.variant]}"
    )


def _section(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    image: Preprocessed,
    quantity: MapQuantity,
    check: Callable[[], None],
) -> list[Image.Image]:
    """Title, legend and colour bar of one quantity, then its tiles."""
    scales = scales_of([quantities], manifest, options, quantity)
    title = section_title([quantities], manifest, options, quantity, scales)
    by_stage = blocks_by_stage(manifest, options)
    columns, lines = packed([len(indices) for indices in by_stage.values()])
    size = min(MAX_TILE, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns)
    grey = grey_input(image, size)
    groups = []
    for stage, indices in by_stage.items():
        tiles = []
        for index in indices:
            check()
            bounds = scales.by_stage[stage]
            tiles.append(_tile(quantities, manifest, options, quantity, index, grey, bounds))
        groups.append((stage_heading(manifest, scales, stage), tiles))
    return [title, *(line_of([groups[place] for place in line], columns) for line in lines)]


def section_title(
    several: Sequence[Quantities],
    manifest: Manifest,
    options: Options,
    quantity: MapQuantity,
    scales: Scales,
    width: int = WIDTH,
) -> Image.Image:
    """What is shown, what it means, and its colours; of several images if they share a scale."""
    style = STYLES[quantity]
    bar_left = width - MARGIN - BAR_WIDTH
    lines = wrapped(style.legend, 15, bar_left - MARGIN - 60)
    if quantity == "contribution":
        sums = [decomposition_text(one.decomposition._asdict()) for one in several if one.decomposition]
        lines += [f"{letter}: {text}" for letter, text in zip("AB", sums, strict=True)] if sums[1:] else sums
    part, draw = blank(width, 126 + 20 * max(0, len(lines) - 2))
    draw.line((MARGIN, 22, width - MARGIN, 22), fill=FAINT)
    title = title_of(quantity, manifest.labels[several[0].target].label)
    write(draw, (MARGIN, 38), title, 22, INK, bar_left - MARGIN - 60)
    for line, text in enumerate(lines):
        write(draw, (MARGIN, 70 + 20 * line), text, 15, SOFT, bar_left - MARGIN - 20)
    draw_color_bar(part, (bar_left, 60, BAR_WIDTH), options, quantity, scales.common)
    return part


def blocks_by_stage(manifest: Manifest, options: Options) -> dict[int, list[int]]:
    """The blocks asked for, stage by stage."""
    by_stage: dict[int, list[int]] = {}
    for index in options.blocks:
        by_stage.setdefault(manifest.blocks[index].stage, []).append(index)
    return by_stage


def line_of(
    groups: Sequence[tuple[str, list[Image.Image]]], columns: int, gap: int = GAP, page: int = WIDTH
) -> Image.Image:
    """Groups of tiles side by side, each under its heading; a group longer than the line goes on below."""
    width, height = groups[0][1][0].size
    num_rows = max(-(-len(tiles) // columns) for _, tiles in groups)
    part, draw = blank(page, 30 + num_rows * (height + GAP) + 6)
    column = 0
    for heading, tiles in groups:
        left = MARGIN + column * (width + gap)
        room = min(len(tiles), columns) * (width + gap) - gap
        write(draw, (left, 2), heading, 14, SOFT, room)
        draw.line((left, 24, left + room, 24), fill=FAINT)
        for place, tile in enumerate(tiles):
            row, offset = divmod(place, columns)
            part.paste(tile, (left + offset * (width + gap), 32 + row * (height + GAP)))
        column += len(tiles)
    return part


def stage_heading(manifest: Manifest, scales: Scales, stage: int) -> str:
    """Stage, shape, and the range of the colours where every stage has its own."""
    channels, height, width = next(block for block in manifest.blocks if block.stage == stage).shape
    scale = ""
    if scales.common is None:
        low, high = scales.by_stage[stage]
        scale = f" · {low:.3g} to {high:.3g}"
    return f"Stage {stage} · {height} x {width} cells, {channels} channels{scale}"


def _tile(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    quantity: MapQuantity,
    index: int,
    grey: NDArray[np.uint8],
    bounds: Bounds,
) -> Image.Image:
    """One block: its name, its number, and its map over the grey photograph."""
    block, size = manifest.blocks[index], len(grey)
    tile = Image.new("RGB", (size, size + TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(tile)
    name_width = write(draw, (0, 0), block.name, 14, INK, size)
    kind = "no shortcut" if block.shortcut == "none" else block.shortcut
    write(draw, (name_width + 8, 0), kind, 14, SOFT, size - name_width - 8)
    write(draw, (0, 18), number_of(quantities, quantity, index), 14, INK, size)
    pixels = cells_over(quantities, manifest, options, quantity, index, grey, bounds)
    tile.paste(Image.fromarray(pixels), (0, TITLE_HEIGHT))
    return tile


def cells_over(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    quantity: MapQuantity,
    index: int,
    grey: NDArray[np.uint8],
    bounds: Bounds,
) -> NDArray[np.uint8]:
    """The map of a block over what the model saw, or by itself, as the options say; RGB [size, size, 3]."""
    values = block_map(quantities, manifest, quantity, index)
    colormap = options.colormap or STYLES[quantity].colormap
    if options.render == "raw":
        return raw_cells(values, len(grey), *bounds, colormap)
    crop = manifest.preprocessing.crop
    return overlay(values, manifest.blocks[index], crop, grey, *bounds, colormap, options.alpha)

"""A contact sheet: every block's map over the photograph, as one PNG.

Only layout and text: the pixels of a map come from cells.py, common parts from parts.py. Every part is drawn
by itself and returned as an image; a sheet is parts stacked on each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from artifact.errors import ParameterError
from artifact.manifest import Manifest
from artifact.preprocess import Preprocessed
from introspection.document import predictions_with_target
from introspection.pictures.cells import Paint, grey_input, overlay, photograph, raw_cells
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
    kind_of,
    notes,
    number_of,
    png,
    stacked,
    title_of,
)
from introspection.quantities import MAPS, OUTPUTS, why_absent
from introspection.question import Question
from introspection.scales import Bounds, Scales, scales_of
from introspection.seen import Seen
from introspection.steps import Steps

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


def contact_sheet(seen: Seen, question: Question) -> Steps[bytes]:
    """Draw photograph and predictions, then for every quantity one tile a block, as PNG; each tile is a step.

    Raises:
        ParameterError: see `sheet_quantities`.
    """
    parts = [_header(seen, question)]
    for quantity in sheet_quantities(question, seen.manifest):
        parts += yield from _section(seen, question, quantity)
    return png(stacked(parts))


def sheet_quantities(question: Question, manifest: Manifest) -> tuple[str, ...]:
    """Return the maps that a sheet shows: those named, else `share`, or `residual` if there is no share.

    Raises:
        ParameterError: only scalars are named, a map that does not exist for the artifact, or too many tiles.
    """
    maps = chosen_maps(question, manifest, ("residual",) if why_absent("share", manifest) else ("share",))
    check_tiles(len(maps) * len(question.blocks))
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
    """Return how stages of these lengths share a sheet: the number of columns, and the stages of each line.

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


def _header(seen: Seen, question: Question) -> Image.Image:
    manifest, image = seen.manifest, seen.image
    part, draw = blank(WIDTH, HEADER_HEIGHT)
    picture = photograph(image, PHOTO_WIDTH, HEADER_HEIGHT)
    part.paste(picture, (MARGIN, (HEADER_HEIGHT - picture.height) // 2))
    left = MARGIN + picture.width + 32
    room = WIDTH - MARGIN - left
    write(draw, (left, -3), manifest.name, 24, INK, room)
    write(draw, (left, 30), subtitle(manifest, image), 15, SOFT, room)
    best = predictions_with_target(seen, question.top_k, MAX_PREDICTIONS)
    draw_predictions(draw, (left, 66, WIDTH - MARGIN), best, seen.values.target)
    write(draw, (left, HEADER_HEIGHT - 18), notes(manifest, question, image), 14, SOFT, room)
    return part


def subtitle(manifest: Manifest, image: Preprocessed) -> str:
    crop = manifest.preprocessing.crop
    return (
        f"{image.width} x {image.height} pixels, seen as {crop} x {crop} · "
        f"every block: output = {OUTPUTS[manifest.variant]}"
    )


def _section(seen: Seen, question: Question, quantity: str) -> Steps[list[Image.Image]]:
    """Draw title, legend and colour bar of one quantity, then its tiles."""
    scales = scales_of([seen], question, quantity)
    title = section_title([seen], question, quantity, scales)
    by_stage = blocks_by_stage(seen.manifest, question)
    columns, lines = packed([len(indices) for indices in by_stage.values()])
    size = min(MAX_TILE, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns)
    grey = grey_input(seen.image, size)
    groups = []
    for stage, indices in by_stage.items():
        tiles = []
        for index in indices:
            yield
            tiles.append(_tile(seen, question, quantity, index, grey, scales.by_stage[stage]))
        groups.append((stage_heading(seen.manifest, scales, stage), tiles))
    return [title, *(line_of([groups[place] for place in line], columns) for line in lines)]


def section_title(
    several: Sequence[Seen], question: Question, quantity: str, scales: Scales, width: int = WIDTH
) -> Image.Image:
    """Draw what is shown, what it means, and its colours; of several images if they share a scale."""
    bar_left = width - MARGIN - BAR_WIDTH
    lines = wrapped(MAPS[quantity].legend, 15, bar_left - MARGIN - 60)
    if quantity == "contribution":
        decompositions = [seen.values.decomposition for seen in several]
        sums = [decomposition_text(parts._asdict()) for parts in decompositions if parts]
        lines += [f"{letter}: {text}" for letter, text in zip("AB", sums, strict=True)] if sums[1:] else sums
    part, draw = blank(width, 126 + 20 * max(0, len(lines) - 2))
    draw.line((MARGIN, 22, width - MARGIN, 22), fill=FAINT)
    title = title_of(quantity, several[0].target_label)
    write(draw, (MARGIN, 38), title, 22, INK, bar_left - MARGIN - 60)
    for line, text in enumerate(lines):
        write(draw, (MARGIN, 70 + 20 * line), text, 15, SOFT, bar_left - MARGIN - 20)
    draw_color_bar(part, (bar_left, 60, BAR_WIDTH), question, quantity, scales.common)
    return part


def blocks_by_stage(manifest: Manifest, question: Question) -> dict[int, list[int]]:
    """Return the blocks asked for, stage by stage."""
    by_stage: dict[int, list[int]] = {}
    for index in question.blocks:
        by_stage.setdefault(manifest.blocks[index].stage, []).append(index)
    return by_stage


def line_of(
    groups: Sequence[tuple[str, list[Image.Image]]], columns: int, gap: int = GAP, page: int = WIDTH
) -> Image.Image:
    """Draw groups of tiles side by side, each under its heading; a longer group goes on below."""
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
    """Return stage and shape, and the range of the colours if every stage has its own."""
    channels, height, width = next(block for block in manifest.blocks if block.stage == stage).shape
    scale = ""
    if scales.common is None:
        low, high = scales.by_stage[stage]
        scale = f" · {low:.3g} to {high:.3g}"
    return f"Stage {stage} · {height} x {width} cells, {channels} channels{scale}"


def _tile(
    seen: Seen, question: Question, quantity: str, index: int, grey: NDArray[np.uint8], bounds: Bounds
) -> Image.Image:
    """Draw one block: its name, its number, and its map over the grey photograph."""
    block, size = seen.manifest.blocks[index], len(grey)
    tile = Image.new("RGB", (size, size + TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(tile)
    name_width = write(draw, (0, 0), block.name, 14, INK, size)
    write(draw, (name_width + 8, 0), kind_of(block), 14, SOFT, size - name_width - 8)
    write(draw, (0, 18), number_of(seen.values, quantity, index), 14, INK, size)
    pixels = cells_over(seen, question, quantity, index, grey, bounds)
    tile.paste(Image.fromarray(pixels), (0, TITLE_HEIGHT))
    return tile


def cells_over(
    seen: Seen, question: Question, quantity: str, index: int, grey: NDArray[np.uint8], bounds: Bounds
) -> NDArray[np.uint8]:
    """Draw a block's map over what the model saw, or by itself; RGB [size, size, 3]."""
    values = seen.block_map(quantity, index)
    paint = Paint(*bounds, question.colormap or MAPS[quantity].colormap, question.alpha)
    if question.render == "raw":
        return raw_cells(values, len(grey), paint)
    return overlay(values, seen.manifest.blocks[index], seen.manifest.preprocessing.crop, grey, paint)

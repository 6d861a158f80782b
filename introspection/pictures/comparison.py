"""Two photographs beside each other: every block's map of both, on one scale, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from artifact.manifest import Manifest
from artifact.preprocess import Preprocessed
from introspection.document import predictions_with_target
from introspection.measure import Quantities
from introspection.pictures.cells import grey_input, photograph
from introspection.pictures.lettering import text_width, write
from introspection.pictures.parts import (
    INK,
    MARGIN,
    PAPER,
    SOFT,
    blank,
    chosen_maps,
    draw_predictions,
    notes,
    png,
    stacked,
)
from introspection.pictures.sheet import (
    blocks_by_stage,
    cells_over,
    check_tiles,
    line_of,
    lines_of,
    section_title,
    stage_heading,
)
from introspection.quantities import OUTPUTS, STYLES, MapQuantity
from introspection.question import Options
from introspection.scales import Bounds, scales_of

COMPARED: tuple[MapQuantity, ...] = ("share", "ratio", "contribution")  # unless others are named
LETTERS = "AB"
WIDTH = 1600
COLUMNS = 4  # of pairs
GAP, SEAM = 28, 4  # between pairs, and between the two of a pair
TITLE_HEIGHT = 42  # of a pair
PHOTO_WIDTH, PHOTO_HEIGHT = 230, 170
MAX_PREDICTIONS = 5


class Subject(NamedTuple):
    """A photograph, what it is called, and what was measured of it."""

    name: str
    image: Preprocessed
    quantities: Quantities


def comparison_picture(pair: tuple[Subject, Subject], manifest: Manifest, options: Options) -> bytes:
    """The PNG: both photographs and their predictions, then for every quantity two tiles a block.

    Raises:
        ParameterError: as of `compared_maps`.
    """
    parts = [_header(pair, manifest, options)]
    for quantity in compared_maps(options, manifest):
        parts += _section(pair, manifest, options, quantity)
    return png(stacked(parts))


def compared_maps(options: Options, manifest: Manifest) -> tuple[MapQuantity, ...]:
    """The maps that the picture shows.

    Raises:
        ParameterError: only scalars are named, a map that does not exist for the artifact, or too many tiles.
    """
    maps = chosen_maps(options, manifest, COMPARED)
    check_tiles(2 * len(maps) * len(options.blocks))
    return maps


def _header(pair: tuple[Subject, Subject], manifest: Manifest, options: Options) -> Image.Image:
    part, draw = blank(WIDTH, 66 + PHOTO_HEIGHT + 14)
    room = WIDTH - 2 * MARGIN
    write(draw, (MARGIN, -3), manifest.name, 24, INK, room)
    crop = manifest.preprocessing.crop
    about = f"every block: output = {OUTPUTS[manifest.variant]} · seen as {crop} x {crop} pixels"
    remarks = dict.fromkeys(notes(manifest, options, subject.image) for subject in pair)
    write(draw, (MARGIN, 30), " · ".join(filter(None, (about, *remarks))), 15, SOFT, room)
    half = (WIDTH - 2 * MARGIN - GAP) // 2
    for place, subject in enumerate(pair):
        left = MARGIN + place * (half + GAP)
        picture = photograph(subject.image, PHOTO_WIDTH, PHOTO_HEIGHT)
        part.paste(picture, (left, 66))
        text = left + picture.width + 20
        right = left + half
        write(draw, (text, 62), f"{LETTERS[place]}  {subject.name}", 18, INK, right - text)
        best = predictions_with_target(subject.quantities, manifest, options.top_k, MAX_PREDICTIONS)
        draw_predictions(draw, (text, 94, right), best, subject.quantities.target, 14)
    return part


def _section(
    pair: tuple[Subject, Subject], manifest: Manifest, options: Options, quantity: MapQuantity
) -> list[Image.Image]:
    """Title, legend and colour bar of one quantity, then its pairs of tiles."""
    both = [subject.quantities for subject in pair]
    by_stage = blocks_by_stage(manifest, options)
    counts = [len(indices) for indices in by_stage.values()]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
    greys = [grey_input(subject.image, (width - SEAM) // 2) for subject in pair]
    scales = scales_of(both, manifest, options, quantity)
    groups = []
    for stage, indices in by_stage.items():
        bounds = scales.by_stage[stage]
        tiles = [_pair(both, manifest, options, quantity, index, greys, bounds) for index in indices]
        groups.append((stage_heading(manifest, scales, stage), tiles))
    title = section_title(both, manifest, options, quantity, scales, WIDTH)
    lines = lines_of(counts, COLUMNS)
    return [title, *(line_of([groups[place] for place in line], COLUMNS, GAP, WIDTH) for line in lines)]


def _pair(
    both: Sequence[Quantities],
    manifest: Manifest,
    options: Options,
    quantity: MapQuantity,
    index: int,
    greys: Sequence[NDArray[np.uint8]],
    bounds: Bounds,
) -> Image.Image:
    """One block of both images: its name, its two numbers, and its two maps in the same colours."""
    block, size, style = manifest.blocks[index], len(greys[0]), STYLES[quantity]
    pair = Image.new("RGB", (2 * size + SEAM, size + TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(pair)
    name = write(draw, (0, 0), block.name, 14, INK, pair.width)
    kind = "no shortcut" if block.shortcut == "none" else block.shortcut
    write(draw, (name + 8, 0), kind, 14, SOFT, pair.width - name - 8)
    for place, (quantities, grey) in enumerate(zip(both, greys, strict=True)):
        left = place * (size + SEAM)
        value = quantities.scalars[style.scalar][index]
        number = format(value, style.digits) if np.isfinite(value) else "none"
        write(draw, (left, 19), f"{LETTERS[place]}  {number}", 14, INK, size)
        pixels = cells_over(quantities, manifest, options, quantity, index, grey, bounds)
        pair.paste(Image.fromarray(pixels), (left, TITLE_HEIGHT))
    first, second = (quantities.scalars[style.scalar][index] for quantities in both)
    if np.isfinite(second - first):
        more = f"difference {second - first:+{style.digits.removeprefix('+')}}"
        write(draw, (pair.width - round(text_width(more, 14)), 0), more, 14, SOFT, pair.width)
    return pair

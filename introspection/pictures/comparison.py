"""Two photographs beside each other: every block's map of both, on one scale, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from artifact.manifest import Manifest
from introspection.document import predictions_with_target
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
    kind_of,
    notes,
    number_format,
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
from introspection.quantities import MAPS, OUTPUTS
from introspection.question import Question
from introspection.scales import Bounds, scales_of
from introspection.seen import Seen

COMPARED: tuple[str, ...] = ("share", "ratio", "contribution")  # unless others are named
LETTERS = "AB"
WIDTH = 1600
COLUMNS = 4  # of pairs
GAP, SEAM = 28, 4  # between pairs, and between the two of a pair
TITLE_HEIGHT = 42  # of a pair
PHOTO_WIDTH, PHOTO_HEIGHT = 230, 170
MAX_PREDICTIONS = 5


class Subject(NamedTuple):
    """What a photograph is called, and what was seen in it."""

    name: str
    seen: Seen


def comparison_picture(pair: tuple[Subject, Subject], question: Question) -> bytes:
    """Draw both photographs and their predictions, then for every quantity two tiles a block, as PNG.

    Raises:
        ParameterError: see `compared_maps`.
    """
    parts = [_header(pair, question)]
    for quantity in compared_maps(question, pair[0].seen.manifest):
        parts += _section(pair, question, quantity)
    return png(stacked(parts))


def compared_maps(question: Question, manifest: Manifest) -> tuple[str, ...]:
    """Return the maps that the picture shows.

    Raises:
        ParameterError: only scalars are named, a map that does not exist for the artifact, or too many tiles.
    """
    maps = chosen_maps(question, manifest, COMPARED)
    check_tiles(2 * len(maps) * len(question.blocks))
    return maps


def _header(pair: tuple[Subject, Subject], question: Question) -> Image.Image:
    manifest = pair[0].seen.manifest
    part, draw = blank(WIDTH, 66 + PHOTO_HEIGHT + 14)
    room = WIDTH - 2 * MARGIN
    write(draw, (MARGIN, -3), manifest.name, 24, INK, room)
    crop = manifest.preprocessing.crop
    about = f"every block: output = {OUTPUTS[manifest.variant]} · seen as {crop} x {crop} pixels"
    remarks = dict.fromkeys(notes(manifest, question, subject.seen.image) for subject in pair)
    write(draw, (MARGIN, 30), " · ".join(filter(None, (about, *remarks))), 15, SOFT, room)
    half = (WIDTH - 2 * MARGIN - GAP) // 2
    for place, subject in enumerate(pair):
        left = MARGIN + place * (half + GAP)
        picture = photograph(subject.seen.image, PHOTO_WIDTH, PHOTO_HEIGHT)
        part.paste(picture, (left, 66))
        text = left + picture.width + 20
        right = left + half
        write(draw, (text, 62), f"{LETTERS[place]}  {subject.name}", 18, INK, right - text)
        best = predictions_with_target(subject.seen, question.top_k, MAX_PREDICTIONS)
        draw_predictions(draw, (text, 94, right), best, subject.seen.values.target, 14)
    return part


def _section(pair: tuple[Subject, Subject], question: Question, quantity: str) -> list[Image.Image]:
    """Draw title, legend and colour bar of one quantity, then its pairs of tiles."""
    both, manifest = [subject.seen for subject in pair], pair[0].seen.manifest
    by_stage = blocks_by_stage(manifest, question)
    counts = [len(indices) for indices in by_stage.values()]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
    greys = [grey_input(seen.image, (width - SEAM) // 2) for seen in both]
    scales = scales_of(both, question, quantity)
    groups = []
    for stage, indices in by_stage.items():
        bounds = scales.by_stage[stage]
        tiles = [_pair(both, question, quantity, index, greys, bounds) for index in indices]
        groups.append((stage_heading(manifest, scales, stage), tiles))
    title = section_title(both, question, quantity, scales, WIDTH)
    lines = lines_of(counts, COLUMNS)
    return [title, *(line_of([groups[place] for place in line], COLUMNS, GAP, WIDTH) for line in lines)]


def _pair(
    both: Sequence[Seen],
    question: Question,
    quantity: str,
    index: int,
    greys: Sequence[NDArray[np.uint8]],
    bounds: Bounds,
) -> Image.Image:
    """Draw one block of both images: its name, its two numbers, and its two maps in the same colours."""
    block, size, digits = both[0].manifest.blocks[index], len(greys[0]), number_format(quantity)
    pair = Image.new("RGB", (2 * size + SEAM, size + TITLE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(pair)
    name = write(draw, (0, 0), block.name, 14, INK, pair.width)
    write(draw, (name + 8, 0), kind_of(block), 14, SOFT, pair.width - name - 8)
    first, second = (seen.values.scalars[MAPS[quantity].number][index] for seen in both)
    for place, (seen, grey, value) in enumerate(zip(both, greys, (first, second), strict=True)):
        left = place * (size + SEAM)
        number = format(value, digits) if np.isfinite(value) else "none"
        write(draw, (left, 19), f"{LETTERS[place]}  {number}", 14, INK, size)
        pixels = cells_over(seen, question, quantity, index, grey, bounds)
        pair.paste(Image.fromarray(pixels), (left, TITLE_HEIGHT))
    if np.isfinite(second - first):
        more = f"difference {second - first:+{digits.removeprefix('+')}}"
        write(draw, (pair.width - round(text_width(more, 14)), 0), more, 14, SOFT, pair.width)
    return pair

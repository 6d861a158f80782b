"""One block, large: the photograph, every map over the whole of it, and the block's numbers, as one PNG.

The maps stand in the order in which the block makes them: branch, shortcut, output; then what is derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from artifact.manifest import Block, Manifest
from introspection.document import predictions_with_target
from introspection.pictures.cells import (
    GreyPhotograph,
    Paint,
    grey_photograph,
    overlay_whole,
    photograph,
    raw_cells,
)
from introspection.pictures.lettering import text_width, write
from introspection.pictures.parts import (
    FAINT,
    INK,
    MARGIN,
    SOFT,
    blank,
    chosen_maps,
    draw_color_bar,
    draw_predictions,
    kind_of,
    notes,
    png,
    stacked,
    title_of,
)
from introspection.quantities import GROUPS, MAPS, NUMBERS, OUTPUTS, why_absent
from introspection.quantity import Drawn, Group, Member
from introspection.question import Question
from introspection.scales import colors_of
from introspection.seen import Seen
from introspection.steps import Steps
from introspection.usual import outside_bands, usual_band

WIDTH = 1600
GAP = 28
MAX_PANEL_HEIGHT = 640
MAX_GROUP_WIDTH = 340  # of numbers
NUMBER_GAP = 20  # between groups of numbers
LABEL_WIDTH = 80
USUAL_SIZES = (12, 11, 10, 9)  # of letters
PANEL_TITLE, PANEL_FOOT = 52, 86  # pixels above and below a panel's picture
MAX_PREDICTIONS = 3
UNUSUAL = "#c2410c"
SIGNS: dict[str, str] = {"shortcut": "+", "output": ">"}


class _Row(NamedTuple):
    label: str
    text: str
    usual: str
    beyond: str  # "above" or "below" what is usual, or empty


def block_picture(seen: Seen, question: Question, index: int) -> Steps[bytes]:
    """Draw the block `index` of the manifest's as PNG, each map a step.

    Raises:
        ParameterError: `quantities` names no map, or one that does not exist for the artifact.
    """
    existing = tuple(quantity for quantity in MAPS if not why_absent(quantity, seen.manifest))
    maps = chosen_maps(question, seen.manifest, existing)
    parts = [_header(seen, question, index)]
    if groups := _numbers(seen, question, index):
        parts.append(_number_strip(groups))
    columns = _num_columns(1 + len(maps))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    panels = [_photograph_panel(seen, question, width)]
    whole = grey_photograph(seen.image, width, MAX_PANEL_HEIGHT)
    for quantity in maps:
        yield
        panels.append(_map_panel(seen, question, whole, index, quantity, width))
    signs = _signs(maps)
    lines = [slice(start, start + columns) for start in range(0, len(panels), columns)]
    parts += [_line(panels[line], signs[line]) for line in lines]
    return png(stacked(parts))


def _num_columns(num_panels: int) -> int:
    """Return how many panels share a line: all of four or fewer, else half of them."""
    return num_panels if num_panels <= 4 else -(-num_panels // 2)


def _header(seen: Seen, question: Question, index: int) -> Image.Image:
    manifest = seen.manifest
    block = manifest.blocks[index]
    part, draw = blank(WIDTH, 112)
    room = WIDTH - 2 * MARGIN
    name = write(draw, (MARGIN, -6), block.name, 38, INK, room)
    where = f"block {index + 1} of {len(manifest.blocks)} of {manifest.name}"
    write(draw, (MARGIN + name + 18, 13), where, 18, SOFT, room - name - 18)
    write(draw, (MARGIN, 48), _description(manifest, block), 16, SOFT, room)
    remarks = notes(manifest, question, seen.image)
    if usual := manifest.reference:
        remarks += f" Small: what 5 to 95 % of {usual.num_images:,} images of {usual.dataset} gave."
    write(draw, (MARGIN, 72), remarks.strip(), 16, SOFT, room)
    return part


def _description(manifest: Manifest, block: Block) -> str:
    channels, height, width = block.shape
    sees = block.receptive_field.size
    kind = kind_of(block, " shortcut")
    pixel = "pixel" if block.stride == 1 else "pixels"
    return (
        f"{kind} · output = {OUTPUTS[manifest.variant]} · {channels} channels of {height} x {width} cells: "
        f"one every {block.stride} {pixel} of the model's input, each sees {sees} pixels"
    )


def _numbers(seen: Seen, question: Question, index: int) -> list[tuple[str, list[_Row]]]:
    """Return the numbers asked for that exist for this block, with their usual range, by heading."""
    beyond = outside_bands(seen, question, [index])[0] or {}
    under: dict[str, list[tuple[int, _Row]]] = {}
    for group, member, drawn in _drawn():
        rows = under.setdefault(drawn.heading, [])
        if group.name not in question.groups:
            continue
        name = group.full_name(member)
        for rank, (label, text) in enumerate(_texts(seen, group, member, drawn, index)):
            row = _Row(label, text, _usual(seen, name, drawn.digits, index), beyond.get(name, ""))
            rows.append((drawn.line + rank, row))
    return [
        (heading.format(seen.target_label), [row for _, row in sorted(rows, key=lambda placed: placed[0])])
        for heading, rows in under.items()
        if rows
    ]


def _drawn() -> Iterator[tuple[Group, Member, Drawn]]:
    """Yield every value that a picture of a block can show."""
    for group in GROUPS.values():
        for member in group.members:
            if member.drawn:
                yield group, member, member.drawn


def _texts(seen: Seen, group: Group, member: Member, drawn: Drawn, index: int) -> Iterator[tuple[str, str]]:
    """Yield label and text of a value of the block, or of each of its ranks."""
    name, values = group.full_name(member), seen.values
    if group.ranked:
        first = group.full_name(group.members[0])
        for rank, value in enumerate(values.ranked[name][index] if name in values.ranked else ()):
            if np.isfinite(value):
                yield (
                    drawn.label.format(round(values.ranked[first][index][rank])),
                    format(value, drawn.digits),
                )
    elif member.kind is str:
        best = values.classes[group.name][index] if group.name in values.classes else -1
        if best >= 0:
            yield drawn.label, seen.manifest.labels[best].label
    elif name in values.scalars and np.isfinite(values.scalars[name][index]):
        yield drawn.label, format(values.scalars[name][index], drawn.digits)


def _usual(seen: Seen, name: str, digits: str, index: int) -> str:
    """Return what 5 to 95 % of the validation images gave; empty where there is nothing to compare with."""
    band = usual_band(seen, name, index) if name in NUMBERS else None
    unsigned = digits.removeprefix("+")
    return f"{band[0]:{unsigned}} to {band[1]:{unsigned}}" if band else ""


def _number_strip(groups: Sequence[tuple[str, list[_Row]]]) -> Image.Image:
    """Draw groups of numbers side by side; mark unusual ones, and write the usual range beside them."""
    line_height = 24
    part, draw = blank(WIDTH, 40 + line_height * max(len(rows) for _, rows in groups) + 28)
    width = min((WIDTH - 2 * MARGIN + NUMBER_GAP) // len(groups), MAX_GROUP_WIDTH)
    room = width - NUMBER_GAP
    for place, (heading, rows) in enumerate(groups):
        left = MARGIN + place * width
        write(draw, (left, 0), heading, 15, INK, room)
        draw.line((left, 23, left + room, 23), fill=FAINT)
        for line, row in enumerate(rows):
            _draw_row(draw, (left, 32 + line * line_height, room), row)
    return part


def _draw_row(draw: ImageDraw.ImageDraw, box: tuple[int, int, int], row: _Row) -> None:
    """Draw label, number, mark and usual range, as large as there is room; `box` is left, top and width."""
    left, top, room = box
    write(draw, (left, top), row.label, 15, SOFT, LABEL_WIDTH)
    end = left + LABEL_WIDTH + 2
    end += write(draw, (end, top), row.text, 15, UNUSUAL if row.beyond else INK, left + room - end)
    if row.beyond:
        _draw_mark(draw, (end + 5, top + 4), row.beyond)
        end += 16
    width = left + room - end - 6
    if row.usual and (size := _largest(row.usual, width)):
        usual_left = left + room - round(text_width(row.usual, size))
        write(draw, (usual_left, top + 15 - size), row.usual, size, SOFT, room)


def _largest(text: str, width: int) -> int | None:
    """Return the largest of USUAL_SIZES in which a text fits; None if it never does."""
    return next((size for size in USUAL_SIZES if text_width(text, size) <= width), None)


def _draw_mark(draw: ImageDraw.ImageDraw, place: tuple[int, int], beyond: str) -> None:
    """Draw a triangle that points up or down."""
    x, y = place
    base, tip = (y + 9, y) if beyond == "above" else (y, y + 9)
    draw.polygon(((x, base), (x + 10, base), (x + 5, tip)), fill=UNUSUAL)


def _photograph_panel(seen: Seen, question: Question, width: int) -> Image.Image:
    """Draw the photograph and the most probable classes."""
    image = seen.image
    picture = photograph(image, width, MAX_PANEL_HEIGHT)
    panel, draw = blank(width, PANEL_TITLE + picture.height + PANEL_FOOT)
    write(draw, (0, 0), "Photograph", 20, INK, width)
    write(draw, (0, 26), f"{image.width} x {image.height} pixels", 15, SOFT, width)
    panel.paste(picture, (0, PANEL_TITLE))
    best = predictions_with_target(seen, question.top_k, MAX_PREDICTIONS)
    draw_predictions(draw, (0, PANEL_TITLE + picture.height + 12, width), best, seen.values.target, 14)
    return panel


def _map_panel(
    seen: Seen, question: Question, whole: GreyPhotograph, index: int, quantity: str, width: int
) -> Image.Image:
    """Draw one map over the grey photograph, or by itself, with its colour bar."""
    block, row, height = seen.manifest.blocks[index], MAPS[quantity], len(whole.grey)
    bounds = colors_of([seen], question, quantity, block.stage)
    paint = Paint(*bounds, question.colormap or row.colormap, question.alpha)
    values = seen.block_map(quantity, index)
    if question.render == "raw":
        pixels = raw_cells(values, min(width, height), paint)
    else:
        pixels = overlay_whole(values, block, seen.manifest.preprocessing.crop, whole, paint)
    panel, draw = blank(width, PANEL_TITLE + height + PANEL_FOOT)
    write(draw, (0, 0), title_of(quantity, seen.target_label), 20, INK, width)
    write(draw, (0, 26), row.brief, 15, SOFT, width)
    panel.paste(Image.fromarray(pixels), (0, PANEL_TITLE))
    draw_color_bar(panel, (0, PANEL_TITLE + height + 34, width), question, quantity, bounds)
    return panel


def _line(panels: Sequence[Image.Image], signs: Sequence[str]) -> Image.Image:
    """Draw panels side by side, each with its sign in the gap before it."""
    part, draw = blank(WIDTH, panels[0].height + GAP)
    middle = (PANEL_TITLE + panels[0].height - PANEL_FOOT) // 2
    for place, (panel, sign) in enumerate(zip(panels, signs, strict=True)):
        left = MARGIN + place * (panel.width + GAP)
        part.paste(panel, (left, 0))
        x = left - GAP // 2
        if sign:
            draw.line((x - 7, middle, x + 7, middle), fill=SOFT, width=2)
        if sign == "+":
            draw.line((x, middle - 7, x, middle + 7), fill=SOFT, width=2)
        elif sign == ">":
            draw.line(((x + 2, middle - 5), (x + 7, middle), (x + 2, middle + 5)), fill=SOFT, width=2)
    return part


def _signs(maps: Sequence[str]) -> list[str]:
    """Return the sign before the photograph and before each map: F + s > output if all three are shown."""
    whole = {"residual", "shortcut", "output"} <= set(maps)
    return ["", *(SIGNS.get(quantity, "") if whole else "" for quantity in maps)]

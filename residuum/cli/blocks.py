"""Tables of predictions, of blocks with small bars, and of two images beside each other.

The tables show documents of `introspection.document`; this module runs no graph.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from residuum.cli.tables import PIPED, bar, new_table, print_table, signed_bar, width_of, width_of_terminal

if TYPE_CHECKING:
    from rich.text import Text

    from artifact.manifest import Manifest
    from introspection.quantity import Group, Look
    from introspection.question import Question
    from introspection.seen import Seen

Document = Mapping[str, Any]  # of introspection.document, or a part of it
Scalars = Mapping[str, Iterable[float]]  # by name

PREDICTION_BAR = 20
SHORTEST_LABEL = 12  # columns
SHORT_KINDS = {"identity": "ident", "projection": "proj"}
MARKS = {"above": "▲", "below": "▼"}
POSITIVE, NEGATIVE, AMOUNT, UNUSUAL = "red", "blue", "cyan", "bold yellow"


class Size(NamedTuple):
    """One layout of the table of blocks: the widths of bars, texts and gaps in columns of the terminal.

    `squeezed` says what the layout leaves out: 1 uses short headings, 2 also omits the bars of `minor`
    scalars, 3 also omits the column of shortcuts.
    """

    bar: int
    text: int
    gap: int
    squeezed: int = 0


# From the widest to the narrowest; the first layout that fits the terminal is used.
SIZES = (
    Size(13, PIPED, 3),
    *(Size(bar, 34, 3) for bar in (13, 11, 9, 7)),
    *(Size(bar, 20, 2) for bar in (9, 7, 5)),
    *(Size(bar, 14, 1) for bar in (7, 5)),
    *(Size(bar, 12, 1, squeezed=1) for bar in (7, 5)),
    *(Size(bar, 12, 1, squeezed=2) for bar in (7, 5, 3)),
    *(Size(bar, 12, 1, squeezed=3) for bar in (3, 0)),
)


# Without `quantities`: these, or the second row for a network without shortcuts.
USUAL = ("share.residual", "ratio", "cosine", "contribution")
WITHOUT_SHORTCUTS = ("rms.residual", "rms.output", "relu.clip_fraction")
# If one of these is missing, or a group that has a column of text, a note below the table says why.
TOLD = ("share", "ratio", "cosine", "contribution")


class Column(NamedTuple):
    """One value for each block (None: it has none), and a mark for each value outside the usual band."""

    look: Look
    values: list[float | None]
    marks: list[str]

    def numbers(self) -> list[str]:
        """Return the formatted values, all of the same width, each followed by its mark."""
        shown = ["-" if value is None else format(value, self.look.digits) for value in self.values]
        width, marked = max(map(len, shown)), max(map(len, self.marks))
        return [f"{text:>{width}}{mark:{marked}}" for text, mark in zip(shown, self.marks, strict=True)]

    def bars(self, width: int) -> list[str]:
        """Return a bar for each value, on one scale; empty strings if `width` is 0 or the look has no bar."""
        whole = self.look.whole
        if whole is None:
            whole = max((abs(value) for value in self.values if value is not None), default=0.0)
        if not whole or not width:
            return [""] * len(self.values)
        parts = [(value or 0.0) / whole for value in self.values]
        return [signed_bar(part, width) if self.look.signed else bar(part, width) for part in parts]


def print_predictions(predictions: Sequence[Document]) -> None:
    """Print one line for each prediction; wrap labels that are too long for the terminal."""
    table = new_table("", ">%", "label", "wnid")
    for row in predictions:
        percent = f"{100 * row['probability']:.1f}"
        table.add_row(bar(row["probability"], PREDICTION_BAR), percent, row["label"], row["wnid"] or "")
    labels = table.columns[2]
    if (width := width_of_terminal()) and (excess := width_of(table) - width) > 0:
        longest = max(len(row["label"]) for row in predictions)
        labels.no_wrap, labels.max_width = False, max(SHORTEST_LABEL, longest - excess)
    print_table(table)


def print_blocks(document: Document, scalars: Scalars) -> None:
    """Print one line for each block: scalars, lens, and the top class without the block; then notes.

    Args:
        scalars: for each name one value for each block of the document; NaN: the block has none.
    """
    from introspection.quantities import GROUPS

    blocks = document["blocks"]
    columns = [_column(blocks, name, values, look_of(name)) for name, values in scalars.items()]
    columns = [column for column in columns if any(value is not None for value in column.values)]
    texts = {group.heading: _lines(group, blocks) for group in GROUPS.values() if group.line}
    texts = {heading: lines for heading, lines in texts.items() if any(lines)}
    print_table(block_table(blocks, columns, texts, width_of_terminal()))
    print_notes(notes(document))


def print_comparison(a: Document, b: Document, of_a: Scalars, of_b: Scalars) -> None:
    """Print one line for each block: each scalar of A and of B, and the difference B - A."""
    from introspection.quantity import Look

    columns = []
    for name in of_a:
        look = look_of(name)
        headed = Look(f"{look.heading}\nA", look.digits, short=f"{look.short or look.heading}\nA")
        first = _column(a["blocks"], name, of_a[name], headed)
        second = _column(b["blocks"], name, of_b[name], Look("\nB", look.digits))
        pairs = zip(first.values, second.values, strict=True)
        more = [None if x is None or y is None else y - x for x, y in pairs]
        if any(value is not None for value in more):
            digits = f"+{look.digits.removeprefix('+')}"
            difference = Column(Look("\nB - A", digits, None, signed=True), more, [""] * len(more))
            columns += [first, second, difference]
    print_table(block_table(a["blocks"], columns, {}, width_of_terminal()))
    targets = [(letter, document["target"]) for letter, document in (("A", a), ("B", b))]
    label = a["target"]["label"]
    said = [
        f"{letter}: {target['label']} {100 * target['probability']:.1f} %, logit {target['logit']:.2f}"
        for letter, target in targets
    ]
    if "lens.target_probability" in of_a:
        said.append(f"lens: the probability of {label}, had the network stopped after the block")
    if "lesion.target_delta_logit" in of_a:
        said.append(f"without it: how the logit of {label} changes when the block's branch is removed")
    print_notes(said + (_what_marks_mean(a) or _what_marks_mean(b)) + _what_is_missing(a))


def block_table(
    blocks: Sequence[Document],
    columns: Sequence[Column],
    texts: Mapping[str, Sequence[str]],
    width: int | None,
) -> Any:
    """Return a table of blocks, their values with bars, and texts, in the first layout that fits `width`.

    Without a width the widest layout is used. Numbers and names are never cut: if the narrowest layout does
    not fit, the table is wider than `width`.
    """
    for size in SIZES:
        table = _sized(blocks, columns, texts, size)
        if width is None or width_of(table) <= width:
            break
    return table


def _sized(
    blocks: Sequence[Document], columns: Sequence[Column], texts: Mapping[str, Sequence[str]], size: Size
) -> Any:
    table = new_table("block", gap=size.gap)
    rows: list[list[Any]] = [[block["name"]] for block in blocks]
    if size.squeezed < 3:
        table.add_column("via" if size.squeezed else "shortcut", no_wrap=True)
        for row, block in zip(rows, blocks, strict=True):
            row.append(
                SHORT_KINDS.get(block["shortcut"], block["shortcut"]) if size.squeezed else block["shortcut"]
            )
    for column in columns:
        look = column.look
        table.add_column((look.short or look.heading) if size.squeezed else look.heading, no_wrap=True)
        bars = column.bars(0 if size.squeezed > 1 and look.minor else size.bar)
        cells = zip(rows, column.values, bars, column.numbers(), strict=True)
        for row, value, drawn, number in cells:
            row.append(_cell(value or 0.0, look.signed, drawn, number))
    for heading, lines in texts.items():
        table.add_column(heading, no_wrap=True, max_width=size.text, overflow="ellipsis")
        for row, line in zip(rows, lines, strict=True):
            row.append(line)
    for row in rows:
        table.add_row(*row)
    return table


def _cell(value: float, signed: bool, drawn: str, number: str) -> Text:
    from rich.text import Text

    color = (POSITIVE if value > 0 else NEGATIVE) if signed else AMOUNT
    figures = number.rstrip("".join(MARKS.values()))
    return Text.assemble((drawn, color), " " * bool(drawn), figures, (number[len(figures) :], UNUSUAL))


def print_notes(lines: Sequence[str]) -> None:
    """Print sentences; wrap them on a terminal."""
    for line in lines:
        print(textwrap.fill(line, width_of_terminal() or PIPED, subsequent_indent="  "))


def notes(document: Document) -> list[str]:
    """Return what the logit consists of, what the columns and marks mean, and why a column is missing."""
    from introspection.pictures.parts import decomposition_text
    from introspection.quantities import GROUPS

    blocks, found = document["blocks"], []
    if document.get("decomposition"):
        found.append(f"{document['target']['label']}: {decomposition_text(document['decomposition'])}")
    found += [
        group.note
        for group in GROUPS.values()
        if group.note and any(block.get(group.name) for block in blocks)
    ]
    return found + _what_marks_mean(document) + _what_is_missing(document)


def _what_is_missing(document: Document) -> list[str]:
    from introspection.quantities import GROUPS

    by_reason: dict[str, list[str]] = {}
    of_text = [group.name for group in GROUPS.values() if group.line and not group.reminder]
    for name in (*TOLD, *of_text):
        if reason := document["null_reasons"].get(name):
            by_reason.setdefault(reason, []).append(name)
    return [f"no {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _what_marks_mean(document: Document) -> list[str]:
    if not any(block.get("outside_band") for block in document["blocks"]):
        return []
    usual = document["reference"]
    low, _, high = usual["percentiles"]
    images = f"{usual['num_images']:,} images of {usual['dataset']}"
    if any(block.get("lesion") for block in document["blocks"]):
        images += f" ({usual['num_lesion_images']:,} for lesions)"
    return [f"▲ ▼: above or below what {low:g} to {high:g} % of {images} gave"]


def _lines(group: Group, blocks: Sequence[Document]) -> list[str]:
    """Return what the table says of a group in each block; empty strings where there is nothing to say."""
    assert group.line is not None
    return [group.line(block[group.name]) if block.get(group.name) else "" for block in blocks]


def look_of(name: str) -> Look:
    """Return how a scalar is shown; scalars without a look of their own are shown under their name."""
    from introspection.quantities import NUMBERS
    from introspection.quantity import Look

    return NUMBERS[name][1].look or Look(name)


def shown_scalars(question: Question, manifest: Manifest) -> list[str]:
    """Return the names of the scalars in a table for this question: the usual ones, or those asked for."""
    from introspection.quantities import why_absent

    lesion = ["lesion.delta_logit"] if "lesion" in question.groups else []
    if not question.complete:
        return _named_scalars(question) + lesion
    exist = any(not why_absent(name, manifest) for name in USUAL)
    return [*(USUAL if exist else WITHOUT_SHORTCUTS), *lesion]


def compared_scalars(question: Question) -> list[str]:
    """Return the names of the scalars for two images: lens and lesions are about the common target."""
    names = {"lens": "lens.target_probability", "lesion": "lesion.target_delta_logit"}
    return _named_scalars(question) + [name for group, name in names.items() if group in question.groups]


def _named_scalars(question: Question) -> list[str]:
    """Return the scalars asked for, without those of groups that have columns of their own.

    Of the two shares, which sum to 1, the branch's is there as the number of the map.
    """
    from introspection.quantities import GROUPS, MAPS, scalar_names

    names = [MAPS[quantity].number for quantity in question.maps]
    for group in question.groups:
        if group != "share" and GROUPS[group].line is None:
            names += scalar_names(group)
    return list(dict.fromkeys(names))


def scalars_of(seen: Seen, question: Question, names: Sequence[str]) -> dict[str, list[float]]:
    """Return those of the scalars `names` that were measured: one value for each block asked for."""
    scalars, chosen = seen.values.scalars, list(question.blocks)
    return {name: scalars[name][chosen].tolist() for name in names if name in scalars}


def _column(blocks: Sequence[Document], name: str, values: Iterable[float], look: Look) -> Column:
    marks = [MARKS.get((block.get("outside_band") or {}).get(name, ""), "") for block in blocks]
    return Column(look, [float(value) if math.isfinite(value) else None for value in values], marks)

"""Tables and bars for the terminal.

A table on a terminal is as wide as the terminal; in a pipe nothing is cut and nothing is coloured.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from artifact.manifest import Manifest

PIPED = 10_000  # columns; a table takes what it needs
SPEED_BAR = 20  # columns


def new_table(*columns: str, gap: int = 3) -> Any:
    """Return a table with `gap` (1 to 3) blanks between columns; `>` before a heading aligns it right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # One column of a gap is the box's.
    padding = (0, int(gap > 2), 0, int(gap > 1))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if column != name else "left", no_wrap=True)
    return table


def print_table(table: Any) -> None:
    """Print a table without cutting anything; a narrower terminal breaks its lines."""
    _console(max(width_of_terminal() or PIPED, width_of(table))).print(table)


def width_of_terminal() -> int | None:
    """Return the width of the terminal; None if standard output is not a terminal."""
    return _console().width if sys.stdout.isatty() else None


def width_of(table: Any) -> int:
    return _console(PIPED).measure(table).maximum


def _console(width: int | None = None) -> Console:
    """Return a console that takes brackets and colons in labels literally; NO_COLOR also disables bold."""
    from rich.console import Console

    force = False if Console().no_color else None
    return Console(width=width, force_terminal=force, markup=False, emoji=False, highlight=False)


def bar(part: float, width: int) -> str:
    """Return a bar for a number in [0, 1], in eighths of a cell; numbers outside are clamped."""
    eighths = round(min(max(part, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[rest] * (rest > 0)).ljust(width)


def signed_bar(part: float, width: int) -> str:
    """Return a bar for a number in [-1, 1] that starts in the middle, in half cells.

    Unicode has no finer blocks that grow leftwards.
    """
    side = (width - 1) // 2
    full, rest = divmod(round(min(abs(part), 1.0) * side * 2), 2)
    if part < 0:
        return ("▐" * rest + "█" * full).rjust(side) + "│" + " " * side
    return " " * side + "│" + ("█" * full + "▌" * rest).ljust(side)


def print_graphs(manifest: Manifest) -> None:
    """Print the graphs: their distance from the source model, their accuracy, size and speed."""
    from export.report import HEADINGS, fastest, rows

    table = new_table("graph", "precision", ">max |Δlogit|", *(f">{name}" for name in HEADINGS[2:]), "speed")
    best = max((speed.images_per_s for g in manifest.graphs if (speed := fastest(g))), default=0)
    for graph, row in zip(manifest.graphs, rows(manifest), strict=True):
        speed = fastest(graph)
        length = bar(speed.images_per_s / best, SPEED_BAR) if speed else ""
        table.add_row(*row[:2], f"{graph.parity.max_abs_delta_logit:.1e}", *row[2:], length)
    print_table(table)
    for graph in manifest.graphs:
        if graph.verdict:
            print(f"{graph.kind}: {graph.verdict}")

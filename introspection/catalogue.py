"""The rows of quantities.py as documents: JSON for the page, Markdown tables for docs/introspection.md.

`python -m introspection.catalogue docs/introspection.md` rewrites the tables between their marks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from artifact.manifest import Variant
from introspection.quantities import GROUPS, MAPS, NUMBERS, lacking
from introspection.quantity import Group, Map, Member


def words() -> dict[str, Any]:
    """Return what the page shows of every quantity: `maps`, `numbers`, and `sections` of numbers."""
    sections: dict[str, list[str]] = {}
    for name, (group, _) in NUMBERS.items():
        sections.setdefault(group.section, []).append(name)
    return {
        "maps": {name: _words_of_map(row) for name, row in MAPS.items()},
        "numbers": {name: _words_of_number(member) for name, (_, member) in NUMBERS.items()},
        "sections": list(sections.items()),
    }


def _words_of_map(row: Map) -> dict[str, Any]:
    return {
        "title": row.title,
        "unit": row.unit,
        "digits": row.digits,
        "percent": row.percent,
        "signed": row.diverging,
        "diverging": row.diverging,
        "range": row.range,
        "scalar": row.number,
        "short": row.short,
        "ends": row.ends,
        "sentence": row.sentence,
        "not": row.caution,
        "of_variant": row.of_variant,
    }


def _words_of_number(member: Member) -> dict[str, Any]:
    return {
        "title": member.title,
        "unit": member.unit,
        "digits": member.digits,
        "percent": member.percent,
        "signed": member.signed,
        "diverging": member.signed,
        "sentence": member.sentence,
        "not": member.caution,
        "of_target": member.of_target,
    }


def tables() -> dict[str, str]:
    """Return the Markdown tables of docs/introspection.md, by the name in their marks."""
    return {"scalars": _scalars(), "variants": _variants(), "maps": _maps()}


def _scalars() -> str:
    rows = [(_fields(group), group.written, group.meaning) for group in GROUPS.values()]
    return _table(("field", "formula", "what it says"), rows)


def _fields(group: Group) -> str:
    names = [member.name for member in group.numbers if member.name]
    if len(names) < len(group.members):
        return f"`{group.name}`"
    first, *others = names
    return ", ".join((f"`{group.name}.{first}`", *(f"`.{name}`" for name in others)))


def _variants() -> str:
    rows = []
    for variant in get_args(Variant):
        by_reason: dict[str, list[str]] = {}
        for name, why in lacking(variant).items():
            by_reason.setdefault(why, []).append(f"`{name}`")
        nulls = [f"{', '.join(names)}: {why}" for why, names in by_reason.items()]
        rows.append((f"`{variant}`", "; ".join(nulls) or "nothing"))
    return _table(("`variant`", "null"), rows)


def _maps() -> str:
    return _table(
        ("quantity", "formula", "range"),
        [(f"`{name}`", row.written, row.bounds) for name, row in MAPS.items()],
    )


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def with_tables(text: str) -> str:
    """Return a Markdown text with the tables between `<!-- table NAME -->` and `<!-- end -->`."""
    for name, table in tables().items():
        before, mark, after = text.partition(f"<!-- table {name} -->\n")
        _, end, rest = after.partition("<!-- end -->")
        text = f"{before}{mark}\n{table}\n\n{end}{rest}" if end else text
    return text


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")

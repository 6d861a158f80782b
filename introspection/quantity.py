"""What a row of introspection/quantities.py says about a quantity: types without any row.

A `Group` has numbers, its `Member`s, one value for each block. A `Map` has one value for each position.
`Drawn` and `Look` say how a number is shown in a picture and in the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from artifact.manifest import Variant
from introspection.digits import DIGITS
from introspection.readings import FloatArray, Readings

ColormapName = Literal["viridis", "inferno", "magma", "coolwarm", "jet"]
# What a group is computed from: either graph, only the attribute graph, or a run without each block.
Source = Literal["introspect", "attribute", "lesions"]
Reasons = Mapping[Variant, str]  # why a variant lacks something


class Drawn(NamedTuple):
    """A line in the picture of one block: heading, place below it, label, and the number's format.

    A `{}` in the heading is the label of the target.
    """

    heading: str
    line: int
    label: str
    digits: str = ".3f"


class Look(NamedTuple):
    """A column of the terminal's tables.

    Attributes:
        heading, digits: the column's heading, and the format of its numbers.
        whole: the value of a full bar; None: the largest absolute value in the table; 0: no bar.
        signed: the bar starts in the middle of its cell and goes right or left.
        short: the heading in a narrow terminal.
        minor: omit the bar in a narrow terminal.
    """

    heading: str
    digits: str = ".3g"
    whole: float | None = 0
    signed: bool = False
    short: str = ""
    minor: bool = False


@dataclass(frozen=True)
class Member:
    """One value of a group for each block.

    Attributes:
        name: within the group; empty where the group is a number by itself.
        title, sentence, caution: its name, what it means, and what it does not mean.
        digits: on the page, after the point; of percent where `percent` is true.
        signed: numbers carry their sign, and 0 is the middle of the scale.
        kind: float, or what else the document holds.
        optional: it may be null where the group is not.
        of_target: about the target. The reference has this of the top class of every image, so that it says
            nothing about another class.
        lacking: the variants that have the group but not this.
        drawn, look: None: pictures do not show it; the terminal shows it under its name.
    """

    name: str
    title: str
    sentence: str
    caution: str = ""
    unit: str = ""
    digits: int = 3
    percent: bool = False
    signed: bool = False
    kind: type[float] | type[int] | type[str] | type[bool] = float
    optional: bool = True
    of_target: bool = False
    lacking: Reasons = field(default_factory=dict)
    drawn: Drawn | None = None
    look: Look | None = None


@dataclass(frozen=True)
class Group:
    """Numbers of every block that are asked for under one name.

    Attributes:
        name: in `quantities=` and in the document.
        section: the heading of its numbers on the page.
        formula: gives the members, [L] each; or [L, R], best first, where the group is `ranked`.
        members: in the document's order.
        written, meaning: the formula and what it says, in Markdown, for docs/introspection.md and OpenAPI.
        source: what it is computed from; `output`: the output of the attribute graph that it needs.
        digits: significant, in the document.
        lacking: the variants that do not have it.
        on_request: it is answered only if named. `reminder` says so in answers that leave nothing else out.
        ranked: the document has a list of R objects for each block instead of one object.
        line: what the terminal says of a block's object; `heading`: of that column; `note`: what that means.
            The terminal then has no columns for members that `line` tells.
    """

    name: str
    section: str
    formula: Callable[[Readings], Mapping[str, NDArray[Any]]]
    members: tuple[Member, ...]
    written: str
    meaning: str
    source: Source = "introspect"
    output: str = ""
    digits: int = DIGITS
    lacking: Reasons = field(default_factory=dict)
    on_request: bool = False
    reminder: str = ""
    ranked: bool = False
    line: Callable[[Any], str] | None = None
    heading: str = ""
    note: str = ""

    def full_name(self, member: Member) -> str:
        """Return the name of a member in the answer, as `rms.residual`."""
        return f"{self.name}.{member.name}" if member.name else self.name

    @cached_property
    def numbers(self) -> tuple[Member, ...]:
        """The members that are one number for each block."""
        return () if self.ranked else tuple(member for member in self.members if member.kind is float)


@dataclass(frozen=True)
class Map:
    """One value for every position of every block.

    Attributes:
        formula: gives [P].
        number: the number of a whole block that goes with the map. A variant or an artifact that lacks the
            number lacks the map. `word` and `short` name it in pictures and on the page.
        title, unit: `title_for` instead of `title` where the class of the answer can be named.
        brief, legend: what it shows, in half a line and in two; for pictures.
        sentence, caution: what it means and what it does not mean, for the page; `of_variant` in networks of
            another kind.
        written, bounds: the formula and the range in Markdown, for docs/introspection.md.
        range: fixed by its definition; None: 0, or minus the largest value, to the largest value.
        diverging: 0 is the middle of the scale.
        nullable: single positions can be null.
        digits, percent: of its numbers on the page.
        ends: what the least and the largest value mean.
    """

    name: str
    formula: Callable[[Readings], FloatArray]
    number: str
    word: str
    short: str
    title: str
    unit: str
    brief: str
    legend: str
    sentence: str
    caution: str
    written: str
    bounds: str
    ends: tuple[str, str]
    title_for: str = ""
    range: tuple[float, float] | None = None
    diverging: bool = False
    nullable: bool = False
    digits: int = 2
    percent: bool = False
    of_variant: Mapping[Variant, tuple[str, str]] = field(default_factory=dict)

    @property
    def colormap(self) -> ColormapName:
        return "coolwarm" if self.diverging else "viridis"

    @property
    def symmetric(self) -> bool:
        """Its scale goes from minus the largest value to the largest value."""
        return self.diverging and self.range is None

"""Tables for the terminal: bars to their scale, widths that hold, and nothing cut where there is no width."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from introspection.document import answer
from introspection.measure import measure
from introspection.quantity import Look
from introspection.question import IntrospectQuery, Question, resolve
from introspection.readings import LesionLogits
from residuum.cli.blocks import (
    Column,
    block_table,
    compared_scalars,
    look_of,
    notes,
    print_blocks,
    print_comparison,
    print_predictions,
    scalars_of,
    shown_scalars,
)
from residuum.cli.tables import bar, signed_bar
from tests.support.measured import Measured, made_reference, random_blocks, seen

SHAPES = [(8, 8, 8)] * 11 + [(16, 4, 4), (16, 4, 4), (32, 2, 2), (32, 2, 2)]
BANDS = {"ratio": (0.5, 0.6, 0.7), "share.residual": (0.0, 0.5, 1.0), "contribution": (-9e9, 0.0, 0.0)}


@pytest.fixture(scope="module")
def case() -> Measured:
    return random_blocks(SHAPES)


def documented(case: Measured, **asked: Any) -> tuple[dict[str, Any], dict[str, list[float]], Question]:
    """The answer, with a reference and with lesions if they are asked for, and the scalars for its table."""
    manifest = case.manifest.model_copy(update={"reference": made_reference(case.manifest, scalars=BANDS)})
    options = resolve(IntrospectQuery(**asked), manifest)
    lesions = None
    if "lesion" in options.groups:
        random = np.random.default_rng(0)
        logits = 3 * random.standard_normal((len(options.blocks) + 1, len(case.logits_K)))
        lesions = LesionLogits(options.blocks, logits.astype(np.float32))
    quantities = measure(manifest, case.outputs, target=options.target.index, lesions=lesions)
    found = seen(quantities, manifest)
    return answer(found, options), scalars_of(found, options, shown_scalars(options, manifest)), options


def lines_of(table: Any, width: int = 1000) -> list[str]:
    """As printed, without colours and the blanks at the ends."""
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_bars() -> None:
    assert bar(0.5, 4) == "██  "
    assert bar(1.0, 4) == bar(7.0, 4) == "████"
    assert bar(0.0, 4) == bar(-1.0, 4) == "    "
    assert bar(1 / 32, 4) == "▏   "
    assert signed_bar(0.0, 7) == "   │   "
    assert signed_bar(1.0, 7) == signed_bar(3.0, 7) == "   │███"
    assert signed_bar(-0.5, 7) == " ▐█│   "
    assert signed_bar(0.5, 7) == "   │█▌ "


def test_a_column_is_one_scale_and_one_width() -> None:
    column = Column(Look("x", "+.1f", None, signed=True), [10.0, -5.0, None], ["▲", "", ""])
    assert column.bars(5) == ["  │██", " █│  ", "  │  "]
    assert column.numbers() == ["+10.0▲", " -5.0 ", "    - "]
    assert Column(look_of("share.residual"), [0.5], [""]).bars(4) == ["██  "]
    assert Column(Look("x"), [0.5], [""]).bars(4) == [""]


@pytest.mark.parametrize("width", [20, 40, 60, 71])
def test_a_terminal_too_narrow_loses_no_name_and_no_number(
    case: Measured, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document, scalars, _ = documented(case, lesion=True)
    monkeypatch.setattr("residuum.cli.blocks.width_of_terminal", lambda: width)
    print_blocks(document, scalars)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage")]
    for place, (block, line) in enumerate(zip(document["blocks"], rows, strict=True)):
        assert line.startswith(f"{block['name']} ")
        assert len(scalars) == 5
        for name, values in scalars.items():
            assert format(values[place], look_of(name).digits) in line


@pytest.mark.parametrize("width", [30, 60, 80])
def test_predictions_in_a_narrow_terminal_are_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label = "a label as long as those of ImageNet, with several names, all of them in one line"
    monkeypatch.setattr("residuum.cli.blocks.width_of_terminal", lambda: width)
    print_predictions([{"probability": 0.4567, "label": label, "wnid": "n01234567"}])
    printed = capsys.readouterr().out
    assert "45.7" in printed
    assert "n01234567" in printed
    assert set(label.split()) <= set(printed.split())
    if width == 80:
        assert max(len(line.rstrip()) for line in printed.splitlines()) <= width


@pytest.mark.parametrize("lesion", [False, True])
@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_table_fits_and_no_number_is_cut(
    case: Measured,
    width: int,
    lesion: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document, scalars, _ = documented(case, lesion=lesion)
    monkeypatch.setattr("residuum.cli.blocks.width_of_terminal", lambda: width)
    print_blocks(document, scalars)
    printed = capsys.readouterr().out
    table = [line.rstrip() for line in printed.splitlines() if line.startswith("stage")]
    assert len(table) == len(document["blocks"])
    assert max(map(len, table)) <= width
    for block, line in zip(document["blocks"], table, strict=True):
        share, contribution = block["share"]["residual"], block["contribution"]
        assert line.startswith(block["name"])
        assert f"{share:.2f}" in line
        assert f"{contribution:+.2f}" in line
        assert ("▲" in line) == ("above" in block["outside_band"].values())
        if lesion:
            assert f"{block['lesion']['delta_logit']:+.2f}" in line
    assert "█" in "".join(table)
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width


def test_without_a_width_all_is_written_out(case: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    document, scalars, _ = documented(case, lesion=True)
    for block in document["blocks"]:
        if block["lens"]:
            block["lens"]["label"] = "a label as long as those of ImageNet, with several names, all of them"
    print_blocks(document, scalars)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "\x1b" not in printed
    assert printed.count("all of them") == 2
    assert "projection" in printed


def test_a_label_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would take brackets for styles and colons for emoji."""
    label = "[bold]cat[/bold] :cat: [x"
    print_predictions([{"probability": 0.5, "label": label, "wnid": None}])
    assert label in capsys.readouterr().out


def test_a_table_has_what_was_asked_for(case: Measured) -> None:
    for asked, names in {
        "": ["share.residual", "ratio", "cosine", "contribution"],
        "residual": ["rms.residual"],
        "share,lens": ["share.residual"],
        "rms": ["rms.residual", "rms.shortcut", "rms.output"],
        "lesion": ["lesion.delta_logit"],
    }.items():
        _, scalars, _ = documented(case, quantities=asked)
        assert list(scalars) == names
    document, scalars, _ = documented(case, quantities="rms", blocks="stage3.1")
    print_blocks(document, scalars)


def test_notes_say_what_the_table_does_not(case: Measured) -> None:
    document, _, _ = documented(case, lesion=True)
    text = "\n".join(notes(document))
    assert f"{document['target']['label']}: logit {document['target']['logit']:.2f} = stem" in text
    assert "5 to 95 % of 100 images of made up" in text
    assert "lens: " in text
    assert "without it: " in text

    plain, scalars, _ = documented(random_blocks(SHAPES, variant="plain"))
    assert "no share, ratio, cosine: a plain network has no shortcut" in "\n".join(notes(plain))
    assert set(scalars) == {"rms.residual", "rms.output", "relu.clip_fraction"}
    only, _, _ = documented(case, quantities="rms")
    assert notes(only) == []


def test_what_is_null_in_every_block_has_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    document, scalars, _ = documented(random_blocks(SHAPES, variant="plain"))
    print_blocks(document, scalars)
    heading, _, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["block", "shortcut", "rms.residual", "rms.output", "clipped", "lens"]
    rms = document["blocks"][0]["rms"]
    assert f"{rms['residual']:.3g}" in first
    assert f"{rms['output']:.3g}" in first


def test_two_images_stand_beside_each_other(case: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    """The difference is B's less A's, and the longest bar is that of the largest difference."""
    a, of_a, _ = documented(case, quantities="ratio")
    b, of_b, _ = documented(random_blocks(SHAPES, seed=1), quantities="ratio")
    print_comparison(a, b, of_a, of_b)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("stage")]
    differences = np.subtract(of_b["ratio"], of_a["ratio"])
    for line, first, second, difference in zip(rows, of_a["ratio"], of_b["ratio"], differences, strict=True):
        assert f"{first:.2f}" in line
        assert f"{second:.2f}" in line
        assert f"{difference:+.2f}" in line
    lengths = [line.count("█") for line in rows]
    assert lengths[int(np.abs(differences).argmax())] == max(lengths) > 3
    assert sum(line.startswith(("A: class", "B: class")) for line in lines) == 2


def test_two_images_are_compared_by_one_class(case: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    """Lens and lesions of the target, for each image has a top class of its own."""
    asked = {"quantities": "lens,lesion", "target": "3"}
    a, _, options = documented(case, **asked)
    b, _, _ = documented(random_blocks(SHAPES, seed=1), **asked)
    names = compared_scalars(options)
    assert names == ["lens.target_probability", "lesion.target_delta_logit"]
    members = [name.split(".") for name in names]
    of_a, of_b = (
        {
            f"{group}.{member}": [(block[group] or {}).get(member, math.nan) for block in document["blocks"]]
            for group, member in members
        }
        for document in (a, b)
    )
    print_comparison(a, b, of_a, of_b)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("stage")]
    for first, second, line in zip(a["blocks"], b["blocks"], rows, strict=True):
        assert f"{first['lesion']['target_delta_logit']:+.2f}" in line
        assert f"{second['lesion']['target_delta_logit']:+.2f}" in line
    assert f"{a['blocks'][-1]['lens']['target_probability']:.2f}" in rows[-1]
    assert "without it: how the logit of class 3 changes" in printed
    assert "lens: the probability of class 3" in printed


def test_a_comparison_says_what_is_missing(case: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    document, _, _ = documented(case, quantities="lens", blocks="stage1")
    nothing = {"lens.target_probability": [math.nan] * len(document["blocks"])}
    print_comparison(document, document, nothing, nothing)
    assert "no lens: only blocks" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_a_comparison_fits(case: Measured, width: int) -> None:
    blocks = documented(case)[0]["blocks"]
    values = [-0.5] * len(blocks)
    columns = [Column(Look("contribution\nA", "+.2f", short="contrib\nA"), values, ["▼"] * len(blocks))] * 3
    columns += [Column(Look("\nB", "+.2f"), values, ["▼"] * len(blocks))] * 3
    columns += [Column(Look("\nB - A", "+.2f", None, signed=True), values, [""] * len(blocks))] * 3
    lines = lines_of(block_table(blocks, columns, {}, width), width)
    assert all(len(line) <= width and "…" not in line for line in lines)
    assert all(line.count("-0.50") == 9 for line in lines if line.startswith("stage"))

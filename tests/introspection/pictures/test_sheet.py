"""The pictures: sound PNGs with a tile for every block or map asked for, in the declared colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifact.errors import ParameterError
from artifact.manifest import Label, Manifest
from introspection import scales
from introspection.forms import BY_SUFFIX
from introspection.measure import Values, measure
from introspection.pictures.block import UNUSUAL, _draw_row, _Row, block_picture
from introspection.pictures.colormaps import colorize
from introspection.pictures.comparison import Subject, compared_maps, comparison_picture
from introspection.pictures.parts import ACCENT, blank, decomposition_text, number_of
from introspection.pictures.sheet import WIDTH, contact_sheet, packed
from introspection.quantities import MAPS, NUMBERS
from introspection.quantity import ColormapName
from introspection.question import IntrospectQuery, resolve
from introspection.scales import map_range
from introspection.steps import Steps, finish
from tests.support.measured import Measured, made_manifest, made_reference, measured, random_blocks, seen

SHAPES = [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


@pytest.fixture(scope="module")
def case() -> Measured:
    return random_blocks(SHAPES)


def sheet(case: Measured, **given: Any) -> NDArray[np.uint8]:
    return drawn(contact_sheet, case.values, case.manifest, **given)


def drawn(
    draw: Callable[..., Steps[bytes]], values: Values, manifest: Manifest, /, *rest: int, **given: Any
) -> NDArray[np.uint8]:
    question = resolve(IntrospectQuery(**given), manifest)
    return pixels(finish(draw(seen(values, manifest), question, *rest)))


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def pixels_of_color(picture: NDArray[np.uint8], color: NDArray[np.float64] | list[int]) -> int:
    return int((picture == np.rint(color)).all(-1).sum())


def pixels_of(picture: NDArray[np.uint8], value: float, colormap: ColormapName = "viridis") -> int:
    """Of the colour for a value in [0, 1], where nothing is mixed into it."""
    return pixels_of_color(picture, colorize(np.array(value), colormap))


def test_one_section_by_default_and_one_for_each_quantity_named(case: Measured) -> None:
    default = sheet(case)
    assert default.shape[1] == WIDTH
    assert np.array_equal(default, sheet(case, quantities="share"))
    three = sheet(case, quantities="share,residual,cosine")
    header = 2 * len(default) - len(sheet(case, quantities="share,ratio"))
    assert len(three) - header == 3 * (len(default) - header)


def test_a_sheet_needs_a_map(case: Measured) -> None:
    with pytest.raises(ParameterError, match="pictures need one"):
        sheet(case, quantities="rms,relu")


@pytest.mark.parametrize(
    ("form", "num_blocks", "quantities", "drawn"),
    [
        ("png", 142, ",".join(tuple(MAPS)), True),
        ("png", 143, ",".join(tuple(MAPS)), False),
        ("png", 1000, "", True),
        ("png", 1001, "", False),
        ("zip", 64, "", True),
        ("zip", 65, "share", False),
        ("json", 1001, "", True),
        ("npz", 1001, "", True),
    ],
)
def test_pictures_have_a_limit(form: str, num_blocks: int, quantities: str, drawn: bool) -> None:
    """It is known before anything is measured."""
    manifest = made_manifest([(8, 4, 4)] * num_blocks)
    asked, shown = resolve(IntrospectQuery(quantities=quantities), manifest), BY_SUFFIX[f".{form}"].shown
    if drawn:
        assert shown(asked, manifest).blocks == asked.blocks
    else:
        with pytest.raises(ParameterError, match=r"blocks: .* Name fewer in blocks="):
            shown(asked, manifest)
    first = resolve(IntrospectQuery(blocks="stage1.0"), manifest)
    assert shown(first, manifest) == first


@pytest.mark.parametrize(("num_blocks", "drawn"), [(71, True), (72, False)])
def test_a_comparison_has_a_limit(num_blocks: int, drawn: bool) -> None:
    manifest = made_manifest([(8, 4, 4)] * num_blocks)
    asked = resolve(IntrospectQuery(quantities=",".join(tuple(MAPS))), manifest)
    if drawn:
        assert compared_maps(asked, manifest) == tuple(MAPS)
    else:
        with pytest.raises(ParameterError, match="Name fewer"):
            compared_maps(asked, manifest)


def test_a_picture_is_drawn_in_steps(case: Measured) -> None:
    """A sheet takes a step for each tile, a block's picture one for each map, a ZIP all of these."""
    question = resolve(IntrospectQuery(quantities="share,ratio"), case.manifest)
    found = seen(case.values, case.manifest)
    for steps, num_steps in (
        (contact_sheet(found, question), 2 * 4),
        (block_picture(found, question, 2), 2),
        (BY_SUFFIX[".zip"].steps(found, question), 2 * 4 + 4 * 2),
    ):
        assert len(list(steps)) == num_steps


def test_a_range_is_found_once_for_each_stage(case: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, int | None]] = []

    def noted(*given: Any) -> tuple[float, float]:
        found.append((given[1], given[3]))
        return map_range(*given)

    monkeypatch.setattr(scales, "map_range", noted)
    sheet(case, quantities="share,residual")
    assert [quantity for quantity, _ in found] == ["residual", "share"]
    found.clear()
    sheet(case, quantities="residual", scale="stage")
    assert found == [("residual", 1), ("residual", 2), ("residual", 3)]


@pytest.mark.parametrize("render", ["raw", "overlay"])
@pytest.mark.parametrize("scale", ["image", "stage"])
@pytest.mark.parametrize("colormap", [None, "jet"])
def test_every_way_to_render(case: Measured, render: str, scale: str, colormap: str | None) -> None:
    sheet(case, quantities=",".join(tuple(MAPS)), render=render, scale=scale, colormap=colormap)


def test_raw_tiles_have_the_declared_colours() -> None:
    """A branch that does everything, beside one that does nothing: the two ends of the scale."""
    s = np.ones((8, 4, 4), np.float32)
    case = measured([s, 0 * s], [0 * s, s])
    picture = sheet(case, render="raw")
    nothing, everything = colorize(np.array([0.0, 1.0]), "viridis")
    assert pixels_of_color(picture, nothing) > 10_000
    assert pixels_of_color(picture, nothing) == pytest.approx(pixels_of_color(picture, everything), rel=1e-3)
    assert pixels_of_color(sheet(case, render="raw", blocks="stage1.0"), nothing) < 100


def test_gates_are_written_on_the_sheet(case: Measured) -> None:
    plain_sheet, gated = sheet(case), sheet(case, gates="stage2:0.5")
    assert plain_sheet.shape == gated.shape
    assert not np.array_equal(plain_sheet[:300], gated[:300])
    assert np.array_equal(plain_sheet[300:], gated[300:])


def test_any_label_can_be_written() -> None:
    labels = [Label(label=label) for label in ("Eßzimmerstühle " * 20, "こけし\nkokeshi", "", "crème brûlée")]
    case = random_blocks(SHAPES)
    manifest = made_manifest(SHAPES, labels=labels)
    options = resolve(IntrospectQuery(), manifest)
    quantities = Measured(
        manifest, case.residuals, case.shortcuts, case.logits_K[:4], case.scalars_LS, case.maps_MP
    ).values
    assert finish(contact_sheet(seen(quantities, manifest), options)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("counts", "columns", "lines"),
    [
        ([2, 2, 2, 2], 4, [[0, 1], [2, 3]]),  # ResNet-18
        ([3, 4, 6, 3], 6, [[0], [1], [2], [3]]),  # ResNet-34 and 50
        ([3, 4, 23, 3], 8, [[0, 1], [2], [3]]),  # ResNet-101
        ([3, 8, 36, 3], 9, [[0], [1], [2], [3]]),  # ResNet-152
        ([3, 3, 3], 4, [[0], [1], [2]]),  # ResNet-20
        ([18, 18, 18], 9, [[0], [1], [2]]),  # ResNet-110
        ([1], 4, [[0]]),
    ],
)
def test_lines_of_a_sheet(counts: list[int], columns: int, lines: list[list[int]]) -> None:
    assert packed(counts) == (columns, lines)


def test_a_long_stage_goes_on_below() -> None:
    deep = random_blocks([(4, 4, 4)] * 12)
    assert len(sheet(deep)) > len(sheet(deep, blocks="stage1.0")) + 100


def of_one_value(value: float) -> Values:
    """Two blocks whose branches have the same value everywhere, and contributions of plus and minus it."""
    s = np.ones((8, 4, 4), np.float32)
    quantities = measured([value * s, value * s], [s, s]).values
    contribution = np.repeat([value, -value], 16)
    return replace(quantities, maps=quantities.maps | {"contribution": contribution})


TWO_BLOCKS = made_manifest([(8, 4, 4), (8, 4, 4)])


def test_contributions_are_drawn_around_zero() -> None:
    asked = {"quantities": "contribution", "render": "raw"}
    picture = drawn(contact_sheet, of_one_value(3.0), TWO_BLOCKS, **asked)
    against, neither, for_it = (pixels_of(picture, place, "coolwarm") for place in (0, 0.5, 1))
    assert against > 10_000
    assert for_it > 10_000
    assert neither < 100
    nothing = drawn(contact_sheet, of_one_value(0.0), TWO_BLOCKS, **asked)
    assert pixels_of(nothing, 0.5, "coolwarm") > 20_000


def test_the_scale_of_the_reference_is_the_same_for_every_image() -> None:
    manifest = TWO_BLOCKS.model_copy(update={"reference": made_reference(TWO_BLOCKS, maps={"residual": 2.0})})
    places = {}
    for value in (1.0, 2.0, 7.0):
        asked = {"quantities": "residual", "render": "raw"}
        by_itself = drawn(contact_sheet, of_one_value(value), manifest, **asked)
        assert pixels_of(by_itself, 1.0) > 20_000
        picture = drawn(contact_sheet, of_one_value(value), manifest, scale="reference", **asked)
        places[value] = [place for place in (0.5, 1.0) if pixels_of(picture, place) > 20_000]
    assert places == {1.0: [0.5], 2.0: [1.0], 7.0: [1.0]}


def test_the_logit_is_written_as_a_sum() -> None:
    parts = {"stem": -0.2, "shortcut_biases": 2.09, "head_bias": -0.1, "blocks": 7.81, "logit": 9.6}
    written = "logit 9.60 = stem -0.20 + blocks 7.81 + shortcut biases 2.09 - head bias 0.10"
    assert decomposition_text(parts) == written


def test_a_block_is_drawn_with_all_of_its_maps_or_those_named(case: Measured) -> None:
    def picture(**given: Any) -> NDArray[np.uint8]:
        return drawn(block_picture, case.values, case.manifest, 2, **given)

    two_lines, one_line = picture(), picture(quantities="share,ratio,cosine")
    assert two_lines.shape[1] == one_line.shape[1] > WIDTH
    assert len(two_lines) > len(one_line) + 300
    assert not np.array_equal(two_lines, picture(gates="stage2:0.5"))
    with pytest.raises(ParameterError, match="pictures need one"):
        picture(quantities="rms")


@pytest.mark.parametrize("render", ["raw", "overlay"])
def test_a_plain_network_s_block_has_what_exists(render: str) -> None:
    case = random_blocks(SHAPES, variant="plain")
    drawn(block_picture, case.values, case.manifest, 0, render=render, scale="stage")
    with pytest.raises(ParameterError, match="no share to draw"):
        drawn(block_picture, case.values, case.manifest, 0, quantities="share")


def test_a_block_s_map_has_the_declared_colours() -> None:
    asked = {"quantities": "residual", "render": "raw"}
    picture = drawn(block_picture, of_one_value(2.0), TWO_BLOCKS, 1, **asked)
    assert pixels_of(picture, 1.0) > 100_000


def test_unusual_numbers_of_a_block_are_marked() -> None:
    marked = []
    for band in ((0.0, 1.0, 9.0), (0.0, 0.5, 1.0), (5.0, 6.0, 9.0)):
        reference = made_reference(TWO_BLOCKS, scalars={"ratio": band})
        manifest = TWO_BLOCKS.model_copy(update={"reference": reference})
        picture = drawn(block_picture, of_one_value(2.0), manifest, 0, quantities="ratio")
        marked.append(picture)
    color = [int(UNUSUAL[place : place + 2], 16) for place in (1, 3, 5)]
    usual, above, below = (pixels_of_color(picture, color) for picture in marked)
    assert usual == 0
    assert above > 20
    assert below > 20
    assert not np.array_equal(marked[1], marked[2])


def test_the_top_class_s_band_is_not_shown_beside_another_class_s_number(case: Measured) -> None:
    worst = int(case.logits_K.argmin())
    other = measure(case.manifest, case.outputs, target=worst)
    for quantities, has_band in ((case.values, True), (other, False)):
        pictures = []
        for band in ((-9.0, 1.0, 9.0), (-8.0, 1.0, 8.0)):
            reference = made_reference(case.manifest, scalars={"contribution": band})
            manifest = case.manifest.model_copy(update={"reference": reference})
            pictures.append(drawn(block_picture, quantities, manifest, 0, quantities="contribution"))
        assert np.array_equal(*pictures) != has_band


def test_every_marked_number_of_six_groups_has_its_band_beside_it() -> None:
    """Room as of a group where all six are shown, with numbers as wide as they usually get."""
    for digits in (member.drawn.digits for _, member in NUMBERS.values() if member.drawn):
        usual = f"{-12.345:{digits.removeprefix('+')}} to {-10.123:{digits.removeprefix('+')}}"
        row = _Row("probability", f"{-23.456:{digits}}", usual, "below")
        bare, whole = (blank(252, 24) for _ in range(2))
        _draw_row(bare[1], (0, 0, 239), row._replace(usual=""))
        _draw_row(whole[1], (0, 0, 239), row)
        added = np.nonzero((np.asarray(bare[0]) != np.asarray(whole[0])).any(-1).any(0))[0]
        assert len(added) > 30, f"no band beside a number of {digits}"
        inked = np.nonzero((np.asarray(bare[0]) < 200).any(-1).any(0))[0]
        assert inked.max() + 4 < added.min()
        assert added.max() <= 239


def test_numbers_of_pictures_have_fixed_digits(case: Measured) -> None:
    values = {
        "share.residual": 0.27,
        "ratio": 1.0,
        "cosine": 0.1,
        "contribution": 2.0,
        "rms.residual": 12.3456,
    }
    scalars = case.values.scalars | {name: np.full(4, value) for name, value in values.items()}
    quantities = replace(case.values, scalars=scalars)
    maps: tuple[str, ...] = ("share", "ratio", "cosine", "contribution", "residual")
    assert [number_of(quantities, quantity, 0).split()[-1] for quantity in maps] == [
        "0.270",
        "1.000",
        "+0.100",
        "+2.00",
        "12.346",
    ]


@pytest.mark.parametrize("draw", [contact_sheet, block_picture])
def test_a_target_that_is_not_among_the_best_is_listed(
    case: Measured, draw: Callable[..., Steps[bytes]]
) -> None:
    rest = (0,) if draw is block_picture else ()
    accent = [int(ACCENT[place : place + 2], 16) for place in (1, 3, 5)]
    worst = int(case.logits_K.argmin())
    for target in (None, worst):
        quantities = measure(case.manifest, case.outputs, target=target)
        picture = drawn(draw, quantities, case.manifest, *rest, quantities="residual", colormap="inferno")
        assert pixels_of_color(picture, accent) > 10


def test_two_images_are_compared_on_one_scale() -> None:
    options = resolve(IntrospectQuery(quantities="residual", render="raw"), TWO_BLOCKS)
    weak, strong = (Subject(f"{value}.jpg", seen(of_one_value(value), TWO_BLOCKS)) for value in (1.0, 2.0))
    picture = pixels(comparison_picture((weak, strong), options))
    assert pixels_of(picture, 0.5) == pytest.approx(pixels_of(picture, 1.0), rel=0.01)
    assert pixels_of(picture, 0.5) > 20_000
    alone = pixels(comparison_picture((weak, weak), options))
    assert pixels_of(alone, 1.0) == pytest.approx(2 * pixels_of(picture, 1.0), rel=0.01)


@pytest.mark.parametrize("scale", ["image", "stage"])
def test_a_comparison_shows_share_ratio_and_contribution_unless_told_otherwise(
    case: Measured, scale: str
) -> None:
    lengths = []
    for quantities in ("", "share,ratio,contribution", "share"):
        options = resolve(IntrospectQuery(quantities=quantities, scale=scale), case.manifest)
        found = seen(case.values, case.manifest)
        pair = (Subject("a.jpg", found), Subject("b.jpg", found))
        lengths.append(len(pixels(comparison_picture(pair, options))))
    assert lengths[0] == lengths[1] > lengths[2] + 500

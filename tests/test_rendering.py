"""The contact sheet: a sound PNG with a tile for every block asked for, and legible text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.manifest import Label
from service.colormaps import colorize
from service.introspection import MAP_QUANTITIES
from service.introspection_query import IntrospectQuery, ParameterError, resolve
from service.rendering import STYLES, WIDTH, contact_sheet, packed
from tests.measured import Measured, made_manifest, measured, random_blocks, seen

SHAPES = [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


@pytest.fixture(scope="module")
def case() -> Measured:
    return random_blocks(SHAPES)


def sheet(case: Measured, **given: Any) -> NDArray[np.uint8]:
    options = resolve(IntrospectQuery(**given), case.manifest)
    data = contact_sheet(case.quantities, case.manifest, options, seen())
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def pixels_of_color(picture: NDArray[np.uint8], color: NDArray[np.float64]) -> int:
    return int((picture == np.rint(color)).all(-1).sum())


def test_every_quantity_has_a_style() -> None:
    assert set(STYLES) == set(MAP_QUANTITIES)


def test_one_section_by_default_and_one_for_each_quantity_named(case: Measured) -> None:
    default = sheet(case)
    assert default.shape[1] == WIDTH
    assert np.array_equal(default, sheet(case, quantities="share"))
    three = sheet(case, quantities="share,residual,cosine")
    header = 2 * len(default) - len(sheet(case, quantities="share,ratio"))
    assert len(three) - header == 3 * (len(default) - header)


def test_a_sheet_needs_a_map(case: Measured) -> None:
    with pytest.raises(ParameterError, match="needs a map"):
        sheet(case, quantities="rms,relu")


@pytest.mark.parametrize("render", ["raw", "overlay"])
@pytest.mark.parametrize("scale", ["image", "stage"])
@pytest.mark.parametrize("colormap", [None, "jet"])
def test_every_way_to_render(case: Measured, render: str, scale: str, colormap: str | None) -> None:
    sheet(case, quantities=",".join(MAP_QUANTITIES), render=render, scale=scale, colormap=colormap)


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
    ).quantities
    assert contact_sheet(quantities, manifest, options, seen()).startswith(b"\x89PNG")


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

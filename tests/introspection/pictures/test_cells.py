"""Cells lie on the photograph where they look; colours are mixed and never stretched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from artifact.manifest import Block, ReceptiveField
from artifact.preprocess import Preprocessed
from introspection.pictures.cells import (
    Paint,
    cells_of_pixels,
    color_bar,
    grey_input,
    grey_photograph,
    overlay,
    overlay_whole,
    photograph,
    raw_cells,
)
from introspection.pictures.colormaps import colorize

CROP = 224


def block_of(stride: int, center0: float = 0.0) -> Block:
    side = CROP // stride
    return Block(
        name="stage1.0",
        stage=1,
        index=0,
        shortcut="identity",
        shape=(8, side, side),
        stride=stride,
        receptive_field=ReceptiveField(center0=center0, size=3),
    )


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_cell_covers_the_pixels_around_its_centre(stride: int) -> None:
    """Cell i looks at pixel i * stride: it covers half a stride to either side, and not from there on."""
    block = block_of(stride)
    cells = cells_of_pixels(block, CROP // stride, CROP, CROP)
    for cell in range(1, CROP // stride - 1):
        [covered] = [np.flatnonzero(cells == cell)]
        assert covered.tolist() == list(range(cell * stride - stride // 2, cell * stride + stride // 2))
    assert np.flatnonzero(cells == 0).tolist() == list(range(stride // 2))
    assert cells.max() == CROP // stride - 1


def test_the_first_cells_centre_counts() -> None:
    assert cells_of_pixels(block_of(16, 7.5), 14, CROP, CROP).tolist() == np.repeat(range(14), 16).tolist()


@pytest.mark.parametrize("zoom", [0.5, 2, 3])
def test_a_picture_of_another_size_shows_the_same(zoom: float) -> None:
    """The share of the picture that a cell takes does not depend on the picture's size."""
    block = block_of(32)
    size = round(CROP * zoom)
    covered = np.flatnonzero(cells_of_pixels(block, 7, CROP, size) == 3)
    assert covered[0] / zoom == pytest.approx(80, abs=1)
    assert (covered[-1] + 1) / zoom == pytest.approx(112, abs=1)


def test_an_impulse_lands_where_it_was_seen() -> None:
    block = block_of(32)
    values = np.zeros((7, 7))
    values[2, 5] = 1.0
    grey = np.full((CROP, CROP), 100, np.uint8)
    picture = overlay(values, block, CROP, grey, Paint(0.0, 1.0, "viridis", 0.5))
    low, high = np.rint(0.5 * colorize(np.array([0.0, 1.0]), "viridis") + 50)
    inside = np.zeros((CROP, CROP), bool)
    inside[48:80, 144:176] = True
    assert np.array_equal(picture[inside], np.tile(high, (32 * 32, 1)))
    assert np.array_equal(picture[~inside], np.tile(low, (CROP * CROP - 32 * 32, 1)))


def test_nothing_is_stretched() -> None:
    """A weak map stays dark, whatever else is in the picture; alpha 0 and 1 show only one of the two."""
    block = block_of(32)
    grey = np.arange(CROP * CROP, dtype=np.uint32).reshape(CROP, CROP).astype(np.uint8)
    weak = np.linspace(0, 0.01, 49).reshape(7, 7)
    solid = overlay(weak, block, CROP, grey, Paint(0.0, 1.0, "viridis", 1.0))
    assert np.ptp(solid, axis=(0, 1)).max() <= 4
    assert np.array_equal(overlay(weak, block, CROP, grey, Paint(0.0, 1.0, "viridis", 0.0))[..., 1], grey)
    assert np.array_equal(
        overlay(weak * 0, block, CROP, grey, Paint(0.0, 0.0, "viridis", 1.0))[0, 0], [68, 1, 84]
    )


def test_null_is_hatched_and_not_coloured() -> None:
    values = np.zeros((7, 7))
    values[3, 3] = np.nan
    raw = raw_cells(values, 70, Paint(-1.0, 1.0, "coolwarm"))
    cell = raw[30:40, 30:40].reshape(-1, 3)
    assert np.ptp(cell, axis=1).max() == 0
    assert {int(value) for value in cell[:, 0]} == {255, 180}
    assert len(np.unique(raw[:30].reshape(-1, 3), axis=0)) == 1

    grey = np.full((CROP, CROP), 90, np.uint8)
    drawn = overlay(values, block_of(32), CROP, grey, Paint(-1.0, 1.0, "coolwarm", 1.0))
    assert np.ptp(drawn[80:112, 80:112].astype(int), axis=2).max() == 0


def test_raw_cells_have_one_size() -> None:
    raw = raw_cells(np.arange(49.0).reshape(7, 7), 70, Paint(0.0, 48.0, "magma"))
    blocks = raw.reshape(7, 10, 7, 10, 3)
    assert np.array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


def photographed(keep_original: bool) -> Preprocessed:
    """Red left of the model's box, white inside, blue right of it."""
    whole = np.zeros((100, 200, 3), np.uint8)
    whole[:, :50], whole[:, 50:150], whole[:, 150:] = (255, 0, 0), (255, 255, 255), (0, 0, 255)
    pixels = np.full((32, 32, 3), 255, np.uint8)
    original = Image.fromarray(whole) if keep_original else None
    return Preprocessed(pixels, "png", 200, 100, (50, 0, 150, 100), original)


def test_what_the_model_never_saw_is_hatched() -> None:
    picture = np.asarray(photograph(photographed(True), 100, 80), int)
    assert picture.shape == (50, 100, 3)
    seen = picture[:, 28:72]
    assert seen.min() == 255
    for outside in (picture[:, :22], picture[:, 78:]):
        assert len(np.unique(outside.reshape(-1, 3), axis=0)) == 2
        assert outside.min() > 50


def test_without_the_original_the_input_is_shown() -> None:
    picture = np.asarray(photograph(photographed(False), 100, 80))
    assert picture.shape == (80, 80, 3)
    assert picture.min() == 255


@pytest.mark.parametrize("keep_original", [True, False])
def test_the_grey_picture_is_what_the_model_saw(keep_original: bool) -> None:
    grey = grey_input(photographed(keep_original), 60)
    assert grey.shape == (60, 60)
    assert np.ptp(grey[:, 5:55]) == 0


def test_the_bar_runs_from_low_to_high_and_shows_the_mixture_below() -> None:
    bar = np.asarray(color_bar(101, 10, "viridis", 0.5))
    assert np.array_equal(bar[0, 0], [68, 1, 84])
    assert np.array_equal(bar[0, -1], [253, 231, 37])
    assert np.array_equal(bar[9, 0], np.rint(0.5 * np.array([68, 1, 84]) + 75))
    assert np.array_equal(*np.asarray(color_bar(50, 10, "magma", 1.0))[[0, 9]])


def test_over_the_whole_photograph_only_what_the_model_saw_has_colours() -> None:
    """The crop is 100 of 200 pixels; drawn at half the size, the map lies where `overlay` would put it."""
    whole = grey_photograph(photographed(True), 100, 80)
    assert whole.box == (25, 0, 75, 50)
    assert whole.grey.shape == (50, 100)
    values = np.zeros((7, 7))
    values[2, 5] = 1.0
    block = block_of(32)
    picture = overlay_whole(values, block, CROP, whole, Paint(0.0, 1.0, "viridis", 0.5))
    inside = overlay(values, block, CROP, whole.grey[:, 25:75], Paint(0.0, 1.0, "viridis", 0.5))
    assert np.array_equal(picture[:, 25:75], inside)
    impulse = np.argwhere(np.abs(inside.astype(int) - inside[0, 0]).sum(-1) > 30)
    assert impulse.mean(0) == pytest.approx([(64 + 0.5) * 50 / CROP, (160 + 0.5) * 50 / CROP], abs=1)
    outside = np.concatenate([picture[:, :25], picture[:, 75:]], axis=1).astype(int)
    assert np.ptp(outside, axis=2).max() == 0
    assert len(np.unique(outside[:, :20].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize(("width", "height"), [(4000, 30), (30, 4000)])
def test_a_very_long_photograph_keeps_a_pixel_of_what_was_seen(width: int, height: int) -> None:
    side = min(width, height)
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    image = Preprocessed(
        np.zeros((32, 32, 3), np.uint8), "png", width, height, box, Image.new("RGB", (width, height))
    )
    whole = grey_photograph(image, 90, 90)
    x0, y0, x1, y1 = whole.box
    assert 0 <= x0 < x1 <= whole.grey.shape[1]
    assert 0 <= y0 < y1 <= whole.grey.shape[0]
    picture = overlay_whole(np.ones((7, 7)), block_of(32), CROP, whole, Paint(0.0, 1.0, "viridis"))
    assert picture[y0, x0].tolist() == [253, 231, 37]

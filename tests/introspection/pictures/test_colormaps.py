"""The colour tables against matplotlib's, and the ends of every map."""

from __future__ import annotations

import numpy as np
import pytest

from introspection.pictures.colormaps import COLORMAPS, colorize
from introspection.quantity import ColormapName


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma", "coolwarm"])
def test_tables_are_close_to_matplotlib(name: ColormapName) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
    assert np.abs(colorize(np.linspace(0, 1, 256), name) - expected).max() < 2.5


@pytest.mark.parametrize("name", COLORMAPS)
def test_any_shape_clipped_and_null_kept(name: ColormapName) -> None:
    values = np.array([[-1.0, 0.0, 0.5], [1.0, 2.0, np.nan]])
    colors = colorize(values, name)
    assert colors.shape == (2, 3, 3)
    assert np.array_equal(colors[0, 0], colors[0, 1])
    assert np.array_equal(colors[1, 0], colors[1, 1])
    assert np.isnan(colors[1, 2]).all()
    rest = colors[~np.isnan(values)]
    assert rest.min() >= 0
    assert rest.max() <= 255


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma"])
def test_magnitudes_grow_lighter(name: ColormapName) -> None:
    lightness = colorize(np.linspace(0, 1, 50), name) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(lightness) > 0)


def test_the_diverging_map_is_neutral_in_the_middle_and_not_red_green() -> None:
    low, middle, high = colorize(np.array([0.0, 0.5, 1.0]), "coolwarm")
    assert np.ptp(middle) <= 1
    assert low.argmax() == 2
    assert high.argmax() == 0


def test_jet() -> None:
    assert colorize(np.array([0.125, 0.375, 0.5, 0.625, 0.875]), "jet").tolist() == [
        [0, 0, 255],
        [0, 255, 255],
        [127.5, 255, 127.5],
        [255, 255, 0],
        [255, 0, 0],
    ]

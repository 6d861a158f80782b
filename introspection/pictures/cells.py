"""One block's map -> pixels, where they belong on the photograph.

A block's cell i looks at the input pixels around center0 + i * stride. Resizing its map to the size of the
image, as is often done, would put cell 0 of a stride of 32 in the middle of its 32 pixels, 15.5 pixels away
from where it looks. Knows numpy and Pillow; nothing of text and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifact.manifest import Block
from artifact.preprocess import Preprocessed
from introspection.pictures.colormaps import colorize
from introspection.quantity import ColormapName
from introspection.readings import FloatArray

HATCH_PITCH = 8  # pixels from one line to the next
HATCH_WIDTH = 2
HATCH_GREY = 105.0
GREY_MIDDLE, GREY_CONTRAST = 150.0, 0.7  # of 255, and of the photograph's own
PALE = 0.55  # how much white is mixed into what the model never saw


class Paint(NamedTuple):
    """The values of the first and the last colour, the colours, and their opacity over a photograph."""

    vmin: float
    vmax: float
    colormap: ColormapName
    alpha: float = 1.0


@dataclass(frozen=True)
class GreyPhotograph:
    """The whole photograph, grey [height, width], and the part x0, y0, x1, y1 of it that the model saw."""

    grey: NDArray[np.uint8]
    box: tuple[int, int, int, int]


def cells_of_pixels(block: Block, num_cells: int, crop: int, size: int) -> NDArray[np.int64]:
    """Return the cell nearest to each of `size` pixels, along one axis of a picture of the model's input.

    Args:
        num_cells: of the map along this axis.
        crop: pixels of the model's input along this axis, which the picture shows enlarged or reduced.
    """
    input_pixels = (np.arange(size) + 0.5) * crop / size - 0.5
    cells = np.floor((input_pixels - block.receptive_field.center0) / block.stride + 0.5)
    return np.clip(cells, 0, num_cells - 1).astype(np.int64)


def overlay(
    values_HW: FloatArray, block: Block, crop: int, grey: NDArray[np.uint8], paint: Paint
) -> NDArray[np.uint8]:
    """Draw the map's cells over a grey picture [height, width] of the model's input; RGB [height, width, 3].

    Cells are drawn as cells, at the place where they look. Colour and photograph are mixed as the paint's
    `alpha` says, and nothing is stretched afterwards. Cells that are null are hatched.
    """
    axes = zip(values_HW.shape, grey.shape, strict=True)
    rows, columns = (cells_of_pixels(block, cells, crop, size) for cells, size in axes)
    colors = _colors(values_HW, paint)[np.ix_(rows, columns)]
    photograph = np.repeat(grey[..., None].astype(np.float64), 3, axis=-1)
    null = np.isnan(colors)
    mixed = np.where(null, photograph, paint.alpha * colors + (1 - paint.alpha) * photograph)
    return _hatched(mixed, null[..., 0])


def overlay_whole(
    values_HW: FloatArray, block: Block, crop: int, whole: GreyPhotograph, paint: Paint
) -> NDArray[np.uint8]:
    """Draw as `overlay`, over the whole photograph; the part that the model never saw is pale and hatched."""
    x0, y0, x1, y1 = whole.box
    picture = _unseen_pale(np.repeat(whole.grey[..., None].astype(np.float64), 3, axis=-1), whole.box)
    seen = whole.grey[y0:y1, x0:x1]
    picture[y0:y1, x0:x1] = overlay(values_HW, block, crop, seen, paint)
    return picture


def raw_cells(values_HW: FloatArray, size: int, paint: Paint) -> NDArray[np.uint8]:
    """Draw the map by itself, all cells of one size; RGB [size, size, 3]. Null cells are hatched white."""
    rows, columns = (np.arange(size) * cells // size for cells in values_HW.shape)
    colors = _colors(values_HW, paint)[np.ix_(rows, columns)]
    null = np.isnan(colors)
    return _hatched(np.where(null, 255.0, colors), null[..., 0])


def grey_input(image: Preprocessed, size: int) -> NDArray[np.uint8]:
    """Return what the model saw, grey, [size, size]; as sharp as the photograph if that was kept.

    It is paler than the photograph, so that under a map colours tell values and not light and shade.
    """
    if image.original is None:
        return _pale_grey(Image.fromarray(image.pixels), (size, size))
    x0, y0, x1, y1 = map(round, image.box_in_original)
    seen = image.original.crop((x0, y0, x1, y1))
    return _pale_grey(seen, (size, size))


def grey_photograph(image: Preprocessed, width: int, height: int) -> GreyPhotograph:
    """Return the whole photograph, as large as fits, grey and as pale as `grey_input`."""
    source, size, box = _fitted(image, width, height)
    return GreyPhotograph(_pale_grey(source, size), box)


def photograph(image: Preprocessed, width: int, height: int) -> Image.Image:
    """Return the whole photograph, as large as fits, with what the model never saw made pale and hatched."""
    source, size, box = _fitted(image, width, height)
    picture = np.asarray(_resized(source, size), np.float64)
    return Image.fromarray(_unseen_pale(picture, box))


def _fitted(
    image: Preprocessed, width: int, height: int
) -> tuple[Image.Image, tuple[int, int], tuple[int, int, int, int]]:
    """Return the photograph, the size at which it fits, and the model's box there.

    Without the original it is the model's input, all of which was seen.
    """
    if image.original is None:
        source, box = Image.fromarray(image.pixels), (0.0, 0.0, *image.pixels.shape[1::-1])
    else:
        source, box = image.original, image.box_in_original
    scale = min(width / source.width, height / source.height)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    return source, size, (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize for the eye; a large photograph is first averaged down to three times the size, for speed."""
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _pale_grey(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    grey = np.asarray(_resized(picture.convert("L"), size), np.float64)
    return np.rint(GREY_MIDDLE + GREY_CONTRAST * (grey - 127.5)).astype(np.uint8)


def _unseen_pale(picture: FloatArray, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return RGB with all that lies outside of the box made pale and hatched."""
    x0, y0, x1, y1 = box
    unseen = np.ones(picture.shape[:2], bool)
    unseen[y0:y1, x0:x1] = False
    return _hatched(np.where(unseen[..., None], (1 - PALE) * picture + PALE * 255, picture), unseen)


def color_bar(width: int, height: int, colormap: ColormapName, alpha: float) -> Image.Image:
    """Draw the colours from the least value to the largest, left to right.

    With `alpha` < 1 the lower half shows them as they look over the middle grey of a photograph.
    """
    pure = colorize(np.linspace(0, 1, width), colormap)
    mixed = alpha * pure + (1 - alpha) * GREY_MIDDLE
    rows = np.where((np.arange(height) < height // 2)[:, None, None], pure, mixed)
    return Image.fromarray(np.rint(rows).astype(np.uint8))


def _colors(values_HW: FloatArray, paint: Paint) -> FloatArray:
    """Return RGB [H, W, 3]; a map without any range (all zero) has the lowest colour."""
    vmin, vmax = paint.vmin, paint.vmax
    unit = (values_HW - vmin) / (vmax - vmin) if vmax > vmin else values_HW * 0
    return colorize(unit, paint.colormap)


def _hatched(rgb: FloatArray, where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw diagonal lines on the part of a picture that `where` [height, width] marks."""
    shape: Sequence[int] = rgb.shape
    diagonal = (np.arange(shape[0])[:, None] + np.arange(shape[1])) % HATCH_PITCH < HATCH_WIDTH
    lines = (where & diagonal)[..., None]
    return np.rint(np.where(lines, 0.5 * rgb + 0.5 * HATCH_GREY, rgb)).astype(np.uint8)

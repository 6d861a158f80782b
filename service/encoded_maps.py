"""One map of the answer: its declared scale, and its values as u8, f16 or f32 in base64, there and back.

Raw units, always: nothing is stretched by its own minimum and maximum, so a dead block looks dead.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest
from service.introspection import FloatArray, MapQuantity, Quantities, why_absent
from service.introspection_query import MapEncoding, Options, Scale
from service.mean_squares import RATIO_LIMIT

SCALE_DIGITS = 6  # of a declared vmax

FIXED_RANGES: dict[MapQuantity, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "ratio": (-RATIO_LIMIT, RATIO_LIMIT),
    "cosine": (-1.0, 1.0),
}
NULLABLE: tuple[MapQuantity, ...] = ("cosine",)
SIGNED: tuple[MapQuantity, ...] = ("contribution",)  # from -vmax to vmax

# u8 codes of a map: mostly all of them; where 0 is in the middle or null exists the last one is left out or
# means null, and the 255 that are left put 0 exactly on code 127.
NULL_CODE = 255

_DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def map_range(
    quantities: Quantities,
    manifest: Manifest,
    quantity: MapQuantity,
    scale: Scale = "image",
    stage: int | None = None,
) -> tuple[float, float]:
    """vmin and vmax of a map: fixed by its definition, or 0 (-vmax where SIGNED) to the largest value.

    That is the largest absolute value in the image, in its blocks of `stage`, or on the validation images.
    Every block of the network counts, whichever were asked for, so that two answers compare. A largest value
    is rounded up to 6 digits.
    """
    if quantity in FIXED_RANGES:
        return FIXED_RANGES[quantity]
    if scale == "reference":
        assert manifest.reference is not None, "checked when the query was resolved"
        largest = max(manifest.reference.maps[quantity])
    else:
        parts = zip(manifest.blocks, quantities.slices, strict=True)
        values = np.abs(quantities.maps[quantity])
        largest = max(
            float(values[part].max()) for block, part in parts if scale == "image" or block.stage == stage
        )
    vmax = _round_up(largest)
    return (0.0 - vmax if quantity in SIGNED else 0.0), vmax


def ranges_of_blocks(
    quantities: Quantities, manifest: Manifest, options: Options
) -> list[dict[MapQuantity, tuple[float, float]]]:
    """vmin and vmax of every map asked for that exists, by block asked for; computed once a stage."""
    existing = [quantity for quantity in options.maps if not why_absent(quantity, manifest)]
    stages = [manifest.blocks[index].stage if options.scale == "stage" else None for index in options.blocks]
    by_stage = {
        stage: {
            quantity: map_range(quantities, manifest, quantity, options.scale, stage) for quantity in existing
        }
        for stage in set(stages)
    }
    return [by_stage[stage] for stage in stages]


def block_map(quantities: Quantities, manifest: Manifest, quantity: MapQuantity, index: int) -> FloatArray:
    """One block's map, [H, W], NaN where null."""
    _, height, width = manifest.blocks[index].shape
    return quantities.maps[quantity][quantities.slices[index]].reshape(height, width)


def encode_map(
    values_HW: FloatArray, quantity: MapQuantity, vmin: float, vmax: float, encoding: MapEncoding
) -> dict[str, Any]:
    """One map of the document.

    `u8`: value = vmin + code * (vmax - vmin) / levels, to half a step, cut to vmin and vmax; where `null` is
    a number, that code means null. `f16`, `f32`: the values themselves, little-endian, NaN where null; a map
    beyond float16's range is sent as f32 instead, and says so. All row-major in base64.
    """
    if encoding == "f16" and float(np.nanmax(np.abs(values_HW), initial=0.0)) > _FLOAT16_MAX:
        encoding = "f32"
    levels: int | None = None
    null: int | str | None = "nan" if quantity in NULLABLE else None
    if encoding == "u8":
        null = NULL_CODE if quantity in NULLABLE else None
        levels = NULL_CODE - 1 if quantity in NULLABLE + SIGNED else NULL_CODE
        flat = 0.5 if quantity in SIGNED else 0.0
        unit = (values_HW - vmin) / (vmax - vmin) if vmax > vmin else np.full_like(values_HW, flat)
        codes = np.rint(np.clip(unit, 0, 1) * levels)
        values_HW = np.where(np.isnan(codes), NULL_CODE, codes)
    return {
        "shape": list(values_HW.shape),
        "dtype": encoding,
        "vmin": vmin,
        "vmax": vmax,
        "levels": levels,
        "null": null,
        "data": base64.b64encode(values_HW.astype(_DTYPES[encoding]).tobytes()).decode(),
    }


def decode_codes(entry: Mapping[str, Any]) -> NDArray[Any]:
    """The array inside a map of the document, [H, W], in its own dtype (codes for u8)."""
    data = base64.b64decode(entry["data"])
    array: NDArray[Any] = np.frombuffer(data, _DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"])


def decode_map(entry: Mapping[str, Any]) -> FloatArray:
    """The values of a map of the document, [H, W], NaN where null."""
    codes = decode_codes(entry).astype(np.float64)
    if entry["dtype"] != "u8":
        return codes
    values = entry["vmin"] + codes * (entry["vmax"] - entry["vmin"]) / entry["levels"]
    return values if entry["null"] is None else np.where(codes == entry["null"], np.nan, values)


def _round_up(value: float) -> float:
    """The next number of SCALE_DIGITS significant digits that is not below `value`."""
    if value == 0:
        return 0.0
    rounded = float(f"{value:.{SCALE_DIGITS}g}")
    step = 10.0 ** (math.floor(math.log10(value)) - SCALE_DIGITS + 1)
    return rounded if rounded >= value else float(f"{value + step / 2:.{SCALE_DIGITS}g}")

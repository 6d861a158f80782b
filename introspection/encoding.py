"""One map of the answer: its declared scale, and its values as u8, f16 or f32 in base64, there and back.

Raw units, always: nothing is stretched by its own minimum and maximum, so a dead block looks dead.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from introspection.quantities import MAPS
from introspection.readings import FloatArray

MapEncoding = Literal["none", "u8", "f16", "f32"]

# A map in u8 uses all codes. If null exists or 0 is in the middle, the last code means null or is unused: the
# other 255 put 0 exactly on code 127.
NULL_CODE = 255

_DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def encode_map(
    values_HW: FloatArray, quantity: str, vmin: float, vmax: float, encoding: MapEncoding
) -> dict[str, Any]:
    """Return one map of the document.

    `u8`: value = vmin + code * (vmax - vmin) / levels, to half a step, cut to vmin and vmax; where `null` is
    a number, that code means null. `f16`, `f32`: the values themselves, little-endian, NaN where null; a map
    beyond float16's range is sent as f32 instead, and says so. All row-major in base64.
    """
    if encoding == "f16" and float(np.nanmax(np.abs(values_HW), initial=0.0)) > _FLOAT16_MAX:
        encoding = "f32"
    row = MAPS[quantity]
    levels: int | None = None
    null: int | str | None = "nan" if row.nullable else None
    if encoding == "u8":
        null = NULL_CODE if row.nullable else None
        levels = NULL_CODE - 1 if row.nullable or row.symmetric else NULL_CODE
        flat = 0.5 if row.symmetric else 0.0
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
    """Return the array inside a map of the document, [H, W], in its own dtype (codes for u8)."""
    data = base64.b64decode(entry["data"])
    array: NDArray[Any] = np.frombuffer(data, _DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"])


def decode_map(entry: Mapping[str, Any]) -> FloatArray:
    """Return the values of a map of the document, [H, W], NaN where null."""
    codes = decode_codes(entry).astype(np.float64)
    if entry["dtype"] != "u8":
        return codes
    values = entry["vmin"] + codes * (entry["vmax"] - entry["vmin"]) / entry["levels"]
    return values if entry["null"] is None else np.where(codes == entry["null"], np.nan, values)

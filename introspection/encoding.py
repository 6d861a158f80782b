"""Maps of the answer: their declared scale, and their values as u8, f16 or f32 in base64, there and back.

Raw units, always: nothing is stretched by its own minimum and maximum, so a dead block looks dead.

Shapes: P positions of several blocks one after another.
"""

from __future__ import annotations

import base64
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from introspection.quantities import MAPS
from introspection.quantity import Map
from introspection.readings import FloatArray

MapEncoding = Literal["none", "u8", "f16", "f32"]

# A map in u8 uses all codes. If null exists or 0 is in the middle, the last code means null or is unused: the
# other 255 put 0 exactly on code 127.
NULL_CODE = 255

_DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def encode_maps(
    maps: Mapping[str, FloatArray],
    bounds: Mapping[str, tuple[float, float]],
    shapes: Sequence[tuple[int, int]],
    encoding: MapEncoding,
) -> list[dict[str, dict[str, Any]]]:
    """Return the maps of the document for each block, by quantity.

    `u8`: value = vmin + code * (vmax - vmin) / levels, to half a step, cut to vmin and vmax; where `null` is
    a number, that code means null. `f16`, `f32`: the values themselves, little-endian, NaN where null; a map
    beyond float16's range is sent as f32 instead, and says so. All row-major in base64.

    Args:
        maps: by quantity, [P].
        bounds: vmin and vmax of each quantity, the same for all of these blocks.
        shapes: H and W of each block.
    """
    ends = list(accumulate(height * width for height, width in shapes))
    starts = [0, *ends[:-1]]
    blocks: list[dict[str, dict[str, Any]]] = [{} for _ in shapes]
    for quantity, (vmin, vmax) in bounds.items():
        row = MAPS[quantity]
        values_P: NDArray[Any] = maps[quantity]
        levels: int | None = None
        null: int | str | None = "nan" if row.nullable else None
        dtypes: Sequence[str] = (encoding,) * len(shapes)
        if encoding == "u8":
            levels = NULL_CODE - 1 if row.nullable or row.symmetric else NULL_CODE
            null = NULL_CODE if row.nullable else None
            values_P = _codes(values_P, row, (vmin, vmax), levels)
        elif encoding == "f16":
            too_large = np.fmax.reduceat(np.abs(values_P), starts) > _FLOAT16_MAX
            dtypes = ["f32" if large else "f16" for large in too_large]
        arrays = {dtype: _cast(values_P, dtype).data for dtype in {*dtypes}}
        for block, shape, start, end, dtype in zip(blocks, shapes, starts, ends, dtypes, strict=True):
            block[quantity] = {
                "shape": list(shape),
                "dtype": dtype,
                "vmin": vmin,
                "vmax": vmax,
                "levels": levels,
                "null": null,
                "data": b2a_base64(arrays[dtype][start:end], newline=False).decode(),
            }
    return blocks


def _cast(values_P: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype != "f16":
        return values_P.astype(_DTYPES[dtype], copy=False)
    with np.errstate(over="ignore"):  # blocks beyond float16's range are taken from float32
        return values_P.astype(_DTYPES[dtype])


def _codes(values_P: FloatArray, row: Map, bounds: tuple[float, float], levels: int) -> NDArray[np.uint8]:
    """Return the u8 codes of a map."""
    vmin, vmax = bounds
    if vmax <= vmin:
        return np.full(values_P.shape, round(levels / 2) if row.symmetric else 0, np.uint8)
    codes_P = values_P - vmin
    codes_P /= vmax - vmin
    np.maximum(codes_P, 0, out=codes_P)
    np.minimum(codes_P, 1, out=codes_P)
    codes_P *= levels
    np.rint(codes_P, out=codes_P)
    if row.nullable:
        codes_P[np.isnan(codes_P)] = NULL_CODE
    return codes_P.astype(np.uint8)


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

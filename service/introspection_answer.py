"""Quantities -> the answer of `/introspect`: a JSON document, or the same as NPZ.

Raw units with a declared scale, always: nothing is stretched by its own minimum and maximum, so a dead
block looks dead. It knows no HTTP; the command line calls it too. The order of keys is the contract's.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Block, Manifest, Variant
from models.preprocess import Preprocessed
from service.introspection import (
    ABSENT,
    RATIO_LIMIT,
    SCALAR_GROUPS,
    FloatArray,
    MapQuantity,
    Quantities,
    why_absent,
)
from service.introspection_query import LATER, MapEncoding, Options, Target
from service.postprocess import softmax, top_predictions

DIGITS = 5  # significant, of scalars: sums in float32 promise no more
SCALE_DIGITS = 6  # of a declared vmax
NOT_YET = "not computed by this version"
LOGIT_DIGITS = 8  # of logits and probabilities, so that they compare with those of /classify

# u8 codes of a map: values that are never null use all of them; where null exists it is the last one, and
# the 255 that are left put 0 exactly on code 127.
NULL_CODE = 255
FIXED_RANGES: dict[MapQuantity, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "ratio": (-RATIO_LIMIT, RATIO_LIMIT),
    "cosine": (-1.0, 1.0),
}
NULLABLE: tuple[MapQuantity, ...] = ("cosine",)

_DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Run:
    """Which graph ran, where, and how long: `timing_ms` by name."""

    precision: str
    engine: str
    timing_ms: Mapping[str, float]


def answer(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    image: Preprocessed,
    run: Run,
    encoding: MapEncoding = "u8",
) -> dict[str, Any]:
    """The JSON document of `/introspect`; without NaN, numbers rounded, keys in the contract's order.

    Args:
        encoding: of the maps, where `options` leave it open.
    """
    chosen = options.encoding or encoding
    document = _header(quantities, manifest, options, image, run)
    document["blocks"] = [
        _block(quantities, manifest, options, index, ranges, chosen)
        for index, ranges in zip(
            options.blocks, _ranges_of_blocks(quantities, manifest, options), strict=True
        )
    ]
    document["checks"] = _checks(quantities, manifest)
    document["timing_ms"] = {name: round(ms, 3) for name, ms in run.timing_ms.items()}
    document["null_reasons"] = _null_reasons(manifest.variant, options, chosen)
    return document


def to_json(document: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON.

    Raises:
        ValueError: the document holds NaN or infinity, which JSON has not.
    """
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def to_npz(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> bytes:
    """The same answer as arrays, for `numpy.load(file, allow_pickle=False)`.

    - `logits` float32 [K]; `gates` float32 [L] and `gate_names` [L], of the whole network
    - `block_names` [B], the blocks asked for; `scalars/<name>` float64 [B], NaN where null
    - `maps/<block>/<quantity>` [H, W]: float32 with NaN where null (or float16, or u8 codes, as asked for);
      a map that does not exist for the variant is NaN in float32, whatever was asked for
    - `metadata`: the JSON document as one string, its maps without `data`
    """
    document = answer(quantities, manifest, options, image, run, "f32")
    chosen = list(options.blocks)
    arrays: dict[str, NDArray[Any]] = {
        "logits": quantities.logits_K.astype(np.float32),
        "gates": options.gates_L,
        "gate_names": np.array([block.name for block in manifest.blocks]),
        "block_names": np.array([manifest.blocks[index].name for index in chosen]),
    }
    for group in options.groups:
        for name in scalar_names(group):
            arrays[f"scalars/{name}"] = quantities.scalars[name][chosen]
    for block in document["blocks"]:
        for quantity, entry in block["maps"].items():
            array = np.full(block["shape"][1:], np.nan, np.float32) if entry is None else decode_codes(entry)
            arrays[f"maps/{block['name']}/{quantity}"] = array
            if entry is not None:
                del entry["data"]
    arrays["metadata"] = np.array(to_json(document).decode())
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def scalar_names(group: str) -> list[str]:
    """The names in `Quantities.scalars` of a group of SCALAR_GROUPS."""
    return [f"{group}.{member}" for member in SCALAR_GROUPS[group]] or [group]


def map_range(
    quantities: Quantities, manifest: Manifest, quantity: MapQuantity, stage: int | None = None
) -> tuple[float, float]:
    """vmin and vmax of a map: fixed by its definition, or 0 to the largest value in the image (or stage).

    Every block of the network counts, whichever were asked for, so that two answers compare. A largest value
    is rounded up to 6 digits.
    """
    if quantity in FIXED_RANGES:
        return FIXED_RANGES[quantity]
    values = quantities.maps[quantity]
    if stage is None:
        return 0.0, _round_up(float(values.max()))
    parts = zip(manifest.blocks, quantities.slices, strict=True)
    return 0.0, _round_up(max(float(values[part].max()) for block, part in parts if block.stage == stage))


def block_map(quantities: Quantities, manifest: Manifest, quantity: MapQuantity, index: int) -> FloatArray:
    """One block's map, [H, W], NaN where null."""
    _, height, width = manifest.blocks[index].shape
    return quantities.maps[quantity][quantities.slices[index]].reshape(height, width)


def encode_map(
    values_HW: FloatArray, quantity: MapQuantity, vmin: float, vmax: float, encoding: MapEncoding
) -> dict[str, Any]:
    """One map of the document.

    `u8`: value = vmin + code * (vmax - vmin) / levels, to half a step; where `null` is a number, that code
    means null. `f16`, `f32`: the values themselves, little-endian, NaN where null; a map beyond float16's
    range is sent as f32 instead, and says so. All row-major in base64.
    """
    if encoding == "f16" and float(np.nanmax(np.abs(values_HW), initial=0.0)) > _FLOAT16_MAX:
        encoding = "f32"
    levels: int | None = None
    null: int | str | None = "nan" if quantity in NULLABLE else None
    if encoding == "u8":
        null = NULL_CODE if quantity in NULLABLE else None
        levels = NULL_CODE - 1 if quantity in NULLABLE else NULL_CODE
        unit = (values_HW - vmin) / (vmax - vmin) if vmax > vmin else np.zeros_like(values_HW)
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


def predictions(quantities: Quantities, manifest: Manifest, top_k: int) -> list[dict[str, Any]]:
    """The `top_k` most probable classes, as `/classify` gives them, rounded."""
    best = top_predictions(quantities.logits_K, manifest.labels, top_k)
    return [
        {
            **prediction.model_dump(),
            "probability": _number(prediction.probability, LOGIT_DIGITS),
            "logit": _number(prediction.logit, LOGIT_DIGITS),
        }
        for prediction in best
    ]


def target_index(target: Target, quantities: Quantities) -> int:
    """The class that the answer is about; `top1` is that of this very run, gates included."""
    return int(quantities.logits_K.argmax()) if target.index is None else target.index


def _header(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> dict[str, Any]:
    target = target_index(options.target, quantities)
    crop = manifest.preprocessing.crop
    return {
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "variant": manifest.variant,
            "precision": run.precision,
            "engine": run.engine,
        },
        "image": {
            "width": image.width,
            "height": image.height,
            "model_box": list(image.model_box),
            "input": [crop, crop],
        },
        "target": {
            "index": target,
            "label": manifest.labels[target].label,
            "mode": options.target.mode,
            "probability": _number(softmax(quantities.logits_K)[target], LOGIT_DIGITS),
            "logit": _number(quantities.logits_K[target], LOGIT_DIGITS),
        },
        "predictions": predictions(quantities, manifest, options.top_k),
        "gates": [_number(gate, LOGIT_DIGITS) for gate in options.gates_L],
    }


def _block(
    quantities: Quantities,
    manifest: Manifest,
    options: Options,
    index: int,
    ranges: Mapping[MapQuantity, tuple[float, float]],
    encoding: MapEncoding,
) -> dict[str, Any]:
    document = _describe(manifest.blocks[index])
    for group in options.groups:
        document[group] = None
        if not why_absent(group, manifest.variant):
            document[group] = _group(quantities, group, index)
    if options.complete:
        document |= dict.fromkeys(LATER)
    document["maps"] = {}
    if encoding != "none":
        for quantity in options.maps:
            document["maps"][quantity] = None
            if quantity in ranges:
                values = block_map(quantities, manifest, quantity, index)
                document["maps"][quantity] = encode_map(values, quantity, *ranges[quantity], encoding)
    return document


def _describe(block: Block) -> dict[str, Any]:
    return {
        "name": block.name,
        "stage": block.stage,
        "index": block.index,
        "shortcut": block.shortcut,
        "shape": list(block.shape),
        "stride": block.stride,
        "receptive_field": {
            "center0": block.receptive_field.center0,
            "size": block.receptive_field.size,
        },
    }


def _group(quantities: Quantities, group: str, index: int) -> dict[str, float | None] | float | None:
    values = [_number(quantities.scalars[name][index]) for name in scalar_names(group)]
    members = SCALAR_GROUPS[group]
    return dict(zip(members, values, strict=True)) if members else values[0]


def _ranges_of_blocks(
    quantities: Quantities, manifest: Manifest, options: Options
) -> list[dict[MapQuantity, tuple[float, float]]]:
    """vmin and vmax of every map asked for that exists, by block asked for; computed once a stage."""
    existing = [quantity for quantity in options.maps if not why_absent(quantity, manifest.variant)]
    stages = [manifest.blocks[index].stage if options.scale == "stage" else None for index in options.blocks]
    by_stage = {
        stage: {quantity: map_range(quantities, manifest, quantity, stage) for quantity in existing}
        for stage in set(stages)
    }
    return [by_stage[stage] for stage in stages]


def _checks(quantities: Quantities, manifest: Manifest) -> dict[str, float | None]:
    """How far the figures can be trusted; see docs/introspection.md.

    `sum_parity_max_abs` is not of this image: it was measured when the graph was exported, against the source
    network's own sum. `completeness_abs_err` belongs to contributions, which this format lacks.
    """
    graph = manifest.graph("introspect")
    parity = graph.parity.sum_parity_max_abs if graph else None
    return {
        "sum_parity_max_abs": None if parity is None else _number(parity),
        "completeness_abs_err": None,
        "energy_sum_err": _number(quantities.energy_sum_err),
        "map_scalar_err": _number(quantities.map_scalar_err),
    }


def _null_reasons(variant: Variant, options: Options, encoding: MapEncoding) -> dict[str, str]:
    """Why fields of this answer are null in every block: what the variant lacks, and what is yet to come."""
    asked = {*options.groups, *(options.maps if encoding != "none" else ())}
    reasons = {name: why for name, why in ABSENT[variant].items() if name.partition(".")[0] in asked}
    if options.complete:
        reasons |= dict.fromkeys(LATER, NOT_YET)
    return reasons | {"checks.completeness_abs_err": NOT_YET}


def _number(value: float | np.floating[Any], digits: int = DIGITS) -> float | None:
    """Rounded to significant digits, whole numbers as integers (shorter in JSON); None for NaN."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _round_up(value: float) -> float:
    """The next number of SCALE_DIGITS significant digits that is not below `value`."""
    if value == 0:
        return 0.0
    rounded = float(f"{value:.{SCALE_DIGITS}g}")
    step = 10.0 ** (math.floor(math.log10(value)) - SCALE_DIGITS + 1)
    return rounded if rounded >= value else float(f"{value + step / 2:.{SCALE_DIGITS}g}")

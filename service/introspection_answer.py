"""Quantities -> the answer of `/introspect`: a JSON document, or the same as NPZ.

It knows no HTTP; the command line calls it too. The order of keys is that of docs/introspection.md.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import PERCENTILES, Block, Manifest, Precision, lens_blocks
from models.preprocess import Preprocessed
from service.attribution import Decomposition
from service.encoded_maps import block_map, decode_codes, encode_map, ranges_of_blocks
from service.introspection import (
    ATTRIBUTED,
    SCALAR_GROUPS,
    MapQuantity,
    Quantities,
    reasons_absent,
    why_absent,
)
from service.introspection_query import LESION, MapEncoding, Options
from service.postprocess import softmax, top_predictions

DIGITS = 5  # significant, of scalars: sums in float32 promise no more
LOGIT_DIGITS = 8  # of logits and probabilities, so that they compare with those of /classify
ASK_FOR_LESIONS = "ask for it with lesion=true"
NOT_ASKED = "contribution was not asked for"
NO_LENS = "only blocks whose output has the last block's shape have a lens"
NO_REFERENCE = "this artifact was exported without validation images"
# In the reference these are of every image's most probable class, and say nothing about another one.
OF_TOP_CLASS = (
    "contribution",
    "lens.target_probability",
    "lens.target_logit",
    "lesion.target_delta_logit",
    "lesion.target_delta_probability",
)


@dataclass(frozen=True)
class Run:
    """Which graph ran, where, and how long: `timing_ms` by name."""

    precision: Precision
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
    ranges_B = ranges_of_blocks(quantities, manifest, options)
    document["blocks"] = [
        _block(quantities, manifest, options, index, ranges, chosen)
        for index, ranges in zip(options.blocks, ranges_B, strict=True)
    ]
    parts = quantities.decomposition if "contribution" in options.groups else None
    document["decomposition"] = None if parts is None else _decomposition(parts)
    document["checks"] = _checks(quantities, manifest, run, parts)
    document["reference"] = _reference(manifest)
    document["timing_ms"] = {name: round(ms, 3) for name, ms in run.timing_ms.items()}
    document["null_reasons"] = _null_reasons(manifest, options, chosen)
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
      a map that does not exist is NaN in float32, whatever was asked for
    - `lens_logits` float32 [M, K] and `lens_blocks` [M], the names of the network's blocks that have a lens
    - `lesion_logits` float32 [B + 1, K]: nothing removed, then each of the blocks asked for
    - `metadata`: the JSON document as one string, its maps without `data`
    """
    return npz(with_arrays(quantities, manifest, options, image, run)[1])


def with_arrays(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON document, its maps without `data`, and the arrays of `to_npz`."""
    document = answer(quantities, manifest, options, image, run, "f32")
    arrays = _arrays(quantities, manifest, options)
    for block in document["blocks"]:
        for quantity, entry in block["maps"].items():
            array = np.full(block["shape"][1:], np.nan, np.float32) if entry is None else decode_codes(entry)
            arrays[f"maps/{block['name']}/{quantity}"] = array
            if entry is not None:
                del entry["data"]
    arrays["metadata"] = np.array(to_json(document).decode())
    return document, arrays


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _arrays(quantities: Quantities, manifest: Manifest, options: Options) -> dict[str, NDArray[Any]]:
    """What an NPZ holds beside maps and metadata."""
    chosen = list(options.blocks)
    names = np.array([block.name for block in manifest.blocks])
    arrays: dict[str, NDArray[Any]] = {
        "logits": quantities.logits_K.astype(np.float32),
        "gates": options.gates_L,
        "gate_names": names,
        "block_names": names[chosen],
    }
    for group in options.groups:
        for name in scalar_names(group):
            absent = name not in quantities.scalars and why_absent(name, manifest)
            values_L = np.full(len(names), np.nan) if absent else quantities.scalars[name]
            arrays[f"scalars/{name}"] = values_L[chosen]
    if "lens" in options.groups and quantities.lens_MK is not None:
        arrays["lens_logits"] = quantities.lens_MK.astype(np.float32)
        arrays["lens_blocks"] = names[lens_blocks(manifest.blocks)]
    if quantities.lesions is not None:
        arrays["lesion_logits"] = quantities.lesions.logits
    return arrays


def scalar_names(group: str) -> list[str]:
    """The names in `Quantities.scalars` of a group of SCALAR_GROUPS."""
    return [f"{group}.{member}" for member in SCALAR_GROUPS[group]] or [group]


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


def target_class(quantities: Quantities, manifest: Manifest) -> dict[str, Any]:
    """The class that contributions are about: its index, label, probability and logit, rounded."""
    index = quantities.target
    return {
        "index": index,
        "label": manifest.labels[index].label,
        "probability": _number(softmax(quantities.logits_K)[index], LOGIT_DIGITS),
        "logit": _number(quantities.logits_K[index], LOGIT_DIGITS),
    }


def predictions_with_target(
    quantities: Quantities, manifest: Manifest, top_k: int, most: int
) -> list[dict[str, Any]]:
    """The `top_k` most probable classes, then the target if it is none of them; `most` rows at most."""
    best = predictions(quantities, manifest, min(top_k, most))
    target = target_class(quantities, manifest)
    if any(row["index"] == target["index"] for row in best):
        return best
    return [*best[: most - 1], target]


def _header(
    quantities: Quantities, manifest: Manifest, options: Options, image: Preprocessed, run: Run
) -> dict[str, Any]:
    crop = manifest.preprocessing.crop
    target = target_class(quantities, manifest) | {"mode": options.target.mode}
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
        "target": {name: target[name] for name in ("index", "label", "mode", "probability", "logit")},
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
        if not why_absent(group, manifest):
            document[group] = _group(quantities, manifest, group, index)
    if options.complete:
        document.setdefault(LESION, None)
    document["outside_band"] = outside_band(quantities, manifest, options, index)
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


def _group(
    quantities: Quantities, manifest: Manifest, group: str, index: int
) -> dict[str, Any] | float | None:
    digits = LOGIT_DIGITS if group in ATTRIBUTED else DIGITS
    values = [_number(quantities.scalars[name][index], digits) for name in scalar_names(group)]
    members = SCALAR_GROUPS[group]
    if not members:
        return values[0]
    numbers: dict[str, Any] = dict(zip(members, values, strict=True))
    if group not in quantities.classes:
        return numbers
    best = int(quantities.classes[group][index])
    if best < 0:
        return None
    about = {"index": best, "label": manifest.labels[best].label}
    if group == "lens":
        return about | numbers
    about = {"flipped": best != quantities.top1} | about
    of_target = {name: numbers.pop(name) for name in members if name.startswith("target_")}
    return numbers | about | of_target


def outside_band(
    quantities: Quantities, manifest: Manifest, options: Options, index: int
) -> dict[str, str] | None:
    """The scalars asked for that few validation images have as low, or as high, in this block."""
    if manifest.reference is None:
        return None
    outside = {}
    for name in (name for group in options.groups for name in scalar_names(group)):
        band, values_L = usual_band(quantities, manifest, name, index), quantities.scalars.get(name)
        if band is None or values_L is None:
            continue
        low, high = band
        if values_L[index] < low or values_L[index] > high:
            outside[name] = "below" if values_L[index] < low else "above"
    return outside


def usual_band(
    quantities: Quantities, manifest: Manifest, name: str, index: int
) -> tuple[float, float] | None:
    """The 5th and 95th percentile of a block's scalar over the validation images.

    None where that was not measured, or is about another class than `quantities` are.
    """
    bands = manifest.reference.scalars.get(name) if manifest.reference else None
    if bands is None or (name in OF_TOP_CLASS and quantities.target != quantities.top1):
        return None
    band = bands[index]
    return None if band is None else (band[0], band[2])


def _decomposition(parts: Decomposition) -> dict[str, float | None]:
    return {name: _number(value, LOGIT_DIGITS) for name, value in parts._asdict().items()}


def _checks(
    quantities: Quantities, manifest: Manifest, run: Run, parts: Decomposition | None
) -> dict[str, float | None]:
    """How far the figures can be trusted; see docs/introspection.md.

    `sum_parity_max_abs` is not of this image: it was measured when the graph was exported, against the source
    network's own sum.
    """
    graph = manifest.graph("introspect", run.precision)
    parity = graph.parity.sum_parity_max_abs if graph else None
    return {
        "sum_parity_max_abs": None if parity is None else _number(parity),
        "completeness_abs_err": None if parts is None else _number(abs(parts.sum - parts.logit)),
        "energy_sum_err": _number(quantities.energy_sum_err),
        "map_scalar_err": _number(quantities.map_scalar_err),
    }


def _reference(manifest: Manifest) -> dict[str, Any] | None:
    if (reference := manifest.reference) is None:
        return None
    return {
        "dataset": reference.dataset,
        "num_images": reference.num_images,
        "num_lesion_images": reference.num_lesion_images,
        "percentiles": list(PERCENTILES),
    }


def _null_reasons(manifest: Manifest, options: Options, encoding: MapEncoding) -> dict[str, str]:
    """Why fields of this answer are null in every block: what the artifact lacks, or was not asked for."""
    asked = {*options.groups, *(options.maps if encoding != "none" else ())}
    absent = reasons_absent(manifest)
    reasons = {name: why for name, why in absent.items() if name.partition(".")[0] in asked}
    if options.complete and LESION not in options.groups:
        reasons[LESION] = ASK_FOR_LESIONS
    if "lens" in options.groups and not set(options.blocks) & set(lens_blocks(manifest.blocks)):
        reasons.setdefault("lens", NO_LENS)
    contribution = absent.get("contribution") if "contribution" in options.groups else NOT_ASKED
    if contribution:
        reasons |= dict.fromkeys(("decomposition", "checks.completeness_abs_err"), contribution)
    if manifest.reference is None:
        reasons |= dict.fromkeys(("reference", "outside_band"), NO_REFERENCE)
    return reasons


def _number(value: float | np.floating[Any], digits: int = DIGITS) -> float | None:
    """Rounded to significant digits, whole numbers as integers (shorter in JSON); None for NaN."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded

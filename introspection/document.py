"""Quantities -> the answer of `/introspect`: a JSON document, or the same as NPZ.

It knows no HTTP; the command line calls it too. The order of keys is that of docs/introspection.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from artifact.manifest import PERCENTILES, Block, Manifest, lens_blocks
from artifact.postprocess import softmax, top_predictions
from artifact.preprocess import Preprocessed
from introspection.attribution import Decomposition
from introspection.encoding import encode_map
from introspection.measure import Quantities
from introspection.quantities import (
    ATTRIBUTED,
    LESION,
    SCALAR_GROUPS,
    MapEncoding,
    MapQuantity,
    reasons_absent,
    scalar_names,
    why_absent,
)
from introspection.question import Options
from introspection.rows import Run
from introspection.scales import block_map, ranges_of_blocks
from introspection.usual import outside_band

DIGITS = 5  # significant, of scalars: sums in float32 promise no more
LOGIT_DIGITS = 8  # of logits and probabilities, so that they compare with those of /classify
ASK_FOR_LESIONS = "ask for it with lesion=true"
NOT_ASKED = "contribution was not asked for"
NO_LENS = "only blocks whose output has the last block's shape have a lens"
NO_REFERENCE = "this artifact was exported without validation images"


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

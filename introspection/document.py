"""What was seen in one image -> the JSON document of `/introspect`.

Knows no HTTP; the command line calls it too. The order of keys is that of docs/introspection.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic_core

from artifact.manifest import PERCENTILES, Block, Manifest, lens_blocks
from artifact.postprocess import softmax, top_predictions
from introspection.attribution import Decomposition
from introspection.digits import LOGIT_DIGITS, json_number, json_numbers
from introspection.encoding import MapEncoding, encode_maps
from introspection.measure import Values
from introspection.quantities import GROUPS, reasons_absent
from introspection.quantity import Group
from introspection.question import Question
from introspection.scales import parts_of_one_scale
from introspection.seen import Seen
from introspection.usual import outside_bands

NOT_ASKED = "contribution was not asked for"
NO_LENS = "only blocks whose output has the last block's shape have a lens"
NO_REFERENCE = "this artifact was exported without validation images"


def answer(seen: Seen, question: Question, encoding: MapEncoding = "u8") -> dict[str, Any]:
    """Return the JSON document of `/introspect`: no NaN, numbers rounded, keys in the contract's order.

    Args:
        encoding: of the maps, where the question leaves it open.
    """
    manifest, chosen = seen.manifest, question.encoding or encoding
    document = _header(seen, question)
    document["blocks"] = _blocks(seen, question, chosen)
    parts = seen.values.decomposition if "contribution" in question.groups else None
    document["decomposition"] = None if parts is None else _decomposition(parts)
    document["checks"] = _checks(seen, parts)
    document["reference"] = _reference(manifest)
    document["timing_ms"] = {name: round(ms, 3) for name, ms in seen.run.timing_ms.items()}
    document["null_reasons"] = _null_reasons(manifest, question, chosen)
    return document


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return a document as compact UTF-8 JSON.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has not and no answer may have.
    """
    body = pydantic_core.to_json(document, inf_nan_mode="constants")
    if b"NaN" in body or b"Infinity" in body:  # perhaps only in a label
        json.dumps(document, allow_nan=False, default=str)
    return body


def predictions(seen: Seen, top_k: int) -> list[dict[str, Any]]:
    """Return the `top_k` most probable classes, as `/classify` gives them, rounded."""
    best = top_predictions(seen.values.logits_K, seen.manifest.labels, top_k)
    return [
        {
            "index": prediction.index,
            "label": prediction.label,
            "wnid": prediction.wnid,
            "probability": json_number(prediction.probability, LOGIT_DIGITS),
            "logit": json_number(prediction.logit, LOGIT_DIGITS),
        }
        for prediction in best
    ]


def target_class(seen: Seen) -> dict[str, Any]:
    """Return the class that contributions are about: its index, label, probability and logit, rounded."""
    logits_K, index = seen.values.logits_K, seen.values.target
    return {
        "index": index,
        "label": seen.target_label,
        "probability": json_number(softmax(logits_K)[index], LOGIT_DIGITS),
        "logit": json_number(logits_K[index], LOGIT_DIGITS),
    }


def predictions_with_target(seen: Seen, top_k: int, most: int) -> list[dict[str, Any]]:
    """Return the `top_k` most probable classes, then the target if it is none of them; `most` at most."""
    best = predictions(seen, min(top_k, most))
    target = target_class(seen)
    if any(row["index"] == target["index"] for row in best):
        return best
    return [*best[: most - 1], target]


def _header(seen: Seen, question: Question) -> dict[str, Any]:
    manifest, image, run = seen.manifest, seen.image, seen.run
    crop = manifest.preprocessing.crop
    target = target_class(seen) | {"mode": question.target.mode}
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
        "predictions": predictions(seen, question.top_k),
        "gates": json_numbers(question.gates_L, LOGIT_DIGITS),
    }


def _blocks(seen: Seen, question: Question, encoding: MapEncoding) -> list[dict[str, Any]]:
    """Return the objects of the blocks asked for.

    Every field is made for all blocks at once: for so short arrays, NumPy's calls cost more than its work.
    """
    indices, absent = question.blocks, reasons_absent(seen.manifest)
    nulls = [None] * len(indices)
    fields: dict[str, Sequence[Any]] = {
        name: nulls if name in absent else _group(seen, GROUPS[name], indices) for name in question.groups
    }
    if question.complete:
        for group in GROUPS.values():
            if group.reminder:
                fields.setdefault(group.name, nulls)
    fields["outside_band"] = outside_bands(seen, question, indices)
    fields["maps"] = _maps(seen, question, encoding)
    return [
        _describe(seen.manifest.blocks[index]) | dict(zip(fields, row, strict=True))
        for index, row in zip(indices, zip(*fields.values(), strict=True), strict=True)
    ]


def _maps(seen: Seen, question: Question, encoding: MapEncoding) -> list[dict[str, Any]]:
    """Return the maps asked for, by quantity, of each block; None for those that do not exist."""
    if encoding == "none":
        return [{} for _ in question.blocks]
    found: list[dict[str, Any]] = []
    for part, bounds in parts_of_one_scale(seen, question):
        positions = seen.positions(part)
        maps = {quantity: seen.values.maps[quantity][positions] for quantity in bounds}
        shapes = [seen.manifest.blocks[index].shape[1:] for index in part]
        found += encode_maps(maps, bounds, shapes, encoding)
    return [{quantity: maps.get(quantity) for quantity in question.maps} for maps in found]


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


def _group(seen: Seen, group: Group, blocks: Sequence[int]) -> list[Any]:
    """Return a group's value in each block: a number, an object, or a list of objects, best first."""
    values, chosen = seen.values, np.array(blocks)
    if group.ranked:
        return [_ranked(values, group, index) for index in chosen]
    columns: dict[str, Sequence[Any]] = {
        member.name: json_numbers(values.scalars[group.full_name(member)][chosen], group.digits)
        for member in group.numbers
    }
    if not group.members[0].name:
        return list(columns[""])
    known = [True] * len(chosen)
    if group.name in values.classes:
        best = values.classes[group.name][chosen].tolist()
        known = [index >= 0 for index in best]
        columns["index"] = best
        columns["label"] = [seen.manifest.labels[index].label for index in best]
        columns["flipped"] = [index != values.top1 for index in best]
    names = [member.name for member in group.members]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [
        dict(zip(names, row, strict=True)) if exists else None
        for row, exists in zip(rows, known, strict=True)
    ]


def _ranked(values: Values, group: Group, index: int) -> list[dict[str, Any]]:
    """Return a block's list of objects, best first."""
    names = [member.name for member in group.members]
    columns = [
        json_numbers(values.ranked[group.full_name(member)][index], group.digits) for member in group.members
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True) if row[0] is not None]


def _decomposition(parts: Decomposition) -> dict[str, float | None]:
    return {name: json_number(value, LOGIT_DIGITS) for name, value in parts._asdict().items()}


def _checks(seen: Seen, parts: Decomposition | None) -> dict[str, float | None]:
    """Return how far the figures can be trusted; see docs/introspection.md.

    `sum_parity_max_abs` is not of this image: it was measured when the graph was exported, against the source
    network's own sum.
    """
    graph = seen.manifest.graph("introspect", seen.run.precision)
    parity = graph.parity.sum_parity_max_abs if graph else None
    return {
        "sum_parity_max_abs": None if parity is None else json_number(parity),
        "completeness_abs_err": None if parts is None else json_number(abs(parts.sum - parts.logit)),
        "energy_sum_err": json_number(seen.values.energy_sum_err),
        "map_scalar_err": json_number(seen.values.map_scalar_err),
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


def _null_reasons(manifest: Manifest, question: Question, encoding: MapEncoding) -> dict[str, str]:
    """Return why fields are null in every block: what the artifact lacks, or was not asked for."""
    asked = {*question.groups, *(question.maps if encoding != "none" else ())}
    absent = reasons_absent(manifest)
    reasons = {name: why for name, why in absent.items() if name.partition(".")[0] in asked}
    if question.complete:
        unasked = (group for group in GROUPS.values() if group.name not in question.groups)
        reasons |= {group.name: group.reminder for group in unasked if group.reminder}
    if "lens" in question.groups and not set(question.blocks) & set(lens_blocks(manifest.blocks)):
        reasons.setdefault("lens", NO_LENS)
    contribution = absent.get("contribution") if "contribution" in question.groups else NOT_ASKED
    if contribution:
        reasons |= dict.fromkeys(("decomposition", "checks.completeness_abs_err"), contribution)
    if manifest.reference is None:
        reasons |= dict.fromkeys(("reference", "outside_band"), NO_REFERENCE)
    return reasons

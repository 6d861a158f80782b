"""What a user changes about weights, and the defaults where neither the user nor a publisher says anything.

Fields of an architecture, preprocessing and labels, each with an error that names its flag. The module knows
neither where weights come from nor what becomes of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from artifact.errors import ResiduumError
from artifact.manifest import Label, Preprocessing
from models.cifar import CIFAR_CLASSES, CIFAR_MEAN, CIFAR_STD, cifar_labels
from models.imagenet import IMAGENET_MEAN, IMAGENET_STD, NUM_CLASSES, imagenet_labels
from models.pretrained import IMAGENET
from models.zoo import Architecture

# Fields that do not describe the network, or (the number of classes) that the file tells.
NOT_SETTABLE = {"name", "aliases", "source", "num_parameters", "num_macs", "num_classes", "hidden"}
SETTABLE = tuple(f.name for f in fields(Architecture) if f.name not in NOT_SETTABLE)
MAX_PIXELS = 4096  # of a side


class OptionError(ResiduumError):
    """An option is invalid; the message names its flag."""


# --- the network -------------------------------------------------------------------------------------


def check_fields(changes: Mapping[str, str]) -> None:
    """Raise OptionError if an architecture has no such field, or it cannot be changed."""
    if unknown := set(changes) - set(SETTABLE):
        raise OptionError(f"--set {min(unknown)}: no such field; there are: {', '.join(SETTABLE)}")


def with_changes(spec: Architecture, changes: Mapping[str, str]) -> Architecture:
    """Return the architecture with changed fields; `changes` has text, as the command line gives it."""
    values: dict[str, Any] = {
        name: None if text.lower() == "none" else text for name, text in changes.items()
    }
    if values.get("depths"):
        values["depths"] = values["depths"].split(",")
    try:
        checked = TypeAdapter(Architecture).validate_python(asdict(spec) | values)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = {str(place): changes[str(place)] for place in first["loc"][:1] if place in changes}
        raise OptionError(f"{flags_of(wrong or changes)}: {first['msg']}") from error
    return replace(checked, num_parameters=None, num_macs=None)


def flags_of(changes: Mapping[str, str]) -> str:
    """Return the changes as flags of the command line."""
    return " ".join(f"--set {name}={text}" for name, text in changes.items())


# --- preprocessing -----------------------------------------------------------------------------------


def changed_preprocessing(preprocessing: Preprocessing, changes: Mapping[str, object]) -> Preprocessing:
    """Return changed preprocessing; raise OptionError: out of range, not finite, or a crop too large."""
    try:
        changed = Preprocessing.model_validate(preprocessing.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(f"--{first['loc'][0]} {changes[str(first['loc'][0])]}: {first['msg']}") from error
    for name, pixels in (("resize", changed.resize), ("crop", changed.crop)):
        if not 0 < pixels <= MAX_PIXELS:
            raise OptionError(f"--{name} {pixels}: expected 1 to {MAX_PIXELS} pixels")
    if changed.crop > changed.resize:
        raise OptionError(f"--crop {changed.crop} does not fit into --resize {changed.resize}: give both")
    if not all(0 <= value <= 1 for value in changed.mean):  # nor nan
        raise OptionError(f"--mean {numbers(changed.mean)}: must lie in [0, 1], as pixels do")
    if not all(0 < value < math.inf for value in changed.std):
        raise OptionError(f"--std {numbers(changed.std)}: must be above 0, and finite")
    return changed


def usual_preprocessing(spec: Architecture) -> Preprocessing:
    """Return the default preprocessing: images of ImageNet's size are cropped to 7/8, smaller ones not."""
    size = spec.input_size
    mean, std = (CIFAR_MEAN, CIFAR_STD) if _is_cifar(spec) else ({}, {})
    return Preprocessing(
        resize=size * 8 // 7 if size >= 128 else size,
        crop=size,
        mean=mean.get(spec.num_classes, IMAGENET_MEAN),
        std=std.get(spec.num_classes, IMAGENET_STD),
    )


def numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


# --- labels ------------------------------------------------------------------------------------------


def usual_labels(spec: Architecture) -> tuple[tuple[Label, ...], str]:
    """Return the default labels by the number of classes, and in words whose they are."""
    if _is_cifar(spec):
        return cifar_labels(spec.num_classes), f"those of CIFAR-{spec.num_classes}"
    if spec.num_classes == NUM_CLASSES:
        return imagenet_labels(), f"those of {IMAGENET}"
    return tuple(Label(label=f"class {index}") for index in range(spec.num_classes)), "without names"


def _is_cifar(spec: Architecture) -> bool:
    return spec.input_size == 32 and spec.num_classes in CIFAR_CLASSES


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read class names in order: one a line, or JSON: names, {"label", "wnid"} objects, an object by index.

    Raises:
        OptionError: unreadable, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json" and not text.lstrip().startswith(("[", "{")):
            return tuple(Label(label=line.strip()) for line in text.splitlines() if line.strip())
        found = json.loads(text)
        if isinstance(found, dict):
            by_index = {int(index): value for index, value in found.items()}
            found = [by_index[index] for index in range(len(by_index))]
        return tuple(Label(label=row) if isinstance(row, str) else Label.model_validate(row) for row in found)
    except OSError as error:
        raise OptionError(f"--labels {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"--labels {path}: expected one name a line, or JSON with names in order"
        ) from error

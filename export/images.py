"""The images on which an export is calibrated and measured, preprocessed as for serving.

A data set is anything that `models.training.data` reads. Calibration needs no labels: a directory of
photographs like those that will be sent is enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import Label, Preprocessing
from artifact.preprocess import ImageError, preprocess

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImagesError(ResiduumError):
    """The images cannot be read, or do not fit the network; the message says why."""


@dataclass(frozen=True)
class CalibrationImages:
    """uint8 [num_images, crop, crop, 3]."""

    name: str
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class ValidationImages:
    """uint8 [num_images, crop, crop, 3]; labels int64 [num_images]."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def calibration_images(path: str, spec: Preprocessing, count: int) -> CalibrationImages:
    """Return `count` images at equal distances from a data set's training split, or from a directory.

    Raises:
        ImagesError: no such directory, no images in it, or an unreadable image.
        DataError: a data set that cannot be read.
    """
    if count < 1:
        raise ImagesError(f"--num-calibration {count}: at least one image is needed")
    if not is_data_set(path):
        return _folder(Path(path), spec, count)
    from models.training.data import load_images

    found = load_images(path, "train", spec, count, spread=True)
    return CalibrationImages(name_of(path), found.images.numpy())


def validation_images(path: str, spec: Preprocessing, labels: tuple[Label, ...]) -> ValidationImages:
    """Return the validation split of a data set with the classes `labels`.

    Raises:
        ImagesError: it has other classes.
        DataError: a data set that cannot be read.
    """
    from models.training.data import load_images

    found = load_images(path, "valid", spec)
    if not _are_same(found.classes, labels):
        raise ImagesError(f"--data {path}: its classes are not those of the network, or in another order")
    return ValidationImages(name_of(path), found.images.numpy(), found.labels.numpy())


def has_labels(path: str, spec: Preprocessing, labels: tuple[Label, ...]) -> bool:
    """Return whether a path is a data set with a validation split of these classes."""
    if not is_data_set(path):
        return False
    from models.training.data import DataError, load_images

    try:
        return _are_same(load_images(path, "valid", spec, limit=1).classes, labels)
    except DataError:
        return False


def is_data_set(path: str) -> bool:
    """Return whether a path is a data set or a hub's id such as `uoft-cs/cifar10`, and not only images."""
    folder = Path(path)
    if not folder.exists():
        return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None
    return any(folder.glob("train*.parquet")) or (folder / "train").is_dir()


def _are_same(found: Sequence[Label], wanted: Sequence[Label]) -> bool:
    """Compare classes by name or by WordNet id, after which directories are often named."""
    return len(found) == len(wanted) and all(
        a == b or a.label in (b.label, b.wnid) or (a.wnid is not None and a.wnid == b.wnid)
        for a, b in zip(found, wanted, strict=True)
    )


def _folder(folder: Path, spec: Preprocessing, count: int) -> CalibrationImages:
    if not folder.is_dir():
        is_file = (
            "a folder of images is expected, not a file" if folder.exists() else "there is no such folder"
        )
        raise ImagesError(f"--calibration {folder}: {is_file}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ImagesError(f"--calibration {folder}: there are no images in it")
    step = max(1.0, len(files) / count)
    chosen = [files[int(index * step)] for index in range(min(count, len(files)))]
    images = np.empty((len(chosen), spec.crop, spec.crop, 3), np.uint8)
    for index, path in enumerate(chosen):
        try:
            images[index] = preprocess(path.read_bytes(), spec).pixels
        except (OSError, ImageError) as error:
            raise ImagesError(f"--calibration {folder}: {path.name}: {error}") from error
    return CalibrationImages(name_of(str(folder)), images)


def name_of(path: str) -> str:
    """Return the name of a directory without its location, and a hub's id as it is."""
    return Path(path).resolve().name if Path(path).exists() else path

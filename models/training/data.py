"""A labelled image data set, decoded once and held in memory as uint8.

Reads what Hugging Face `datasets` reads: a folder of Parquet shards (`train-*.parquet`,
`valid-*.parquet`), a folder of image folders, or a hub id. Images go through
`artifact.preprocess`, as in serving. The module knows nothing of augmentation.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from artifact.errors import ResiduumError
from artifact.manifest import Label, Preprocessing
from artifact.preprocess import ImageError, preprocess

SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "val", "test")}


class DataError(ResiduumError):
    """The data set cannot be read, or lacks something; the message says what."""


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 [num_images, H, W, 3]; labels: int64 [num_images]; classes: K of them."""

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_images(
    path: str, split: str, spec: Preprocessing, limit: int | None = None, *, spread: bool = False
) -> ImageSet:
    """Decode a split ("train" or "valid") to `spec.crop` pixels square.

    `limit` takes the first images only; with `spread` it takes images at equal distances from beginning to
    end, because data sets are often sorted by class.

    Raises:
        DataError: the path cannot be read, or has no such split, or no image and label columns.
    """
    table = _open(path, split)
    columns = table.features or {}
    image_column = next((n for n, f in columns.items() if isinstance(f, datasets.Image)), None)
    label_column = next((n for n, f in columns.items() if isinstance(f, datasets.ClassLabel)), None)
    if image_column is None or label_column is None:
        raise DataError(f"{path} needs an image column and a ClassLabel column; it has {dict(columns)}")
    if limit is not None and limit < len(table):
        step = len(table) / limit if spread else 1
        table = table.select([int(index * step) for index in range(limit)])
    table = table.cast_column(image_column, datasets.Image(decode=False))

    def decode(index: int) -> None:
        cell = table[index][image_column]
        data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        try:
            images[index] = preprocess(data, spec).pixels
        except ImageError as error:
            raise DataError(
                f"{path}: {split} image {index} ({cell['path'] or 'in a shard'}): {error}"
            ) from error

    images = np.empty((len(table), spec.crop, spec.crop, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(table)), chunksize=256))
    labels = np.array(table[label_column][:], dtype=np.float64)
    if not (labels >= 0).all():
        raise DataError(f"{path}: {int((~(labels >= 0)).sum())} {split} images have no label")
    return ImageSet(
        path,
        torch.from_numpy(images),
        torch.from_numpy(labels).long(),
        _classes(path, columns[label_column].names),
    )


def _open(path: str, split: str) -> datasets.Dataset:
    names = SPLIT_NAMES[split]
    folder = Path(path)
    try:
        if not folder.exists():
            if path.startswith(("/", ".", "~")):
                raise DataError(f"{path}: there is no such folder")
            available = datasets.get_dataset_split_names(path)
            chosen = next((name for name in names if name in available), None)
            if chosen is None:
                raise DataError(f"{path} has no {split} split; it has {', '.join(available)}")
            return datasets.load_dataset(path, split=chosen)
        for name in names:
            shards = sorted(str(file) for file in folder.glob(f"{name}*.parquet"))
            if shards:
                return datasets.load_dataset("parquet", data_files=shards, split="train")
            if (folder / name).is_dir():
                return datasets.load_dataset("imagefolder", data_dir=str(folder / name), split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read the {split} split of {path}: {error}") from error
    raise DataError(
        f"{path} has no {split} split: expected {names[0]}*.parquet or a folder {names[0]}/ of class folders"
    )


def _classes(path: str, names: list[str]) -> tuple[Label, ...]:
    """Return class names, with WordNet ids if a `classes.json` beside the data has them."""
    file = Path(path) / "classes.json"
    if not file.is_file():
        return tuple(Label(label=name) for name in names)
    try:
        wnids = {row["index"]: row.get("wnid") for row in json.loads(file.read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{file} is not a list of {{"index": 0, "wnid": "n01443537"}}: {error!r}') from error
    return tuple(Label(label=name, wnid=wnids.get(index)) for index, name in enumerate(names))

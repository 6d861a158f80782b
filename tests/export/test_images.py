"""Images to calibrate and to measure on: folders of photographs, and data sets of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from artifact.manifest import Label
from export.images import (
    ImagesError,
    calibration_images,
    has_labels,
    is_data_set,
    validation_images,
)
from export.precisions import PrecisionRequest, read_images
from models.resnet import build
from models.training.data import DataError, load_images
from tests.support.images import spec
from tests.support.networks import metadata_for

SPEC = spec(32, 32)
LABELS = (Label(label="cat", wnid="n02121620"), Label(label="dog", wnid="n02084071"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of folders must not outlive them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def grey(path: Path, value: int) -> None:
    """An image that can be told by its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (value, value, value)).save(path)


def values(images: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    return [int(image.mean()) for image in images]


def data_set(folder: Path, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """Ten images to train on and four to validate on, class by class; values count up."""
    for split, count in (("train", 10), ("val", 4)):
        for index in range(count):
            name = classes[index * len(classes) // count]
            grey(folder / split / name / f"{index:02}.png", 10 * index)
    return folder


# --- a folder -----------------------------------------------------------------------------------------


def test_images_of_a_folder_are_spread_evenly(tmp_path: Path) -> None:
    for index in range(10):
        grey(tmp_path / "photographs" / f"{index // 5}" / f"{index}.png", 10 * index)
    (tmp_path / "photographs" / "notes.txt").write_text("no image")
    path = str(tmp_path / "photographs")
    found = calibration_images(path, SPEC, 5)
    assert (found.name, found.images.shape, found.images.dtype) == ("photographs", (5, 32, 32, 3), np.uint8)
    assert values(found.images) == [0, 20, 40, 60, 80]
    assert values(calibration_images(path, SPEC, 3).images) == [0, 30, 60]
    assert values(calibration_images(path, SPEC, 1).images) == [0]
    assert values(calibration_images(path, SPEC, 512).images) == list(range(0, 100, 10))
    assert not is_data_set(path)
    assert not has_labels(path, SPEC, LABELS)


def test_any_suffix_in_any_case(tmp_path: Path) -> None:
    for index, suffix in enumerate(("JPG", "jpeg", "webp", "BMP", "gif", "tif")):
        grey(tmp_path / f"{index}.{suffix}", 100)
    assert len(calibration_images(str(tmp_path), SPEC, 10).images) == 6


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing to see")
    with pytest.raises(ImagesError, match=r"^--calibration .*: there are no images in it$"):
        calibration_images(str(tmp_path), SPEC, 5)
    with pytest.raises(ImagesError, match=r"^--calibration .*absent: there is no such folder$"):
        calibration_images(str(tmp_path / "absent"), SPEC, 5)
    with pytest.raises(ImagesError, match=r"readme\.txt: a folder of images is expected"):
        calibration_images(str(tmp_path / "readme.txt"), SPEC, 5)
    with pytest.raises(ImagesError, match=r"^--num-calibration 0: at least one image is needed$"):
        calibration_images(str(tmp_path), SPEC, 0)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    grey(tmp_path / "good.png", 10)
    (tmp_path / "noise.jpg").write_bytes(b"noise")
    with pytest.raises(ImagesError, match=r"^--calibration .*: noise\.jpg: "):
        calibration_images(str(tmp_path), SPEC, 5)


# --- a data set ---------------------------------------------------------------------------------------


def test_a_data_set_gives_images_of_both_splits(tmp_path: Path) -> None:
    path = str(data_set(tmp_path / "pets"))
    assert is_data_set(path)
    calibration = calibration_images(path, SPEC, 5)
    assert calibration.name == "pets"
    assert values(calibration.images) == [0, 20, 40, 60, 80]  # of either class
    validation = validation_images(path, SPEC, LABELS)
    assert (validation.name, validation.labels.dtype) == ("pets", np.int64)
    assert values(validation.images) == [0, 10, 20, 30]
    assert validation.labels.tolist() == [0, 0, 1, 1]


def test_a_limit_takes_the_first_or_is_spread(tmp_path: Path) -> None:
    path = str(data_set(tmp_path))
    first = load_images(path, "train", SPEC, 3)
    assert values(first.images.numpy()) == [0, 10, 20]
    assert first.labels.tolist() == [0, 0, 0]
    spread = load_images(path, "train", SPEC, 4, spread=True)
    assert values(spread.images.numpy()) == [0, 20, 50, 70]
    assert spread.labels.tolist() == [0, 0, 1, 1]
    assert spread.classes == first.classes
    for limit in (10, 11, None):
        assert len(load_images(path, "train", SPEC, limit, spread=True)) == 10


def test_its_classes_have_to_be_the_network_s(tmp_path: Path) -> None:
    path = str(data_set(tmp_path))
    assert has_labels(path, SPEC, LABELS)
    others = (
        LABELS[::-1],
        (*LABELS, Label(label="emu")),
        (LABELS[0], Label(label="emu")),
        (Label(label="emu", wnid="cat"), Label(label="emu")),
    )
    for labels in others:
        assert not has_labels(path, SPEC, labels)
        with pytest.raises(ImagesError, match="its classes are not those of the network, or in another"):
            validation_images(path, SPEC, labels)


def test_folders_may_be_named_by_wordnet(tmp_path: Path) -> None:
    """Their order by name is that of the classes, as ImageNet's is."""
    path = str(data_set(tmp_path, classes=("n02084071", "n02121620")))
    assert has_labels(path, SPEC, LABELS[::-1])
    assert validation_images(path, SPEC, LABELS[::-1]).labels.tolist() == [0, 0, 1, 1]
    assert not has_labels(path, SPEC, LABELS)


def test_without_a_validation_split_there_are_no_labels(tmp_path: Path) -> None:
    grey(tmp_path / "train" / "cat" / "0.png", 5)
    grey(tmp_path / "train" / "dog" / "1.png", 15)
    path = str(tmp_path)
    assert values(calibration_images(path, SPEC, 2).images) == [5, 15]
    assert not has_labels(path, SPEC, LABELS)
    with pytest.raises(DataError, match="has no valid split"):
        validation_images(path, SPEC, LABELS)


# --- what an export asks for --------------------------------------------------------------------------


def test_labels_of_the_calibration_images_are_used_where_they_fit(tmp_path: Path) -> None:
    path = str(data_set(tmp_path / "pets"))
    metadata = metadata_for(build("resnet20", num_classes=2, depths=(1, 1, 1), width=4))
    pets = metadata.model_copy(update={"labels": LABELS})
    calibration, validation = read_images(PrecisionRequest(("int8",), path, 6), pets)
    assert calibration is not None
    assert validation is not None
    assert (len(calibration.images), len(validation.images)) == (6, 4)
    calibration, validation = read_images(PrecisionRequest(("int8",), path, 6), metadata)
    assert calibration is not None
    assert validation is None  # "class 0" and "class 1"
    assert read_images(PrecisionRequest(("fp16",)), pets) == (None, None)
    with pytest.raises(ImagesError, match=r"--data .*: its classes are not those of the network"):
        read_images(PrecisionRequest(data=path), metadata)

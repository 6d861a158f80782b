"""The labels that ship with the package, against two libraries that have them too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.cifar import CIFAR_CLASSES, CIFAR_MEAN, CIFAR_STD, cifar_labels
from models.imagenet import NUM_CLASSES, imagenet_labels
from tests.support import oracles

# Two classes each are "crane" and "maillot" elsewhere.
TOLD_APART = {"crane (bird)", "maillot (tank suit)"}


def test_a_thousand_different_classes_in_the_order_of_their_ids() -> None:
    labels = imagenet_labels()
    wnids = [label.wnid for label in labels]
    assert len({label.label for label in labels}) == NUM_CLASSES
    assert wnids == sorted(set(map(str, wnids)))


def test_ids_are_those_of_timm() -> None:
    oracles.timm()
    from timm.data import ImageNetInfo

    assert [label.wnid for label in imagenet_labels()] == ImageNetInfo().label_names()


def test_names_are_those_of_torchvision_but_for_the_ones_that_occur_twice() -> None:
    oracles.torchvision()
    from torchvision.models import ResNet50_Weights

    theirs = ResNet50_Weights.DEFAULT.meta["categories"]
    differing = {
        ours.label for ours, name in zip(imagenet_labels(), theirs, strict=True) if ours.label != name
    }
    assert differing == TOLD_APART


def test_names_are_those_of_the_embedded_model(embedded: Path) -> None:
    ours = {label.wnid: label.label for label in imagenet_labels()}
    manifest = json.loads((embedded / "manifest.json").read_text())
    same = [row for row in manifest["labels"] if row["wnid"] in ours]
    assert len(same) > 100
    assert [row["label"] for row in same] == [ours[row["wnid"]] for row in same]


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar(num_classes: int) -> None:
    names = CIFAR_CLASSES[num_classes]
    assert len(cifar_labels(num_classes)) == num_classes
    assert names == sorted(set(names))
    assert len(CIFAR_MEAN[num_classes]) == len(CIFAR_STD[num_classes]) == 3

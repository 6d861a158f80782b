from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.identify import identify, nearest, untold
from models.resnet import ResNet
from models.zoo import ZOO, Architecture, architecture

# Rows that have the tensors of another network: plain ones those of option A, a stem those of one with
# another stride or pool, and a deep stem with projections those of ResNet-D.
AMBIGUOUS = {
    name
    for name, row in ZOO.items()
    if (row.variant == "plain" and row.branch != "conv")
    or row.stem in ("3x3/2", "3x3/pool")
    or (row.stem, row.shortcut) == ("deep", "projection")
}


def tensors(spec: Architecture) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return ResNet(spec).state_dict()


@pytest.mark.parametrize("name", sorted(ZOO.keys() - AMBIGUOUS))
def test_every_row_is_found_by_its_tensors(name: str) -> None:
    spec = replace(ZOO[name], num_classes=7)
    assert identify(tensors(spec)) == spec


@pytest.mark.parametrize(
    ("name", "changes", "called"),
    [
        ("resnet50", dict(stem="3x3"), "resnet50"),
        ("resnet50", dict(width=32, depths=(1, 1, 1, 1)), "resnet14"),
        ("resnet18", dict(shortcut="projection-all"), "resnet18"),
        ("resnet20", dict(shortcut="projection-all"), "resnet20"),
        ("resnet50d", dict(depths=(2, 2, 2, 2), se_reduction=8), "seresnet26d"),
        ("seresnet50", dict(se_reduction=4, se_round_to=4), "seresnet50"),
        ("seresnet18", dict(stem="3x3", num_classes=10), "seresnet18"),
        ("resnext29_8x64d", dict(cardinality=4, group_width=24), "resnext29"),
        ("wrn16_4", dict(width=32), "wrn16_2"),
        ("resnetv2_50", dict(group_width=128), "wide_resnetv2_50"),
        ("resnetv2_110", dict(shortcut="projection"), "resnetv2_110"),
        ("vgg16-32px", dict(depths=(1, 1, 2, 2, 2)), "vgg10"),
        ("densenet_bc100_k12", dict(width=24, max_width=24, stem_width=48), "densenet98"),
    ],
)
def test_what_is_in_no_row(name: str, changes: dict[str, object], called: str) -> None:
    """Described well enough to be built: the same tensors."""
    spec = architecture(name, **changes)
    found = identify(tensors(spec))
    assert found.name == called
    assert {k: v.shape for k, v in tensors(found).items()} == {k: v.shape for k, v in tensors(spec).items()}


def test_pools_are_told_by_the_caller() -> None:
    state = tensors(architecture("resnet50d"))
    assert identify(state).shortcut == identify(state, pooled=True).shortcut == "pooled-projection"
    assert identify(state, pooled=False).shortcut == "projection"


def test_the_nearest_row() -> None:
    state = tensors(architecture("seresnet50", num_classes=3))
    state = {name: tensor for name, tensor in state.items() if ".se." not in name}
    assert nearest(state).startswith("nearest architecture: resnet50 (")
    assert nearest({"decoder.weight": torch.ones(1)}) == "no architecture is near"


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("resnet20", {}, ["stem=3x3/pool or stem=3x3/2", "shortcut=pad-after", "variant=plain"]),
        ("resnetv2_110", dict(shortcut="pad"), ["stem=3x3/pool", "shortcut=pad-after"]),
        ("highway20", dict(shortcut="pad"), ["stem=3x3/pool", "shortcut=pad-after"]),
        ("wrn16_4", {}, ["stem=3x3/pool"]),
        ("plain20", {}, ["stem=3x3/pool"]),
        ("resnet50", dict(stem="3x3/pool"), []),
        ("resnet50", {}, []),
        ("resnet50d", {}, []),
    ],
)
def test_what_tensors_do_not_tell(name: str, changes: dict[str, object], told: list[str]) -> None:
    sentences = untold(architecture(name, **changes))
    assert len(sentences) == len(told)
    assert all(f"--set {change}" in sentence for change, sentence in zip(told, sentences, strict=True))

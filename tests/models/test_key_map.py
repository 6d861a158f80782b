from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from models.key_map import WeightsError, foreign_name, read, recognise, to_foreign, to_ours, write
from models.resnet import ResNet, build
from models.styles import STYLES
from tests.support.networks import liven

KINDS: dict[str, dict[str, object]] = {
    "basic": dict(name="resnet18"),
    "bottleneck": dict(name="resnet50"),
    "grouped": dict(name="resnext50_32x4d", cardinality=2, group_width=4),
    "deep": dict(name="resnet50d"),
    "deep, not pooled": dict(name="resnet50d", shortcut="projection"),
    "squeezed": dict(name="seresnet50"),
    "preact": dict(name="resnetv2_50"),
    "wide": dict(name="wrn16_4", width=32, stem_width=8, depths=(1, 2, 1)),
    "dense": dict(name="densenet_bc100_k12", width=4, max_width=4, stem_width=8, depths=(2, 2, 2)),
    "highway": dict(name="highway20", depths=(1, 2)),
}


@cache
def network(kind: str) -> ResNet:
    """Three stages or so of one or two blocks; every tensor another."""
    fields = {"width": 8, "depths": (2, 1, 1), "num_classes": 5} | KINDS[kind]
    return liven(build(str(fields.pop("name")), seed=3, **fields))


# Which styles have names for them.
V1 = ("basic", "bottleneck", "grouped")
EXPRESSED = {
    "torchvision": (*V1, "squeezed"),
    "timm": (*V1, "squeezed", "deep", "deep, not pooled", "preact"),
    "transformers": V1,
    "cifar": ("preact", "wide"),
    "pytorchcv": (*V1, "squeezed", "preact", "wide", "dense"),
    "weiaicunzai": V1,
    "xternalz": ("preact", "wide", "dense"),
    "residuum": (*V1, "squeezed", "deep", "preact", "wide", "dense", "highway"),
}


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.model.", "net."])
@pytest.mark.parametrize(
    ("style", "kind"), [(style, kind) for style, kinds in EXPRESSED.items() for kind in kinds]
)
def test_there_and_back(style: str, kind: str, prefix: str) -> None:
    model = network(kind)
    foreign = to_foreign(model, style)
    ours = to_ours(wrapped(foreign, prefix))
    assert recognise(foreign).partition("-")[0] in (style, "torchvision")  # timm's v1 is torchvision's
    state = model.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)


def test_every_project_is_tried() -> None:
    assert {style.partition("-")[0] for style in STYLES} == EXPRESSED.keys()


@pytest.mark.parametrize("style", STYLES)
def test_every_row_counts_the_same_things(style: str) -> None:
    for theirs, ours in STYLES[style]:
        place = {"stage": 2, "block": 10, "conv": 1}
        read_back = read(theirs, write(theirs, place))
        assert read_back is not None
        assert read_back == read(ours, write(ours, place))


@pytest.mark.parametrize(
    ("template", "name", "place"),
    [
        ("layer{stage1}.{block0}.conv{conv1}", "layer2.11.conv3", dict(stage=1, block=11, conv=2)),
        ("stages.{stage0}.layers.{block0}", "stages.1.layers.0", dict(stage=1, block=0)),
        ("stage{stage1}.trans{stage1}", "stage2.trans2", dict(stage=1)),
        ("stage{stage1}.trans{stage1}", "stage2.trans3", None),
        ("bn{conv2}", "bn1", None),
        ("layer{stage1}.{block0}", "layer2.1.conv1", None),
        ("a.b", "axb", None),
    ],
)
def test_templates(template: str, name: str, place: dict[str, int] | None) -> None:
    assert read(template, name) == place
    if place is not None:
        assert write(template, place) == name


def test_v1_and_v2_under_the_same_names() -> None:
    """`bn1` and `layer1.0.bn1` are in both: shapes tell which they are."""
    v2 = to_foreign(network("preact"), "cifar-v2")
    v2 = {name.replace("bn.", "bn1.") if name.startswith("bn.") else name: v2[name] for name in v2}
    v1 = to_foreign(network("bottleneck"), "torchvision")
    assert recognise(v2) == "cifar-v2"
    assert recognise(v1) == "torchvision"
    assert {"bn1.weight", "layer1.0.bn1.weight"} <= v1.keys() & v2.keys()
    for project in ("pytorchcv", "pytorchcv-v2"):
        model = network("preact" if project.endswith("v2") else "bottleneck")
        assert recognise(to_foreign(model, "pytorchcv")) == project


def test_a_classifier_may_be_a_convolution() -> None:
    foreign = to_foreign(network("preact"), "timm")
    assert foreign["head.fc.weight"].shape == (5, 128, 1, 1)
    for weight in (foreign["head.fc.weight"], foreign["head.fc.weight"].flatten()):
        assert to_ours(foreign | {"head.fc.weight": weight})["head.weight"].shape == (5, 128)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: to_foreign(network("basic"), "tensorflow"),
            "unknown style 'tensorflow': known are torchvision",
        ),
        (
            lambda: to_foreign(network("highway"), "torchvision"),
            r"no names for highway20: stage1\.0\.transform",
        ),
        (lambda: to_foreign(network("deep"), "pytorchcv"), "no names for resnet50d"),
        (
            lambda: to_ours({"fc.weight": torch.ones(1), "linear.weight": torch.ones(1)}),
            "mean the same tensor",
        ),
        (lambda: to_ours({"decoder.weight": torch.ones(1)}), "unknown tensor names: decoder.weight"),
    ],
)
def test_what_cannot_be_said_is_named(act: Callable[[], object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        act()


def test_a_name_alone() -> None:
    assert foreign_name("stage2.0.branch.norm1.running_var", "transformers") == (
        "resnet.encoder.stages.1.layers.0.layer.0.normalization.running_var"
    )
    assert foreign_name("stage2.0.preact.norm.weight", "transformers") is None


def test_an_averaged_model() -> None:
    state = wrapped(network("basic").state_dict(), "module.")
    assert "n_averaged" not in to_ours(state | {"n_averaged": torch.tensor(3)})

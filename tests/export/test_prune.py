"""Pruning: thinner branches, the same residual stream, and a network that exports like any other."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.network import Network, Origin
from export.pipeline import export_artifact
from export.prune import PruneError, describe_pruned, hidden_widths, kept_channels, prune
from export.verify import synthetic_images
from models.checkpoint import CheckpointError, describe_architecture, load_checkpoint, save_checkpoint
from models.count import count
from models.layers import SqueezeExcitation
from models.pixels import normalised
from models.resnet import ResNet, build, describe_blocks
from models.statistics import estimate_statistics
from models.training.data import ImageSet
from models.training.fine_tune import fine_tune, fine_tune_recipe
from models.training.recipe import get_recipe
from models.zoo import Architecture, architecture
from tests.support.networks import liven, metadata_for

# One block of every kind that there is, thin enough for a test, wide enough for something to go.
SMALL = dict(width=16, depths=(1, 1), num_classes=10)
KINDS: dict[str, dict[str, object]] = {
    "resnet18-64px": SMALL,
    "resnet50": SMALL,
    "resnet18d": SMALL,
    "wide_resnet50_2": {**SMALL, "group_width": 32},
    "resnext50_32x4d": {**SMALL, "cardinality": 8, "group_width": 4},
    "seresnext50_32x4d": {**SMALL, "cardinality": 8, "group_width": 4},
    "resnext101_32x8d": {**SMALL, "cardinality": 32, "group_width": 1},
    "seresnet18": SMALL,
    "resnetv2_18": SMALL,
    "resnetv2_50": SMALL,
    "wrn16_4": SMALL,
    "resnet20": SMALL,
    "plain20": SMALL,
    "highway20": SMALL,
    "densenet_bc100_k12": {"depths": (2, 1), "num_classes": 10},
}
IMAGES = synthetic_images(2, 32, seed=0)


def small(name: str) -> ResNet:
    return liven(build(name, seed=1, **KINDS[name]))


def logits(model: ResNet) -> torch.Tensor:
    with torch.inference_mode():
        return model(
            normalised(IMAGES, metadata_for(model).preprocessing, torch.float64).to(next(model.parameters()))
        )


def silence(model: ResNet, ratio: float) -> None:
    """Make nothing of the hidden channels that the ratio stands for, chosen at random; whole groups, if any.

    Nothing comes in (weights), nothing is added (norms) and nothing goes on (the next weights).
    """
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _, block in model.named_blocks():
            convs = [layer for layer in block.branch if isinstance(layer, nn.Conv2d)]
            norms = [layer for layer in block.branch if isinstance(layer, nn.BatchNorm2d)]
            per_group = max(c.in_channels // c.groups if c.groups > 1 else 0 for c in convs)
            chosen = np.empty(0, np.int64)
            for number, (before, after) in enumerate(pairwise(convs)):
                if not per_group or number == 0:
                    unit = per_group or 1
                    kept = kept_channels(before.out_channels, ratio, unit)
                    groups = rng.permutation(before.out_channels // unit)[kept // unit :]
                    chosen = (groups[:, None] * unit + np.arange(unit)).reshape(-1)
                before.weight[chosen] = 0
                norms[number].weight[chosen] = 0
                norms[number].bias[chosen] = 0
                if after.groups == 1:
                    after.weight[:, chosen] = 0


@pytest.mark.parametrize("name", KINDS)
def test_channels_that_do_nothing_are_those_that_go(name: str) -> None:
    """Exactly: the logits stay, and so does the network that was given."""
    model = small(name).double()
    silence(model, 0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    thinner = prune(model, 0.5)
    assert torch.allclose(logits(thinner), logits(model), rtol=0, atol=1e-9)
    assert not thinner.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_only_hidden_channels_go(name: str) -> None:
    model = small(name)
    thinner = prune(model, 0.3)
    assert describe_blocks(thinner, 32) == describe_blocks(model, 32)
    assert [s.shape for s in thinner.stem.state_dict().values()] == [
        s.shape for s in model.stem.state_dict().values()
    ]
    pairs = list(zip(sum(hidden_widths(model), ()), sum(hidden_widths(thinner), ()), strict=True))
    assert all(new <= old and new % 8 == 0 for old, new in pairs)
    assert any(new < old for old, new in pairs)
    assert thinner.spec == replace(
        model.spec, hidden=hidden_widths(thinner), num_parameters=None, num_macs=None
    )
    assert count(thinner.spec).num_macs < count(model.spec).num_macs
    assert count(thinner.spec).num_parameters == sum(p.numel() for p in thinner.parameters())
    for (_, old), (_, new) in zip(model.named_blocks(), thinner.named_blocks(), strict=True):
        for layer, thin in zip(old.branch, new.branch, strict=True):
            if isinstance(layer, nn.Conv2d):  # groups are fewer, not thinner
                assert layer.groups == thin.groups or layer.weight.shape[1] == thin.weight.shape[1]
            if isinstance(layer, SqueezeExcitation):
                assert layer.reduce.weight.shape == thin.reduce.weight.shape


def test_pruning_again_starts_from_what_is_left() -> None:
    once = prune(small("resnet50"), 0.25)
    twice = prune(once, 0.5)
    assert (hidden_widths(once), hidden_widths(twice)) == (((16, 16), (24, 24)), ((8, 8), (16, 16)))


def test_a_last_group_stays() -> None:
    model = liven(build("resnext29_8x64d", width=16, group_width=16, depths=(1, 1), cardinality=4))
    once = prune(model, 0.9)
    assert hidden_widths(once) == ((16, 16), (32, 32))
    with pytest.raises(PruneError, match="rounds to nothing"):
        prune(once, 0.5)


@pytest.mark.parametrize(
    ("channels", "ratio", "per_group", "kept"),
    [
        (64, 0.3, 1, 48),
        (128, 0.3, 1, 96),
        (256, 0.3, 1, 176),
        (32, 0.3, 1, 24),
        (64, 0.9, 1, 8),
        (12, 0.5, 1, 8),
        (6, 0.5, 1, 6),
        (128, 0.3, 4, 96),
        (512, 0.3, 64, 384),
        (64, 0.0, 1, 64),
    ],
)
def test_what_stays_fills_the_hardware_s_blocks(
    channels: int, ratio: float, per_group: int, kept: int
) -> None:
    assert kept_channels(channels, ratio, per_group) == kept


def test_a_ratio_of_0_changes_nothing() -> None:
    model = small("resnet18-64px")
    same = prune(model, 0.0, IMAGES, metadata_for(model).preprocessing)
    assert torch.equal(logits(same), logits(model))
    assert same.spec == model.spec
    assert same is not model


@pytest.mark.parametrize("ratio", [-0.1, 0.95, float("nan")])
def test_ratios_that_cannot_be(ratio: float) -> None:
    with pytest.raises(PruneError, match=r"must lie in \[0, 0\.9\]"):
        prune(small("resnet20"), ratio)


def test_networks_that_cannot_be_pruned() -> None:
    with pytest.raises(PruneError, match="vgg16-32px has one convolution a block"):
        prune(build("vgg16-32px", width=8, max_width=8), 0.3)
    with pytest.raises(PruneError, match="rounds to nothing: resnet20 hides 8 channels at most"):
        prune(build("resnet20", width=8, depths=(1,)), 0.5)


def test_statistics_are_those_of_the_given_images() -> None:
    model = small("resnet18-64px")
    preprocessing = metadata_for(model).preprocessing
    images = synthetic_images(40, 32, seed=3)
    got = prune(model, 0.4, images, preprocessing)
    expected = prune(model, 0.4)
    estimate_statistics(expected, [normalised(images, preprocessing, torch.float64).float()])
    assert torch.allclose(logits(got), logits(expected), atol=1e-5)
    assert not torch.allclose(logits(got), logits(prune(model, 0.4)), atol=1e-2)


@pytest.mark.parametrize("name", ["resnet18-64px", "resnext50_32x4d"])
def test_a_checkpoint_holds_it(name: str, tmp_path: Path) -> None:
    thinner = prune(small(name), 0.5)
    save_checkpoint(tmp_path / "c.safetensors", thinner, metadata_for(thinner))
    loaded, metadata = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded.spec == thinner.spec
    assert describe_architecture(loaded) == describe_architecture(thinner)
    assert torch.equal(logits(loaded), logits(thinner))
    wrong = metadata.architecture | {"hidden": [[8]]}
    save_checkpoint(tmp_path / "w.safetensors", thinner, metadata.model_copy(update={"architecture": wrong}))
    with pytest.raises(CheckpointError, match="hidden has 1 blocks, depths 2"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_it_exports_and_its_sums_add_up(tmp_path: Path) -> None:
    """The gates hold the logits, and F + s of every block, against the network itself."""
    model = prune(small("resnext50_32x4d"), 0.5)
    metadata = describe_pruned(model, 0.5, metadata_for(model))
    manifest = export_artifact(Network(model, metadata, Origin("random", "0" * 64)), "x", tmp_path / "a")
    assert [graph.kind for graph in manifest.graphs] == ["classify", "introspect", "attribute"]
    assert manifest.blocks == describe_blocks(model, 32)
    recipe = manifest.provenance.recipe
    assert recipe is not None
    assert recipe["pruning"] == {"ratio": 0.5, "importance": "L2 norm", "hidden": ((16, 16), (32, 32))}


def test_fine_tuning_is_the_recipe_s_training_at_a_low_rate(tmp_path: Path) -> None:
    recipe = get_recipe("tiny-imagenet-cpu", {"batch_size": "16", "num_classes": "10"})
    recipe = replace(recipe, store_size=32, test_resize=32, test_crop=32)
    model = prune(small("resnet18-64px"), 0.5)
    before = metadata_for(model).model_copy(
        update={"recipe": {"name": "tiny-imagenet-cpu", **vars(recipe)}, "accuracy": None}
    )
    short = fine_tune_recipe(before, 1)
    assert (short.learning_rate, short.resolutions, short.test_crop) == (0.2 * 0.2, ((1.0, 32),), 32)
    images = ImageSet(
        "made up",
        torch.from_numpy(synthetic_images(32, 32, seed=5)),
        torch.arange(32) % 10,
        metadata_for(model).labels,
    )
    tuned, metadata = fine_tune(model, short, images, images, tmp_path / "run")
    assert tuned.spec == model.spec
    assert not torch.equal(tuned.head.weight, model.head.weight)
    after = describe_pruned(tuned, 0.5, before, metadata)
    assert after.accuracy == metadata.accuracy
    assert after.recipe is not None
    assert after.recipe["before"] == before.recipe
    assert after.recipe["name"] == "tiny-imagenet-cpu, pruned"


def test_weights_that_came_without_a_recipe_are_fine_tuned_too() -> None:
    model = build("resnet50", num_classes=7)
    recipe = fine_tune_recipe(metadata_for(model, 224), 3)
    assert (recipe.architecture, recipe.num_classes, recipe.epochs, recipe.test_crop) == (
        "resnet50",
        7,
        3,
        224,
    )
    assert 0 < recipe.learning_rate < 0.05


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (((8,),), "hidden has 1 blocks, depths 4"),
        (((8, 8),) * 4, "hidden must have 1 width(s) of 1 or more for every basic block, not (8, 8)"),
        (((0,),) * 4, "hidden must have 1 width(s) of 1 or more for every basic block, not (0,)"),
    ],
)
def test_hidden_widths_that_no_network_has(hidden: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        architecture("resnet18", depths=(2, 2), hidden=hidden)


def test_hidden_widths_of_groups() -> None:
    spec: Architecture = architecture("resnext50_32x4d", depths=(1, 1), hidden=((64, 64), (64, 64)))
    assert [conv.groups for _, b in ResNet(spec).named_blocks() for conv in [b.branch.conv2]] == [16, 8]
    for hidden in (((64, 60), (64, 64)), ((64, 64), (60, 60))):
        with pytest.raises(ValueError, match="must be equal, and whole groups of"):
            replace(spec, hidden=hidden)

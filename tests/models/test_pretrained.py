"""The table of published weights, against what the libraries that publish them know; and their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from artifact.manifest import Preprocessing
from artifact.preprocess import preprocess
from models.pretrained import (
    NUM_PARAMETERS,
    PRETRAINED,
    PretrainedError,
    read_preprocessing,
    resolve,
    weights_of,
)
from models.zoo import ZOO
from tests.support import oracles
from tests.support.images import encode

SIZES = [
    (500, 375),
    (375, 500),
    (333, 501),
    (641, 479),
    (257, 256),
    (31, 47),
    (899, 225),
    (224, 224),
    (235, 300),
]
TIMM_ROWS = [row for row in PRETRAINED if row.kind == "timm"]
CONVNEXT: dict[str, Any] = {
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


def timm_config(name: str) -> dict[str, Any]:
    """As a repository's config.json holds it."""
    return {"pretrained_cfg": oracles.timm().models.get_pretrained_cfg(name).to_dict()}


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(x_3HW: Tensor, spec: Preprocessing) -> NDArray[np.int64]:
    """What was normalised, as the whole numbers that it was."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    exact = (x_3HW * std + mean) * 255
    assert float((exact - exact.round()).abs().max()) < 0.01
    return exact.round().to(torch.int64).permute(1, 2, 0).numpy()


def ours(image: Image.Image, spec: Preprocessing) -> NDArray[np.int64]:
    return preprocess(encode(image, "PNG"), spec).pixels.astype(np.int64)


def test_every_row_is_of_an_architecture_and_is_found_by_its_names() -> None:
    assert len({row.key for row in PRETRAINED}) == len(PRETRAINED)
    for row in PRETRAINED:
        assert row.architecture in ZOO
        assert resolve(row.key) == row
        assert resolve(f"{row.architecture}:{row.weights}") == row


def test_torchvision_has_these_and_no_others() -> None:
    oracles.torchvision()
    from torchvision.models import get_model_weights, list_models

    names = [name for name in list_models() if name.startswith(("resnet", "resnext", "wide_resnet"))]
    rows = {row.key: row for row in PRETRAINED if row.kind == "torchvision"}
    for name in names:
        for weights in get_model_weights(name):
            row = rows.pop(f"torchvision/{name}:{weights.name}")
            assert weights.url == f"https://download.pytorch.org/{row.weight_paths()[0]}"
            assert row.sha256 == weights.url.rpartition("-")[2].removesuffix(".pth")
            assert row.num_parameters == weights.meta["num_params"]
            metrics = weights.meta["_metrics"]["ImageNet-1K"]
            assert row.published is not None
            assert 100 * row.published.top1 == pytest.approx(metrics["acc@1"], abs=1e-9)
            assert 100 * row.published.top5 == pytest.approx(metrics["acc@5"], abs=1e-9)
            preset = weights.transforms()
            assert row.preprocessing == Preprocessing(
                resize=preset.resize_size[0],
                crop=preset.crop_size[0],
                interpolation=preset.interpolation.value,
                mean=tuple(preset.mean),
                std=tuple(preset.std),
            )
    assert rows == {}


def test_timm_has_these_and_of_our_architectures_no_others() -> None:
    timm = oracles.timm()
    known = {name for name in timm.list_models(pretrained=True) if name.split(".")[0] in ZOO}
    of_imagenet = {name for name in known if timm.models.get_pretrained_cfg(name).num_classes == 1000}
    assert {f"{row.architecture}.{row.weights}" for row in TIMM_ROWS} == of_imagenet


@pytest.mark.parametrize("row", TIMM_ROWS, ids=lambda row: row.key)
def test_timm_describes_them_so(row: Any) -> None:
    timm = oracles.timm()
    cfg = timm.models.get_pretrained_cfg(f"{row.architecture}.{row.weights}")
    assert (row.location, row.licence) == (cfg.hf_hub_id, cfg.license)
    if row.published:
        assert row.published.pixels == (cfg.test_input_size or cfg.input_size)[1]
    spec = read_preprocessing("timm", {"pretrained_cfg": cfg.to_dict()})
    theirs = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    assert (3, spec.crop, spec.crop) == theirs["input_size"]
    assert (spec.interpolation, spec.mean, spec.std) == (
        theirs["interpolation"],
        theirs["mean"],
        theirs["std"],
    )


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_numbers_of_parameters_are_counted(name: str) -> None:
    with torch.device("meta"):
        network = oracles.timm().create_model(name)
    assert sum(p.numel() for p in network.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("resnet50", "torchvision/resnet50:IMAGENET1K_V2"),
        ("ResNet-50:v1", "torchvision/resnet50:IMAGENET1K_V1"),
        ("resnet50:IMAGENET1K_V1", "torchvision/resnet50:IMAGENET1K_V1"),
        ("resnet50:a1_in1k", "timm/resnet50.a1_in1k"),
        ("resnet50:A1", "timm/resnet50.a1_in1k"),
        ("resnet50.a1h_in1k", "timm/resnet50.a1h_in1k"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("microsoft/resnet-50", "microsoft/resnet-50"),
        ("resnet50:microsoft", "microsoft/resnet-50"),
        ("resnet18", "timm/resnet18.a1_in1k"),  # the best that anyone may use
        ("resnext101_64x4d", "torchvision/resnext101_64x4d:IMAGENET1K_V1"),
        ("seresnet50", "timm/seresnet50.ra2_in1k"),
        ("resnetv2_50", "timm/resnetv2_50.a1h_in1k"),
    ],
)
def test_names(typed: str, key: str) -> None:
    assert resolve(typed).key == key


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("resnet5O", "unknown model 'resnet5O': did you mean resnet50"),
        ("resnet50:a9_in1k", "resnet50 has no weights 'a9_in1k': did you mean .*_in1k or .*_in1k"),
        ("resnet50:v3", "resnet50 has no weights 'v3': did you mean IMAGENET1K_V[12] or IMAGENET1K_V[12]"),
        (
            "resnet50:nonsense",
            r"no weights 'nonsense': there are \w+, \w+, \w+, \w+, \w+; `residuum pull` lists",
        ),
        ("timm/resnet50.a9_in1k", "unknown weights 'timm/resnet50.a9_in1k': did you mean .*timm/resnet50.a"),
        ("resnet20", "nobody we know of published weights of resnet20"),
        ("someone/something", "unknown weights 'someone/something': `residuum pull` lists"),
        ("", "unknown model ''"),
    ],
)
def test_unknown_names_come_with_the_nearest_ones(typed: str, message: str) -> None:
    with pytest.raises(PretrainedError, match=message):
        resolve(typed)


def test_weights_that_not_everyone_may_use_are_never_the_default() -> None:
    assert all(weights_of(name)[0].is_commercial for name in NUM_PARAMETERS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_pixels_are_exactly_those_of_torchvision(size: tuple[int, int], version: str) -> None:
    oracles.torchvision()
    from torchvision.models import ResNet50_Weights

    spec = resolve(f"resnet50:{version}").preprocessing
    assert spec is not None
    image = noise(size)
    theirs = pixels_of(ResNet50_Weights[f"IMAGENET1K_{version}"].transforms()(image), spec)
    assert np.array_equal(ours(image, spec), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "resnet50.a3_in1k", "resnet101d.ra2_in1k", "resnet50.tv2_in1k"]
)
def test_pixels_are_exactly_those_of_timm(size: tuple[int, int], name: str) -> None:
    """crop_pct 0.95, 0.95 of 160, 0.95 of 256, and 0.875 of 176 with bilinear."""
    timm = oracles.timm()
    config = timm_config(name)
    spec = read_preprocessing("timm", config)
    image = noise(size)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(**config))
    assert np.array_equal(ours(image, spec), pixels_of(transform(image), spec))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    """Exactly those of its Pillow processor; its default one resizes tensors, and rounds them otherwise."""
    oracles.transformers()
    from transformers.models.convnext.image_processing_convnext import ConvNextImageProcessor
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    spec = read_preprocessing("transformers", CONVNEXT)
    image = noise(size)
    config = {**CONVNEXT, "size": {"shortest_edge": 224}}
    del config["feature_extractor_type"]
    for processor, tolerance in ((ConvNextImageProcessorPil, 0), (ConvNextImageProcessor, 2)):
        x_NCHW = processor(**config)(image, return_tensors="pt")["pixel_values"]
        theirs = pixels_of(x_NCHW[0].double(), spec)
        assert np.abs(ours(image, spec) - theirs).max() <= tolerance


def test_transformers_may_leave_the_crop_out() -> None:
    spec = read_preprocessing("transformers", CONVNEXT)
    assert read_preprocessing("transformers", CONVNEXT | {"crop_pct": None}) == spec


def test_where_transformers_rounds_the_crop_down_ours_is_a_pixel_further() -> None:
    """397.5 pixels to the left of the crop: torchvision rounds to the even number, transformers down."""
    oracles.transformers()
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    spec = read_preprocessing("transformers", CONVNEXT)
    image = noise((1000, 251))
    config = {**CONVNEXT, "size": {"shortest_edge": 224}}
    del config["feature_extractor_type"]
    x_NCHW = ConvNextImageProcessorPil(**config)(image, return_tensors="pt")["pixel_values"]
    assert np.array_equal(ours(image, spec)[:, :-1], pixels_of(x_NCHW[0].double(), spec)[:, 1:])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("timm", {"crop_pct": None}, "preprocessing: "),
        ("timm", {"crop_mode": "squash"}, "square centre crops"),
        ("timm", {"input_size": (3, 224, 256)}, "square centre crops"),
        ("timm", {"interpolation": "random"}, "preprocessing: "),
        ("transformers", {"size": 384}, "squeezes"),
        ("transformers", {"feature_extractor_type": "ViTFeatureExtractor"}, "known is only ConvNext"),
        ("transformers", {"resample": 0}, "preprocessing: "),
        ("transformers", {"image_mean": [0.5]}, "preprocessing: "),
    ],
)
def test_descriptions_that_we_cannot_follow(kind: Any, change: dict[str, Any], message: str) -> None:
    config = dict(CONVNEXT)
    if kind == "timm":
        config = timm_config("resnet50.a1_in1k")
        config["pretrained_cfg"].update(change)
    with pytest.raises(PretrainedError, match=message):
        read_preprocessing(kind, config | change)
    with pytest.raises(PretrainedError, match="lacks"):
        read_preprocessing(kind, {})

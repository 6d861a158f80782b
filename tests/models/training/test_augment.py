from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.pixels import normalised
from models.training.augment import augment, color_jitter, mix, random_crop, random_erasing
from models.training.recipe import RECIPES

PLAIN = replace(RECIPES["cifar10-resnet20"], flip=False, crop_padding=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 8, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator(9))


def test_without_randomness_only_normalisation_is_left() -> None:
    images = batch()
    x, target = augment(images, torch.arange(8), 32, PLAIN, generator())
    expected = normalised(images, PLAIN.preprocessing())
    assert torch.allclose(x, expected, atol=1e-5)
    assert torch.equal(target.argmax(1), torch.arange(8))


def test_the_generator_decides_everything() -> None:
    recipe = replace(RECIPES["tiny-imagenet-gpu"], num_classes=10)
    first, again, other = (augment(batch(), torch.arange(8), 24, recipe, generator(s)) for s in (1, 1, 2))
    assert first[0].shape == (8, 3, 24, 24)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_flip_mirrors_about_half() -> None:
    x = torch.rand(400, 3, 4, 4, generator=generator())
    flipped = random_crop(x, 4, replace(PLAIN, flip=True), generator())
    mirrored = torch.isclose(flipped, x.flip(3), atol=1e-5).all((1, 2, 3))
    kept = torch.isclose(flipped, x, atol=1e-5).all((1, 2, 3))
    assert bool((mirrored | kept).all())
    assert 150 < int(mirrored.sum()) < 250


def test_padding_shifts_by_whole_pixels_either_way() -> None:
    """Every pixel holds 100 + its column, so a pixel says where it came from; 0 came in from outside."""
    x = (100 + torch.arange(8.0)).expand(80, 3, 8, 8)
    shifted = random_crop(x, 8, replace(PLAIN, crop_padding=2), generator())
    middle = shifted[:, 0, 4]
    inside = middle > 50
    shifts = (middle - 100 - torch.arange(8.0)).masked_fill(~inside, 0).sum(1) / inside.sum(1)
    assert torch.allclose(shifts, shifts.round(), atol=1e-4)
    assert set(shifts.round().int().tolist()) == {-2, -1, 0, 1, 2}
    assert torch.equal((~inside).sum(1), shifts.round().abs().long())


def test_random_resized_crop_shows_a_part_at_the_asked_size() -> None:
    ramp = torch.linspace(0, 1, 64).expand(64, 3, 64, 64)
    crops = random_crop(ramp, 16, replace(PLAIN, crop_scale=(0.25, 0.25)), generator())
    spans = crops[..., -1].mean((1, 2)) - crops[..., 0].mean((1, 2))
    assert crops.shape == (64, 3, 16, 16)
    # Half the side, up to an aspect of 4:3 either way, less one cell.
    assert bool(((spans > 0.5 * 0.75**0.5 - 0.1) & (spans < 0.5 * (4 / 3) ** 0.5)).all())


@pytest.mark.parametrize("scale", [(0.2, 1.0), (1.2, 1.5)])
def test_a_crop_brings_in_no_black(scale: tuple[float, float]) -> None:
    """The borders of a white image stay white, also where a crop reaches beyond them."""
    crops = random_crop(torch.ones(64, 3, 64, 64), 48, replace(PLAIN, crop_scale=scale), generator())
    assert torch.allclose(crops, torch.ones_like(crops), atol=1e-5)


def test_a_large_crop_shows_the_image_smaller() -> None:
    """A ramp of one image's width is seen whole, and what lies outside is its mirror image."""
    ramp = torch.linspace(0, 1, 64).expand(32, 3, 64, 64)
    crops = random_crop(ramp, 64, replace(PLAIN, crop_scale=(1.5, 1.5)), generator())
    assert float((crops.amax(3) - crops.amin(3)).min()) > 0.97


@pytest.mark.parametrize("size", [32, 48])
def test_shrinking_is_antialiased(size: int) -> None:
    """Columns of black and white in turn shrink to grey, where one sample a pixel shows stripes."""
    stripes = (torch.arange(64) % 2).float().expand(4, 3, 64, 64)
    crops = random_crop(stripes, size, replace(PLAIN, crop_scale=(1.0, 1.0)), generator())
    assert float(crops.std((2, 3)).max()) < 0.2


def test_jitter_keeps_grey_grey_and_the_range() -> None:
    x = color_jitter(torch.full((20, 3, 4, 4), 0.5), 0.4, generator())
    assert torch.allclose(x[:, 0], x[:, 2], atol=1e-6)
    assert x[:, 0, 0, 0].std() > 0.05
    bright = color_jitter(torch.rand(20, 3, 4, 4), 0.4, generator())
    assert 0 <= float(bright.min()) <= float(bright.max()) <= 1


def test_erasing_clears_a_box_of_the_chosen() -> None:
    x = torch.ones(300, 3, 32, 32)
    share = (random_erasing(x, 0.5, generator()) == 0).float().mean((1, 2, 3))
    assert 100 < int((share > 0).sum()) < 200
    assert float(share.max()) < 0.4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0)])
def test_mixing_weights_match_the_pixels(mixup: float, cutmix: float) -> None:
    """Image i is filled with the value i, so its mean tells how much of which image it holds."""
    n = 16
    x = torch.arange(n).float().reshape(-1, 1, 1, 1).expand(n, 3, 32, 32)
    mixed, target = mix(x, torch.eye(n), mixup, cutmix, generator())
    assert torch.allclose(mixed.mean((1, 2, 3)), target @ torch.arange(n).float(), atol=1e-3)
    assert torch.allclose(target.sum(1), torch.ones(n))
    assert float((target.diagonal() < 0.999).float().mean()) > 0.3

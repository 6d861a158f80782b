"""Recipes: what to train and how, as plain data.

`residuum train NAME` takes a row of RECIPES, and `--set epochs=3` changes a field. A recipe knows neither
where the data is nor on which machine it runs.
"""

from __future__ import annotations

import ast
import difflib
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from artifact.errors import ResiduumError
from artifact.manifest import Interpolation, Preprocessing
from models.cifar import CIFAR_MEAN, CIFAR_STD
from models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from models.zoo import UnknownArchitecture, architecture


class RecipeError(ResiduumError):
    """No such recipe, no such field, or an invalid value; the message names it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, given the data and the machine.

    Attributes:
        initial_weights: a checkpoint to start from; None: random weights.
        width, dropout, stochastic_depth: replace the values of the zoo's row; None: they do not.
        initialisation: a key of `resnet.INITIALISATIONS`; zero_init_branch: every branch starts at 0.
        resolutions: (up to this fraction of the run, side in pixels); small images first cost little
            and teach much (progressive resizing; Touvron et al. 2019, arXiv 1906.06423, on why the
            test images may then be larger than the last training ones).
        store_size: side at which decoded images are held in memory.
        test_resize, test_crop: the served preprocessing.
        crop_scale: smallest and largest area of a random resized crop, as a share of the image's area; above
            1 the image is shown smaller and mirrored at its borders, because objects are small in whole
            photographs. None: pad by `crop_padding` pixels and crop, as for CIFAR.
        jitter: brightness, contrast and saturation change by up to this fraction.
        schedule: after `warmup_epochs`, down to 0 along a cosine, or by 10 at each of `milestones`.
        recalibrate: at the end, estimate the BatchNorm statistics on training images as in serving; those of
            the run come from smaller, cropped images and from older weights (arXiv 1906.06423, section 3;
            arXiv 2105.07576, section 3).
        precision: "auto" is bf16 mixed where the machine has bf16 arithmetic, fp32 elsewhere.
    """

    name: str
    architecture: str
    num_classes: int
    epochs: int
    batch_size: int
    resolutions: tuple[tuple[float, int], ...]
    store_size: int
    test_resize: int
    test_crop: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    seed: int = 0
    initial_weights: str | None = None
    width: int | None = None
    dropout: float | None = None
    stochastic_depth: float | None = None
    initialisation: Literal["he-fan-out", "he-fan-in", "xavier"] = "he-fan-out"
    zero_init_branch: bool = True

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 1.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    clip_norm: float | None = None
    ema_decay: float | None = None
    recalibrate: bool = False
    label_smoothing: float = 0.0

    crop_scale: tuple[float, float] | None = (0.35, 1.0)
    crop_padding: int = 4
    flip: bool = True
    jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    compile: bool = False
    checkpoint_blocks: bool = False
    validate_every: int = 1

    def resolution(self, progress: float) -> int:
        """Return the side of the training images at `progress` in [0, 1) of the run."""
        return next(size for until, size in self.resolutions if progress < until or until >= 1)

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate at `progress` in [0, 1] of the run: linear warm-up, then the schedule."""
        warmup = self.warmup_epochs / self.epochs
        if progress < warmup:
            return self.learning_rate * progress / warmup
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(progress >= at for at in self.milestones)
        return self.learning_rate * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of validation, which is also served."""
        return Preprocessing(
            resize=self.test_resize,
            crop=self.test_crop,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


def _cifar10(name: str) -> Recipe:
    """He et al. 2016, section 4.2: 64k iterations of 128 images, lr 0.1 divided by 10 twice.

    Unlike theirs: Nesterov's momentum, and no weight decay on norms and biases.
    """
    return Recipe(
        name=f"cifar10-{name}",
        architecture=name,
        num_classes=10,
        epochs=164,
        batch_size=128,
        resolutions=((1.0, 32),),
        store_size=32,
        test_resize=32,
        test_crop=32,
        mean=CIFAR_MEAN[10],
        std=CIFAR_STD[10],
        zero_init_branch=False,
        learning_rate=0.1,
        weight_decay=1e-4,
        schedule="step",
        warmup_epochs=0,
        crop_scale=None,
    )


# The embedded model: two hours on two CPU cores without bf16 arithmetic.
_TINY_IMAGENET_CPU = Recipe(
    name="tiny-imagenet-cpu",
    architecture="resnet18-64px",
    num_classes=200,
    epochs=14,
    batch_size=128,
    resolutions=((0.42, 32), (0.7, 40), (0.857, 48), (1.0, 64)),
    store_size=64,
    test_resize=64,
    test_crop=64,
    learning_rate=0.2,
    weight_decay=2.5e-4,
    label_smoothing=0.1,
    jitter=0.2,
    recalibrate=True,
    validate_every=2,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _TINY_IMAGENET_CPU,
        # The same length again, from the weights with which the first run ended.
        replace(
            _TINY_IMAGENET_CPU,
            name="tiny-imagenet-cpu-more",
            initial_weights="runs/tiny-imagenet-cpu/checkpoint.safetensors",
            resolutions=((0.65, 48), (1.0, 64)),
            learning_rate=0.12,
            warmup_epochs=0.5,
        ),
        # The same network with time to spare: one GPU.
        Recipe(
            name="tiny-imagenet-gpu",
            architecture="resnet18-64px",
            num_classes=200,
            epochs=150,
            batch_size=256,
            resolutions=((0.3, 48), (0.7, 64), (1.0, 80)),
            store_size=64,
            test_resize=96,
            test_crop=96,
            width=64,
            learning_rate=0.4,
            weight_decay=2e-4,
            warmup_epochs=5,
            label_smoothing=0.1,
            ema_decay=0.9995,
            recalibrate=True,
            crop_scale=(0.25, 1.0),
            jitter=0.4,
            erasing=0.1,
            mixup=0.1,
            cutmix=1.0,
            compile=True,
        ),
        *(_cifar10(f"resnet{layers}") for layers in (20, 32, 44, 56)),
        # 110 layers need a warm-up: 0.1 is slightly too large to start converging (section 4.2).
        replace(_cifar10("resnet110"), warmup_epochs=2),
    )
}


def get_recipe(name: str, changes: dict[str, str] | None = None) -> Recipe:
    """Return the recipe of that name with `changes` such as `{"epochs": "3"}`, read as literals.

    Raises:
        RecipeError: unknown recipe or field, or a value that is not a Python literal or a word.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RECIPES)}"
        raise RecipeError(f"unknown recipe {name!r}: {hint}")
    values: dict[str, object] = {}
    known = {field.name for field in fields(Recipe)}
    for key, text in (changes or {}).items():
        if key not in known:
            raise RecipeError(f"a recipe has no field {key!r}; it has: {', '.join(sorted(known))}")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    try:
        recipe = TypeAdapter(Recipe).validate_python(asdict(RECIPES[name]) | values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"{first['loc'][0]} cannot be {values[str(first['loc'][0])]!r}: {first['msg']}"
        ) from error
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    """Check what types cannot say: ranges, and combinations of fields."""
    for name in (
        "epochs",
        "batch_size",
        "store_size",
        "test_resize",
        "test_crop",
        "num_classes",
        "validate_every",
    ):
        if getattr(recipe, name) < 1:
            raise RecipeError(f"{name} must be 1 or more, not {getattr(recipe, name)}")
    if recipe.learning_rate <= 0:
        raise RecipeError(f"learning_rate must be positive, not {recipe.learning_rate}")
    if not 0 <= recipe.warmup_epochs < recipe.epochs:
        raise RecipeError(
            f"warmup_epochs ({recipe.warmup_epochs}) must be fewer than epochs ({recipe.epochs})"
        )
    if recipe.test_crop > recipe.test_resize:
        raise RecipeError(f"test_crop ({recipe.test_crop}) is larger than test_resize ({recipe.test_resize})")
    if not recipe.resolutions or recipe.resolutions[-1][0] < 1 or min(s for _, s in recipe.resolutions) < 1:
        raise RecipeError(f"resolutions must end with (1.0, SIZE), not {recipe.resolutions}")
    if recipe.crop_scale is not None and not 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 4:
        raise RecipeError(f"crop_scale must be two shares in order, in (0, 4], not {recipe.crop_scale}")
    if recipe.ema_decay is not None and not 0 < recipe.ema_decay < 1:
        raise RecipeError(f"ema_decay must lie between 0 and 1, not {recipe.ema_decay}")
    if (
        min(recipe.mixup, recipe.cutmix) < 0
        or not 0 <= recipe.label_smoothing < 1
        or not 0 <= recipe.jitter <= 1
    ):
        raise RecipeError("mixup and cutmix must not be negative, label_smoothing and jitter lie in [0, 1)")
    for name in ("dropout", "stochastic_depth"):
        if not 0 <= (getattr(recipe, name) or 0) < 1:
            raise RecipeError(f"{name} must lie in [0, 1), not {getattr(recipe, name)}")
    if recipe.width is not None and recipe.width < 1:
        raise RecipeError(f"width must be 1 or more, not {recipe.width}")
    try:
        architecture(recipe.architecture)
    except UnknownArchitecture as error:
        raise RecipeError(str(error)) from error

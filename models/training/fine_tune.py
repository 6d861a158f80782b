"""Training a network a little more, after something was done to it: pruning, for one.

It is the loop of every other run with a recipe of its own: few epochs, one size of image, a low learning rate
that falls along a cosine.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from models.checkpoint import CheckpointMetadata, load_checkpoint
from models.resnet import ResNet
from models.training.data import ImageSet
from models.training.loop import train
from models.training.recipe import Recipe

# Of the rate that the network was trained with: its weights are where they should be, or nearly.
LEARNING_RATE_SHARE = 0.2
LEARNING_RATE = 0.02  # where nobody knows


def fine_tune_recipe(metadata: CheckpointMetadata, epochs: int) -> Recipe:
    """How the network was trained, as far as that is known, but for `epochs` only and at a low rate."""
    base = _recipe_of(metadata)
    size = metadata.preprocessing.crop
    return replace(
        base,
        name=f"{base.name}, fine-tuned",
        epochs=epochs,
        resolutions=((1.0, size),),
        warmup_epochs=0.1 * epochs,
        schedule="cosine",
        initial_weights=None,
        recalibrate=True,
        ema_decay=None,
        compile=False,
        validate_every=1,
    )


def fine_tune(
    network: ResNet, recipe: Recipe, train_set: ImageSet, valid_set: ImageSet, out: Path
) -> tuple[ResNet, CheckpointMetadata]:
    """Train a copy of `network`; its logs and checkpoint lie in `out`.

    Args:
        train_set: images of `recipe.store_size`; valid_set: of `recipe.test_crop`.

    Raises:
        TrainingError: data that do not fit, or a loss that is not finite.
    """
    return load_checkpoint(train(recipe, train_set, valid_set, out, network=network, resume=False))


def _recipe_of(metadata: CheckpointMetadata) -> Recipe:
    """The recipe in the checkpoint, with a low rate; a plain one for weights that came without."""
    found, served = metadata.recipe or {}, metadata.preprocessing
    served_fields = {
        "test_resize": served.resize,
        "test_crop": served.crop,
        "interpolation": served.interpolation,
        "mean": served.mean,
        "std": served.std,
        "num_classes": len(metadata.labels),
    }
    known = {field.name for field in fields(Recipe)}
    try:
        recipe = TypeAdapter(Recipe).validate_python(
            {name: value for name, value in found.items() if name in known} | served_fields
        )
    except ValidationError:
        return Recipe(
            name=str(found.get("name", metadata.architecture["name"])),
            architecture=str(metadata.architecture["name"]),
            epochs=1,
            batch_size=128,
            resolutions=((1.0, served.crop),),
            store_size=served.resize,
            learning_rate=LEARNING_RATE,
            weight_decay=1e-4,
            **served_fields,  # type: ignore[arg-type]
        )
    return replace(recipe, learning_rate=LEARNING_RATE_SHARE * recipe.learning_rate)

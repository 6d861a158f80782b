"""Fine-tuning: train a network a little more after it was changed, for example by pruning.

The training loop is that of every run. The recipe has few epochs, one image size, and a low learning rate
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

# As a share of the rate with which the network was trained: its weights are nearly right already.
LEARNING_RATE_SHARE = 0.2
LEARNING_RATE = 0.02  # if that rate is unknown


def fine_tune_recipe(metadata: CheckpointMetadata, epochs: int) -> Recipe:
    """Return the recipe that the network was trained with, if known, with few epochs and a low rate."""
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
    """Train a copy of `network`; logs and checkpoint are written to `out`.

    Args:
        train_set: images of `recipe.store_size`; valid_set: of `recipe.test_crop`.

    Raises:
        TrainingError: data that do not fit, or a loss that is not finite.
    """
    return load_checkpoint(train(recipe, train_set, valid_set, out, network=network, resume=False))


def _recipe_of(metadata: CheckpointMetadata) -> Recipe:
    """Return the checkpoint's recipe with a low learning rate; without one, a plain recipe."""
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

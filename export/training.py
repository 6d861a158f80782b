"""What an export trains before it exports: a pruned network, and weights that are used to int8's rounding.

Only this module of the export needs the training loop; it is imported where one of the two is asked for.
"""

from __future__ import annotations

from pathlib import Path

from export.images import CalibrationImages, calibration_images
from export.prune import NUM_STATISTICS_IMAGES, describe_pruned, prune
from export.qat import NUM_IMAGES, fine_tune_under_rounding
from models.checkpoint import CheckpointMetadata
from models.resnet import ResNet
from models.training.data import load_images
from models.training.fine_tune import fine_tune, fine_tune_recipe


def prune_and_tune(
    model: ResNet, metadata: CheckpointMetadata, ratio: float, epochs: int, data: str, out: Path
) -> tuple[ResNet, CheckpointMetadata]:
    """The thinner network, fine-tuned for `epochs` on a data set, and what must be known of it.

    Args:
        out: where the fine-tuned checkpoint and its curves stay; nothing is written for 0 epochs.

    Raises:
        PruneError, DataError, TrainingError: from the steps that have these names.
    """
    served = metadata.preprocessing
    images = calibration_images(data, served, NUM_STATISTICS_IMAGES).images
    pruned, tuned = prune(model, ratio, images, served), None
    if epochs:
        recipe = fine_tune_recipe(metadata, epochs)
        stored = served.model_copy(update={"resize": recipe.store_size, "crop": recipe.store_size})
        train_set, valid_set = load_images(data, "train", stored), load_images(data, "valid", served)
        pruned, tuned = fine_tune(pruned, recipe, train_set, valid_set, out)
    return pruned, describe_pruned(pruned, ratio, metadata, tuned)


def tune_for_int8(
    model: ResNet, metadata: CheckpointMetadata, calibration: CalibrationImages, data: str, epochs: int
) -> ResNet:
    """The fused network with weights that are used to int8's rounding, by at most NUM_IMAGES of `data`."""
    images = calibration_images(data, metadata.preprocessing, NUM_IMAGES).images
    return fine_tune_under_rounding(model, metadata.preprocessing, calibration.images, images, epochs)

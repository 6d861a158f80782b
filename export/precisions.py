"""Which precisions an artifact is to have beside fp32, and what that needs: images, and leave to lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import GraphKind, Manifest, Precision, Reference, Speed
from export.images import (
    CalibrationImages,
    ValidationImages,
    calibration_images,
    has_labels,
    validation_images,
)
from models.checkpoint import CheckpointMetadata
from models.resnet import ResNet

# What is made of each precision. Rounded to int8, F would no longer be what the network adds.
KINDS: dict[Precision, tuple[GraphKind, ...]] = {
    "fp32": ("classify", "introspect", "attribute"),
    "bf16": ("classify", "introspect", "attribute"),
    "fp16": ("classify", "introspect", "attribute"),
    "int8": ("classify",),
    "int8-trt": ("classify",),
}
NUM_CALIBRATION_IMAGES = 512

# The artifact's folder and manifest to what was measured, by the graphs' file names.
TimeGraphs = Callable[[Path, Manifest], Mapping[str, tuple[Speed, ...]]]
# The artifact's folder, manifest, images [N, crop, crop, 3] and the name of their data set to what is usual.
MeasureReference = Callable[[Path, Manifest, NDArray[np.uint8], str], Reference]


class PrecisionError(ResiduumError):
    """What was asked for needs something else; the message names the flag."""


@dataclass(frozen=True)
class PrecisionRequest:
    """What a user asks for, as the flags of `residuum export` and `residuum pull` have it.

    Attributes:
        names: any of `Precision`.
        calibration: a data set, or a folder of images; `num_calibration` of them are taken.
        data: a data set to measure accuracy on; None: `calibration`, where that has labels.
        allow_loss, keep_layers: see `Precisions`.
    """

    names: tuple[Precision, ...] = ()
    calibration: str | None = None
    num_calibration: int = NUM_CALIBRATION_IMAGES
    data: str | None = None
    allow_loss: bool = False
    keep_layers: int = 0

    def __post_init__(self) -> None:
        """Raises PrecisionError: no such precision, int8 without images, or fewer layers than none."""
        if self.keep_layers < 0:
            raise PrecisionError(f"--keep-layers {self.keep_layers}: a number of layers is expected")
        if unknown := set(self.names) - set(get_args(Precision)):
            raise PrecisionError(
                f"--precision {min(unknown)}: there is no such; choose from {', '.join(get_args(Precision))}"
            )
        if self.calibration is None and (int8 := [name for name in self.names if name.startswith("int8")]):
            raise PrecisionError(
                f"--precision {int8[0]} needs --calibration: a data set, or a folder of images like those "
                "that will be sent"
            )


@dataclass(frozen=True)
class Precisions:
    """What is made beside fp32, and what that needs.

    Attributes:
        names: any of `Precision`.
        calibration: what int8's ranges are measured on.
        allow_loss: let a precision pass that loses more accuracy than it may.
        keep_layers: int8 leaves so many layers in floating point, those whose rounding moves the logits most.
        quantized_model: with weights that are used to int8's rounding, in place of the model's; None: the
            model's own; and the epochs that it took.
        time_graphs: measures how fast the graphs are, for the report; None: no report.
        measure_reference: measures what introspection usually finds, on the validation images; None: nothing
            does.
    """

    names: tuple[Precision, ...] = ()
    calibration: CalibrationImages | None = None
    allow_loss: bool = False
    keep_layers: int = 0
    quantized_model: ResNet | None = None
    qat_epochs: int = 0
    time_graphs: TimeGraphs | None = None
    measure_reference: MeasureReference | None = None

    @property
    def all(self) -> tuple[Precision, ...]:
        """With fp32, which is always there, and each once."""
        return tuple(dict.fromkeys(("fp32", *self.names)))


def read_images(
    request: PrecisionRequest, metadata: CheckpointMetadata
) -> tuple[CalibrationImages | None, ValidationImages | None]:
    """Those that are asked for, preprocessed as the network is served.

    Raises:
        ImagesError, DataError: they cannot be had.
    """
    spec, calibration, validation = metadata.preprocessing, None, None
    if request.calibration:
        calibration = calibration_images(request.calibration, spec, request.num_calibration)
    if request.data:
        validation = validation_images(request.data, spec, metadata.labels)
    elif request.calibration and has_labels(request.calibration, spec, metadata.labels):
        validation = validation_images(request.calibration, spec, metadata.labels)
    return calibration, validation

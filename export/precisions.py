"""What an export makes beside the fp32 graphs: as a user asks for it, and as a plan with images."""

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

# The graphs of each precision. int8 has no introspection: rounded, F would not be what the network adds.
KINDS: dict[Precision, tuple[GraphKind, ...]] = {
    "fp32": ("classify", "introspect", "attribute"),
    "bf16": ("classify", "introspect", "attribute"),
    "fp16": ("classify", "introspect", "attribute"),
    "int8": ("classify",),
    "int8-trt": ("classify",),
}
NUM_CALIBRATION_IMAGES = 512

# From the artifact's directory and manifest to the speeds of each graph, by its file's name.
TimeGraphs = Callable[[Path, Manifest], Mapping[str, tuple[Speed, ...]]]
# From the artifact's directory, its manifest, images [N, crop, crop, 3] and their data set's name to what is
# usual.
MeasureReference = Callable[[Path, Manifest, NDArray[np.uint8], str], Reference]


class PrecisionError(ResiduumError):
    """The options need another option; the message names the flag."""


@dataclass(frozen=True)
class PrecisionRequest:
    """What a user asks for with the flags of `residuum export` and `residuum pull`.

    Attributes:
        names: any of `Precision`.
        calibration: a data set or a directory of images, of which `num_calibration` are taken.
        data: a data set to measure accuracy on; None: `calibration`, if it has labels.
        allow_loss, keep_layers: see `ExportPlan`.
    """

    names: tuple[Precision, ...] = ()
    calibration: str | None = None
    num_calibration: int = NUM_CALIBRATION_IMAGES
    data: str | None = None
    allow_loss: bool = False
    keep_layers: int = 0

    def __post_init__(self) -> None:
        """Raise PrecisionError: no such precision, int8 without images, or a negative number of layers."""
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
class ExportPlan:
    """What an export makes beside the fp32 graphs, what it needs for that, and what it measures.

    Attributes:
        precisions: any of `Precision`.
        calibration: images on which the ranges of int8 are found.
        validation: labelled images on which accuracy is measured; None: it is not measured.
        allow_loss: a precision passes even if it loses more accuracy than `export.accuracy` allows.
        keep_layers: number of layers that int8 leaves in floating point: those that are most sensitive to
            rounding.
        quantized_model: a network whose weights were fine-tuned for int8, to be quantized in place of the
            model; `qat_epochs`: the epochs that this took.
        time_graphs: measures the speed of the graphs, for the report; None: there is no report.
        measure_reference: measures the usual range of each quantity on the validation images; None: nothing
            does.
    """

    precisions: tuple[Precision, ...] = ()
    calibration: CalibrationImages | None = None
    validation: ValidationImages | None = None
    allow_loss: bool = False
    keep_layers: int = 0
    quantized_model: ResNet | None = None
    qat_epochs: int = 0
    time_graphs: TimeGraphs | None = None
    measure_reference: MeasureReference | None = None

    @property
    def all_precisions(self) -> tuple[Precision, ...]:
        """The precisions with fp32 first, each once."""
        return tuple(dict.fromkeys(("fp32", *self.precisions)))


def read_images(
    request: PrecisionRequest, metadata: CheckpointMetadata
) -> tuple[CalibrationImages | None, ValidationImages | None]:
    """Return the calibration and validation images of a request, preprocessed as for serving.

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

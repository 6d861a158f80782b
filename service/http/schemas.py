"""Query parameters and response bodies, as FastAPI checks and documents them.

The members and their order are the HTTP contract; the answer of `/introspect` is in introspection/schemas.py.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from artifact.manifest import Manifest
from artifact.postprocess import Prediction
from engines.selection.trial import EngineTrial
from introspection.question import IntrospectQuery


class ImageQuery(BaseModel):
    """The query parameters of every call that takes images."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="the name of a loaded model; default: the first model")
    timeout_ms: int | None = Field(
        None,
        ge=1,
        description="how long the answer may take, counted from when the body was fully read; it can only "
        "shorten the server's own limit",
    )


class IntrospectParameters(IntrospectQuery, ImageQuery):
    """The query parameters of `/introspect`."""


class ClassifyQuery(ImageQuery):
    top_k: int = Field(
        5, ge=1, description="how many predictions an image gets; at most the number of classes"
    )


class ImageInfo(BaseModel):
    """The photograph's format and size, after its EXIF orientation was applied."""

    format: str
    width: int
    height: int


class ImageResult(BaseModel):
    predictions: list[Prediction]
    image: ImageInfo


class Timing(BaseModel):
    """Durations in milliseconds, counted from when the request body was fully read.

    `queue` and `inference` belong to the image that finished last.
    """

    decode: float
    queue: float
    inference: float
    total: float


class Classification(BaseModel):
    """One result for each image, in the order of the request."""

    model: str
    version: str
    precision: str
    engine: str
    results: list[ImageResult]
    timing_ms: Timing


class ModelSummary(BaseModel):
    name: str
    version: str
    default: bool
    architecture: str
    variant: str
    num_classes: int
    num_parameters: int
    num_blocks: int
    input_size: int
    precision: str
    engine: str
    device: str


class ModelList(BaseModel):
    models: list[ModelSummary]


class RunningGraph(BaseModel):
    """The engine that runs a graph, and why it was chosen."""

    precision: str
    engine: str
    engine_version: str
    device: str
    mode: str
    threads: int = Field(description="CPU threads of all instances together; 0 on a GPU")
    instances: int = Field(description="number of batches that run at the same time")
    remembered: bool = Field(description="true if the choice was measured on an earlier start")
    trials: tuple[EngineTrial, ...] = Field(
        description="engines that were tried; an engine without alternative is chosen without timing"
    )


class ModelDetail(ModelSummary):
    """A model, its speed on this machine, and the manifest of its artifact."""

    engine_version: str
    threads: int
    graphs: dict[str, RunningGraph] = Field(
        description="kind of graph (`classify`, `introspect`): the engine that runs it"
    )
    batch_ms: dict[str, dict[int, float]] = Field(
        description="kind of graph: batch size: milliseconds, as measured on this machine"
    )
    manifest: Manifest


class Status(BaseModel):
    """`missing` names the models that other workers serve and this one could not load again."""

    status: str
    missing: list[str] = []


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457); some codes have further members."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None


BINARY: dict[str, Any] = {
    "type": "string",
    "format": "binary",
    "contentMediaType": "application/octet-stream",
}


def image_body(*, several: bool) -> dict[str, Any]:
    """Return OpenAPI's description of a body with one image, or with `several` in a form (see body.py)."""
    part = {"type": "array", "items": BINARY, "minItems": 1} if several else BINARY
    form = {"type": "object", "properties": {"image": part}, "required": ["image"]}
    return {
        "requestBody": {
            "required": True,
            "description": "The image file itself, or a form that contains it.",
            "content": {
                "multipart/form-data": {"schema": form},
                "application/octet-stream": {"schema": BINARY},
                "image/*": {"schema": BINARY},
            },
        }
    }

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

    model: str | None = Field(None, description="a loaded model's name; default: the first one")
    timeout_ms: int | None = Field(
        None,
        ge=1,
        description="how long the answer may take, from the end of the body on; it can only shorten the "
        "server's own limit",
    )


class IntrospectParameters(IntrospectQuery, ImageQuery):
    """The query parameters of `/introspect`."""


class ClassifyQuery(ImageQuery):
    top_k: int = Field(
        5, ge=1, description="how many predictions an image gets; at most the number of classes"
    )


class ImageInfo(BaseModel):
    """The photograph as it is looked at, after its EXIF orientation."""

    format: str
    width: int
    height: int


class ImageResult(BaseModel):
    predictions: list[Prediction]
    image: ImageInfo


class Timing(BaseModel):
    """Milliseconds, from the end of the body on; queue and inference: of the image that finished last."""

    decode: float
    queue: float
    inference: float
    total: float


class Classification(BaseModel):
    """One result an image, in the order of the request."""

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
    """What runs a graph."""

    precision: str
    engine: str
    engine_version: str
    device: str
    mode: str
    threads: int = Field(description="that run it on the CPU, all instances together; 0 on a GPU")
    instances: int = Field(description="batches of it that run at once")
    remembered: bool = Field(description="the choice was measured on an earlier start")
    trials: tuple[EngineTrial, ...] = Field(
        description="what was tried; one that is without alternative is chosen without being timed"
    )


class ModelDetail(ModelSummary):
    """A model, how fast it ran here, and the manifest of its artifact."""

    engine_version: str
    threads: int
    graphs: dict[str, RunningGraph] = Field(description="classify, introspect -> what runs it, and why")
    batch_ms: dict[str, dict[int, float]] = Field(
        description="graph -> batch size -> milliseconds, as measured on this machine"
    )
    manifest: Manifest


class Status(BaseModel):
    status: str


class ProblemDocument(BaseModel):
    """RFC 9457; further members belong to single codes."""

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
            "description": "The image file itself, or a form with it.",
            "content": {
                "multipart/form-data": {"schema": form},
                "application/octet-stream": {"schema": BINARY},
                "image/*": {"schema": BINARY},
            },
        }
    }

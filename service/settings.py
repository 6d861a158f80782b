"""The settings of the server; engines/settings.py has those of the engines, and how settings are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from artifact.store import EMBEDDED
from engines.settings import (
    ADDRESS,
    BATCHES,
    ENGINES,
    MODELS,
    EngineSettings,
    group,
    load_settings_of,
    split_at_commas,
)

MiB = 2**20
LIMITS, ACCESS, LOGS = map(group, ("limits", "access", "logs and traces"))


class Settings(EngineSettings):
    """The settings of `residuum serve`; frozen and passed down, never global."""

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        (EMBEDDED,),
        json_schema_extra=MODELS,
        description="model to serve: a name under --artifacts, a path to an artifact, or 'embedded'; "
        "repeatable (in the environment: separated by commas); the first is the default",
    )
    artifacts: Path = Field(
        Path("artifacts"),
        json_schema_extra=MODELS,
        description="directory in which artifacts are found by name",
    )
    host: str = Field(
        "127.0.0.1",
        json_schema_extra=ADDRESS,
        description="address to listen on; 0.0.0.0: every interface",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        json_schema_extra=ADDRESS,
        description="port to listen on; 0: any free port",
    )
    max_wait_ms: float = Field(
        0,
        ge=0,
        le=60_000,
        json_schema_extra=BATCHES,
        description="milliseconds that an image waits for others to join its batch while cores are idle; "
        "while all cores decode, a batch waits for some of these images at any rate",
    )
    queue_capacity: int = Field(
        0,
        ge=0,
        le=1_000_000,
        json_schema_extra=BATCHES,
        description="maximum number of images that wait for a graph; further images are refused with 503; "
        "0: as many as can be answered within their time",
    )
    queue_bytes: int = Field(
        256 * MiB,
        ge=1,
        json_schema_extra=BATCHES,
        description="maximum size in bytes of all image files and tensors that wait; further requests are "
        "refused with 503",
    )
    max_image_bytes: int = Field(
        20 * MiB, ge=1, json_schema_extra=LIMITS, description="maximum size of an image file in bytes"
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, json_schema_extra=LIMITS, description="maximum width x height of an image"
    )
    max_images: int = Field(
        32, ge=1, json_schema_extra=LIMITS, description="maximum number of images in a request"
    )
    max_request_bytes: int = Field(
        64 * MiB,
        ge=1,
        json_schema_extra=LIMITS,
        description="maximum size in bytes of a body with several images, compressed and decompressed",
    )
    timeout_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        json_schema_extra=LIMITS,
        description="milliseconds that a request may take; a client can only shorten this",
    )
    drain_timeout: float = Field(
        8,
        ge=0,
        le=3600,
        json_schema_extra=LIMITS,
        description="seconds after SIGTERM within which accepted requests finish and the server ends",
    )
    decode_threads: int = Field(
        0,
        ge=0,
        le=1024,
        json_schema_extra=BATCHES,
        description="number of threads that decode images; 0: one per core",
    )
    decode_bytes: int = Field(
        0,
        ge=0,
        json_schema_extra=BATCHES,
        description="size in bytes of the memory that large images may take together while they are decoded; "
        "an image that takes more is refused with 422; 0: a quarter of the memory of the machine or "
        "container, shared by the workers",
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        json_schema_extra=BATCHES,
        description="size in bytes of the cache of answers, by the SHA-256 of the images; identical requests "
        "at the same time then run once; 0: no cache",
    )
    watch: bool = Field(
        False,
        json_schema_extra=MODELS,
        description="load artifacts that appear under --artifacts, and replace models whose artifact changes",
    )
    check_interval: float = Field(
        30,
        ge=0,
        le=86_400,
        json_schema_extra=ENGINES,
        description="seconds between golden checks while serving; 0: no checks",
    )
    hang_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        json_schema_extra=ENGINES,
        description="seconds after which a batch that still runs counts as hung",
    )
    load_timeout: float = Field(
        600,
        gt=0,
        le=86_400,
        json_schema_extra=ENGINES,
        description="seconds after which the loading of a model is given up",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="key that requests must have; repeatable (in the environment: separated by commas); "
        "better in the environment or a file, because other users can read a command line",
    )
    api_key_file: Path | None = Field(
        None,
        json_schema_extra=ACCESS,
        description="file of such keys, one per line; read again when it changes",
    )
    admin_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="key for loading and unloading models; repeatable; without a key nobody can",
    )
    admin_key_file: Path | None = Field(
        None,
        json_schema_extra=ACCESS,
        description="file of such keys, one per line; read again when it changes",
    )
    rate_limit: float = Field(
        0,
        ge=0,
        json_schema_extra=ACCESS,
        description="requests per second of each key, or of each address if there are no keys, in each "
        "worker; 0: no limit",
    )
    header_timeout: float = Field(
        10,
        gt=0,
        le=3600,
        json_schema_extra=LIMITS,
        description="seconds that the head of a request may take to arrive",
    )
    body_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        json_schema_extra=LIMITS,
        description="seconds that the body of a request may take to arrive",
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="origin whose pages may call this server from a browser; repeatable (in the environment: "
        "separated by commas)",
    )
    access_log: bool = Field(
        True, json_schema_extra=LOGS, description="log a line for each request, except health checks"
    )
    log_format: Literal["text", "json"] = Field(
        "text", json_schema_extra=LOGS, description="format of log lines"
    )
    otlp_endpoint: str | None = Field(
        None,
        json_schema_extra=LOGS,
        description="address of the OpenTelemetry collector that receives traces by OTLP/HTTP, such as "
        "http://127.0.0.1:4318; None: no traces",
    )

    @field_validator("model", "api_key", "admin_key", "cors_origin", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return split_at_commas(value)

    @field_validator("model")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value or (EMBEDDED,)

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> Self:
        if 0 < self.queue_capacity < self.max_images:
            raise ValueError(
                f"--max-images {self.max_images} is more than --queue-capacity {self.queue_capacity}: "
                "such a request could never be accepted"
            )
        largest = max(self.max_image_bytes, self.max_request_bytes)
        least = math.ceil(largest * 8 / 7)  # an eighth is kept for small bodies
        if self.queue_bytes < least:
            raise ValueError(
                f"--queue-bytes {self.queue_bytes} is less than {least}, 8/7 of --max-image-bytes or "
                "--max-request-bytes: such a request could never be accepted"
            )
        return self


def load_settings(**flags: object) -> Settings:
    """Return the server's settings; see `load_settings_of`."""
    return load_settings_of(Settings, flags)

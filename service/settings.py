"""Every setting of the server and of `residuum pull`: the only reader of the environment.

A setting has one name: `max_batch_size` is the field, `--max-batch-size` the flag of `residuum serve` and
`RESIDUUM_MAX_BATCH_SIZE` the environment variable; a flag wins over the variable. The command line and the
docs are made from the classes' `model_fields`, so a name, a default and a description are written here only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "RESIDUUM_"
EMBEDDED = "embedded"  # the name of the model that comes with the package

MiB = 2**20


def _group(heading: str) -> JsonDict:
    return {"group": heading}


# The headings under which `--help` lists the settings.
MODELS, ENGINES, ADDRESS = _group("models"), _group("engines"), _group("address")
BATCHES, LIMITS, ACCESS = _group("batches and threads"), _group("limits"), _group("access")
LOGS, DOWNLOADS = _group("logs and traces"), _group("downloads")


class SettingsError(Exception):
    """A setting that cannot be used; the message names its flag and says what is allowed."""


class Settings(BaseSettings):
    """What `residuum serve` can be told; frozen, passed down, never global."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        (EMBEDDED,),
        json_schema_extra=MODELS,
        description="a model to serve: a name under --artifacts, a path to an artifact, or 'embedded'; "
        "repeatable (in the environment: separated by commas); the first one is the default",
    )
    artifacts: Path = Field(
        Path("artifacts"),
        json_schema_extra=MODELS,
        description="the directory where artifacts are found by name",
    )
    engine: Literal["auto", "onnxruntime", "openvino", "torch"] = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="what runs the graphs; auto: those that are installed are checked and timed when a model "
        "is loaded, and the fastest that is right wins (torch only on a GPU)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="where they run; auto: an NVIDIA GPU where one works, else the CPU",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "int8-trt"] = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="which of an artifact's graphs run; auto: the fastest that is right on this machine. "
        "introspect is never int8: it takes the fastest of the others then",
    )
    engine_cache: Path | None = Field(
        None,
        json_schema_extra=ENGINES,
        description="the directory where measured choices of engines and compiled plans are kept; None: "
        "beside each artifact, in a directory of its name with .cache behind; where that cannot be written, "
        "each start measures anew",
    )
    host: str = Field(
        "127.0.0.1",
        json_schema_extra=ADDRESS,
        description="the address to listen on; 0.0.0.0 for every interface",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        json_schema_extra=ADDRESS,
        description="the port to listen on; 0 for any free one",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        json_schema_extra=ADDRESS,
        description="processes that serve the port, each with its own engines; on a CPU they share its cores",
    )
    max_batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        json_schema_extra=BATCHES,
        description="images that run together at most; fewer where measured to be as fast an image",
    )
    max_wait_ms: float = Field(
        0,
        ge=0,
        le=60_000,
        json_schema_extra=BATCHES,
        description="how long an image may wait for company while an instance is idle",
    )
    instances: int = Field(
        0,
        ge=0,
        le=1024,
        json_schema_extra=ENGINES,
        description="batches of one graph that run at once, each on its share of the threads; "
        "0: by measurement",
    )
    queue_capacity: int = Field(
        128,
        ge=1,
        le=1_000_000,
        json_schema_extra=BATCHES,
        description="images that may wait; those beyond are refused with 503",
    )
    max_image_bytes: int = Field(
        20 * MiB, ge=1, json_schema_extra=LIMITS, description="size of one image file at most"
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, json_schema_extra=LIMITS, description="width x height of an image at most"
    )
    max_images: int = Field(32, ge=1, json_schema_extra=LIMITS, description="images in one request at most")
    max_request_bytes: int = Field(
        64 * MiB,
        ge=1,
        json_schema_extra=LIMITS,
        description="size of a body with several images at most, as it came and decompressed",
    )
    timeout_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        json_schema_extra=LIMITS,
        description="how long a request may take; a client can only shorten it",
    )
    drain_timeout: float = Field(
        8,
        ge=0,
        le=3600,
        json_schema_extra=LIMITS,
        description="seconds after SIGTERM within which accepted requests finish and the server ends",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        json_schema_extra=ENGINES,
        description="threads that run one graph on the CPU, all its instances together; 0: by its cores",
    )
    decode_threads: int = Field(
        0, ge=0, le=1024, json_schema_extra=BATCHES, description="threads that decode images; 0: one a core"
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        json_schema_extra=BATCHES,
        description="bytes of answers that are kept, by the image's SHA-256, and given again; identical "
        "images in flight then run once; 0: none",
    )
    watch: bool = Field(
        False,
        json_schema_extra=MODELS,
        description="load artifacts that appear under --artifacts, and swap those that change there",
    )
    check_interval: float = Field(
        30,
        ge=0,
        le=86_400,
        json_schema_extra=ENGINES,
        description="seconds between golden checks while serving; 0: none",
    )
    hang_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        json_schema_extra=ENGINES,
        description="seconds after which a batch that still runs counts as hung",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="a key that requests must bring; repeatable (in the environment: separated by commas); "
        "better in the environment or a file: a command line is no secret",
    )
    api_key_file: Path | None = Field(
        None,
        json_schema_extra=ACCESS,
        description="a file with such keys, one a line; read again when it changes",
    )
    admin_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="a key for loading and unloading models; repeatable; without one, nobody may",
    )
    admin_key_file: Path | None = Field(
        None, json_schema_extra=ACCESS, description="a file with such keys, likewise"
    )
    rate_limit: float = Field(
        0,
        ge=0,
        json_schema_extra=ACCESS,
        description="requests a second for each key, or address where there are no keys, in each worker; "
        "0: no limit",
    )
    header_timeout: float = Field(
        10, gt=0, le=3600, json_schema_extra=LIMITS, description="seconds that a request's head may take"
    )
    body_timeout: float = Field(
        30, gt=0, le=3600, json_schema_extra=LIMITS, description="seconds that a request's body may take"
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        json_schema_extra=ACCESS,
        description="an origin whose pages may call this server from a browser; repeatable (in the "
        "environment: separated by commas)",
    )
    access_log: bool = Field(
        True, json_schema_extra=LOGS, description="a line in the log for each request but health checks"
    )
    log_format: Literal["text", "json"] = Field(
        "text", json_schema_extra=LOGS, description="how log lines are written"
    )
    otlp_endpoint: str | None = Field(
        None,
        json_schema_extra=LOGS,
        description="where traces are sent, an OpenTelemetry collector's OTLP/HTTP address such as "
        "http://127.0.0.1:4318; None: nowhere",
    )

    @field_validator("model", "api_key", "admin_key", "cors_origin", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return _parts(value)

    @field_validator("model")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value or (EMBEDDED,)

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> Self:
        if self.max_images > self.queue_capacity:
            raise ValueError(
                f"--max-images {self.max_images} is more than --queue-capacity {self.queue_capacity}: "
                "such a request could never be accepted"
            )
        return self


class PullSettings(BaseSettings):
    """How `residuum pull` reaches the sources of weights; frozen, passed down, never global."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    artifacts: Path = Field(
        Path("artifacts"),
        json_schema_extra=MODELS,
        description="the directory where artifacts are put by name",
    )
    cache: Path | None = Field(
        None,
        json_schema_extra=DOWNLOADS,
        description="the directory where downloads are kept; None: where this platform keeps caches",
    )
    offline: bool = Field(
        False, json_schema_extra=DOWNLOADS, description="take everything from the cache, and ask no server"
    )
    pytorch_url: Annotated[tuple[str, ...], NoDecode] = Field(
        ("https://download.pytorch.org",),
        json_schema_extra=DOWNLOADS,
        description="where torchvision's weights are; repeatable, tried in order: a mirror, then the source "
        "(in the environment: separated by commas)",
    )
    hub_url: Annotated[tuple[str, ...], NoDecode] = Field(
        ("https://huggingface.co",),
        json_schema_extra=DOWNLOADS,
        description="where the Hugging Face hub is; likewise",
    )
    timeout: float = Field(
        30,
        gt=0,
        le=3600,
        json_schema_extra=DOWNLOADS,
        description="seconds to wait for a server's connection or next bytes",
    )

    @field_validator("pytorch_url", "hub_url", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return _parts(value)

    @field_validator("pytorch_url", "hub_url")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        default: tuple[str, ...] = cls.model_fields[str(info.field_name)].default
        return value or default


AnySettings = TypeVar("AnySettings", Settings, PullSettings)


def _parts(value: object) -> object:
    """What stands between commas, of a text; anything else as it is."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def flag_of(field: str) -> str:
    """`max_batch_size` -> `--max-batch-size`."""
    return "--" + field.replace("_", "-")


def load_settings(**flags: object) -> Settings:
    """Settings from flags (those that are not None), the environment and the defaults, in that order.

    Raises:
        SettingsError: a value is not allowed, or a flag does not exist.
    """
    return _load(Settings, flags)


def load_pull_settings(**flags: object) -> PullSettings:
    """Likewise, for `residuum pull`."""
    return _load(PullSettings, flags)


def _load(kind: type[AnySettings], flags: dict[str, object]) -> AnySettings:
    flags = {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**flags)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(_explain(first, given=flags)) from error


def _explain(error: ErrorDetails, given: dict[str, object]) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    field = str(error["loc"][0])
    name = flag_of(field) if field in given else f"{ENV_PREFIX}{field.upper()}"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    message = str(error["msg"])
    if error["type"] == "literal_error":
        message = f"not available; choose {error['ctx']['expected']}"
    return f"{name} {error['input']}: {message[0].lower()}{message[1:]}"

"""The settings that say how a graph is run, and how every class of settings is read.

A setting has one name: `max_batch_size` is the field, `--max-batch-size` the flag of the command line and
`RESIDUUM_MAX_BATCH_SIZE` the environment variable; a flag wins over the variable. The command line reads the
classes' `model_fields`, so that a name, a default and a description are written once. Only these classes read
the environment. Settings are frozen and passed down, never global.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from artifact.errors import ResiduumError
from engines.registry import ENGINES as ROWS

ENV_PREFIX = "RESIDUUM_"

# The choices of `--engine` come from the table of engines; a type checker cannot read them from there.
if TYPE_CHECKING:
    EngineChoice = str
else:
    EngineChoice = Literal["auto", *ROWS]


def group(heading: str) -> JsonDict:
    """Return a field's `json_schema_extra` with the heading under which `--help` lists the setting."""
    return {"group": heading}


MODELS, ENGINES, ADDRESS, BATCHES = map(group, ("models", "engines", "address", "batches and threads"))


class SettingsError(ResiduumError):
    """A setting has an unusable value; the message names its flag and says what is allowed."""


class AnySettings(BaseSettings):
    """The base of all settings: values come from flags, then the environment, then defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )


class EngineSettings(AnySettings):
    """Which engine runs a graph, where and how."""

    engine: EngineChoice = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="engine that runs the graphs; auto: check and time the installed engines when a model is "
        "loaded, and take the fastest whose answers are right (torch only on a GPU)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="device that runs the graphs; auto: an NVIDIA GPU if one works, else the CPU",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "int8-trt"] = Field(
        "auto",
        json_schema_extra=ENGINES,
        description="precision of the graphs that run; auto: the fastest whose answers are right on this "
        "machine. introspect never runs in int8: it then uses the fastest of the other precisions",
    )
    engine_cache: Path | None = Field(
        None,
        json_schema_extra=ENGINES,
        description="directory for measured choices of engines and compiled plans; None: NAME.cache beside "
        "the artifact NAME. If it is not writable, each start measures again",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        json_schema_extra=ADDRESS,
        description="number of processes that serve the port, each with its own engines; on a CPU they "
        "divide its cores",
    )
    max_batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        json_schema_extra=BATCHES,
        description="maximum batch size; a smaller one is used if it measured as fast per image",
    )
    instances: int = Field(
        0,
        ge=0,
        le=1024,
        json_schema_extra=ENGINES,
        description="number of batches of one graph that run at the same time, each on an equal part of the "
        "threads; 0: by measurement",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        json_schema_extra=ENGINES,
        description="CPU threads of one graph, over all its instances; 0: by the number of cores",
    )


S = TypeVar("S", bound=AnySettings)


def load_settings_of(kind: type[S], flags: dict[str, object]) -> S:
    """Return settings from flags that are not None, then the environment, then the defaults.

    Raises:
        SettingsError: a value is not allowed, or a flag does not exist.
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(_explain(first, given=flags)) from error


def split_at_commas(value: object) -> object:
    """Return a text split at its commas; anything that is not a text is returned unchanged."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def flag_of(field: str) -> str:
    """Return the flag of a field: `--max-batch-size` for `max_batch_size`."""
    return "--" + field.replace("_", "-")


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

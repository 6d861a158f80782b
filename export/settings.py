"""The settings of `residuum pull`: where published weights come from, and where artifacts go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from engines.settings import MODELS, AnySettings, group, load_settings_of, split_at_commas

DOWNLOADS = group("downloads")


class PullSettings(AnySettings):
    """How `residuum pull` reaches the sources of weights; frozen, passed down, never global."""

    artifacts: Path = Field(
        Path("artifacts"),
        json_schema_extra=MODELS,
        description="directory in which artifacts are written by name",
    )
    cache: Path | None = Field(
        None,
        json_schema_extra=DOWNLOADS,
        description="directory for downloads; None: the platform's directory for caches",
    )
    offline: bool = Field(
        False, json_schema_extra=DOWNLOADS, description="use only the cache, and contact no server"
    )
    pytorch_url: Annotated[tuple[str, ...], NoDecode] = Field(
        ("https://download.pytorch.org",),
        json_schema_extra=DOWNLOADS,
        description="address of torchvision's weights; repeatable, tried in order, such as a mirror and then "
        "the source (in the environment: separated by commas)",
    )
    hub_url: Annotated[tuple[str, ...], NoDecode] = Field(
        ("https://huggingface.co",),
        json_schema_extra=DOWNLOADS,
        description="address of the Hugging Face hub; repeatable in the same way",
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
        return split_at_commas(value)

    @field_validator("pytorch_url", "hub_url")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        default: tuple[str, ...] = cls.model_fields[str(info.field_name)].default
        return value or default


def load_pull_settings(**flags: object) -> PullSettings:
    """Return the settings of `residuum pull`; see `load_settings_of`."""
    return load_settings_of(PullSettings, flags)

"""Options that several commands share, and the values made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from residuum.cli.errors import CommandError
from residuum.cli.output import capitalized

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from introspection.question import IntrospectQuery
    from service.runtime.model import LoadedModel
    from service.settings import Settings


ENGINE_SETTINGS = ("artifacts", "engine", "device", "precision", "threads", "engine_cache")


def add_setting_flags(
    parser: argparse.ArgumentParser, names: Sequence[str], kind: type[BaseModel] | None = None
) -> None:
    """Add a flag for each of the settings `names` of `kind`, or of the server's settings.

    Group, description, choices and default come from the field; see `service.settings`.
    """
    from engines.settings import ENV_PREFIX, flag_of
    from service.settings import Settings

    groups: dict[str, Any] = {}
    for name in names:
        field = (kind or Settings).model_fields[name]
        title = (
            str(field.json_schema_extra["group"]) if isinstance(field.json_schema_extra, dict) else "settings"
        )
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = field.default
        if isinstance(default, tuple):
            default = ", ".join(default) or "none"
        elif isinstance(default, bool):
            default = "on" if default else "off"
        help_text = f"{field.description} (default: {default})".replace("%", "%%")
        groups[title].add_argument(flag_of(name), dest=name, help=help_text, **_value_of(name, field))
    headings = [capitalized(title) for title in groups]
    listed = " and ".join(part for part in (", ".join(headings[:-1]), headings[-1]) if part)
    parser.description = (
        f"{parser.description} Environment variables such as {ENV_PREFIX}{names[0].upper()} can give what is "
        f"under {listed}, too; the command line wins."
    )


def _value_of(name: str, field: FieldInfo) -> dict[str, Any]:
    """Return the options of `add_argument` for what a setting holds."""
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    options: dict[str, Any] = {"action": "append" if isinstance(field.default, tuple) else "store"}
    if choices := _choices(field):
        return options | {"choices": choices}
    if Path in (field.annotation, *get_args(field.annotation)):
        options["type"] = Path
    return options | {"metavar": name.rsplit("_", 1)[-1].upper()}


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a `Literal`, which may be optional; nothing for any other type."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the flags that were given; the environment and the defaults supply the others."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="a name under --artifacts, or a path to an artifact (default: embedded)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="how many predictions (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, in the form that the server answers")
    add_setting_flags(parser, ENGINE_SETTINGS)


def query_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each parameter of `POST /introspect`; the texts come from introspection.question."""
    from introspection.question import IntrospectQuery

    group = parser.add_argument_group("what is asked", "the parameters of POST /introspect")
    # `image_options` has --top-k, which `residuum classify` takes too.
    for name in (field for field in IntrospectQuery.model_fields if field != "top_k"):
        field = IntrospectQuery.model_fields[name]
        if field.annotation is bool:
            group.add_argument(f"--{name}", action="store_true", default=None, help=field.description)
        else:
            default = f" (default: {field.default})" if field.default else ""
            value = {"choices": found} if (found := _choices(field)) else {"metavar": name.upper()}
            group.add_argument(f"--{name}", help=f"{field.description}{default}", **value)


def introspect_query(args: argparse.Namespace) -> IntrospectQuery:
    from pydantic import ValidationError

    from introspection.question import IntrospectQuery

    try:
        return IntrospectQuery(**given(args, tuple(IntrospectQuery.model_fields)))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise CommandError(f"--{name} {first['input']}: {first['msg']}") from error


def check_suffix(out: Path | None, *suffixes: str) -> None:
    if out and out.suffix.lower() not in suffixes:
        raise CommandError(f"-o {out}: the suffix must be {', '.join(suffixes[:-1])} or {suffixes[-1]}")


def artifact_of(args: argparse.Namespace) -> tuple[Path, Settings]:
    """Return the directory of the model asked for, and settings that run one image at a time."""
    from artifact.store import find_artifact
    from service.settings import load_settings

    settings = load_settings(**given(args, ENGINE_SETTINGS), max_batch_size=1)
    return find_artifact(args.model or settings.model[0], settings.artifacts), settings


def open_model(args: argparse.Namespace) -> LoadedModel:
    """Return the model asked for, loaded and verified."""
    from service.runtime.loading import load_model

    return load_model(*artifact_of(args))


def check_top_k(args: argparse.Namespace, model: LoadedModel) -> None:
    from artifact.postprocess import TopKError, allowed_top_k

    try:
        allowed_top_k(args.top_k, model.manifest)
    except TopKError as error:
        raise CommandError(f"--top-k {args.top_k}: {error}") from error


def count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is expected")
    return number


def field_values(items: Sequence[str]) -> dict[str, str]:
    """Return the fields and values of `--set FIELD=VALUE`."""
    if malformed := [item for item in items if "=" not in item]:
        raise CommandError(f"--set {malformed[0]}: expected FIELD=VALUE, such as epochs=30")
    return dict(item.split("=", 1) for item in items)

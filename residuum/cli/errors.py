"""What a command tells the user: errors that are theirs to mend, and packages that are missing."""

from __future__ import annotations

OUR_PACKAGES = (
    "artifact",
    "benchmarks",
    "engines",
    "export",
    "introspection",
    "models",
    "residuum",
    "service",
    "studies",
)


class CommandError(Exception):
    """What was asked cannot be done; the message says why."""


def is_ours(error: Exception) -> bool:
    """Return whether one of our packages defines the error: it is for the user; any other error is a bug."""
    return type(error).__module__.split(".")[0] in OUR_PACKAGES


def need(extra: str, *packages: str) -> None:
    """Raise where packages of an extra are not installed, saying how to get them."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise CommandError(f"{', '.join(missing)} not installed: in a checkout, pip install -e '.[{extra}]'")

"""What a command tells the user: errors that are theirs to mend, and packages that are missing."""

from __future__ import annotations

from artifact.errors import ResiduumError


class CommandError(ResiduumError):
    """What was asked cannot be done; the message says why."""


def need(extra: str, *packages: str) -> None:
    """Raise where packages of an extra are not installed, saying how to get them."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise CommandError(f"{', '.join(missing)} not installed: in a checkout, pip install -e '.[{extra}]'")

"""The errors of commands: those that the user can correct, and missing packages."""

from __future__ import annotations

from artifact.errors import ResiduumError


class CommandError(ResiduumError):
    """A command cannot do what was asked; the message says why."""


def in_words(error: ResiduumError) -> str:
    """Return an error as one line: what is wrong, what would be right, and the code that HTTP has for it."""
    from service.http.problems import code_of  # the one table of codes

    cause = error.__cause__
    code = code_of(error) or (code_of(cause) if isinstance(cause, ResiduumError) else "")
    said = str(error)
    hint = "" if error.hint in said else error.hint
    return " ".join(f"{said} {hint} {f'[{code}]' if code else ''}".split())


def need(extra: str, *packages: str) -> None:
    """Raise where packages of an extra are not installed, saying how to get them."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise CommandError(f"{', '.join(missing)} not installed: in a checkout, pip install -e '.[{extra}]'")

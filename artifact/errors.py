"""The base of the error tree: what a user of Residuum can mend.

Every package derives its errors from `ResiduumError`, so that the command line and the server tell a user's
mistake from a bug: the first is one line with a hint, the second a traceback or a 500. What status and code
an error has over HTTP is in `service/http/problems.py`.
"""

from __future__ import annotations

from typing import Any


class ResiduumError(Exception):
    """Something that the user can mend.

    Args:
        detail: what is wrong, in a sentence.
        hint: what would be right; "" where `detail` says it.
        members: further facts for programs, by name.
    """

    def __init__(self, detail: str = "", hint: str = "", **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.members = members


class ParameterError(ResiduumError):
    """A parameter does not exist, or has a value that it cannot have."""

    def __init__(self, parameter: str, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint, parameter=parameter)
        self.parameter = parameter

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}".strip()


class Unavailable(ResiduumError):
    """Something cannot be done now; the same attempt may succeed after `retry_after_s` seconds."""

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class NotFiniteError(ResiduumError):
    """A graph's outputs hold NaN or infinity: its activations left the range of their numbers."""

"""The parser: argparse, with help in colours on a terminal and a suggestion for a mistyped word.

Only help and errors import rich, which takes longer to import than everything else here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistyped word with the nearest one that it knows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._positionals.title = "arguments"

    def format_help(self) -> str:
        self._use_rich()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message to standard error, and exit with 2."""
        from rich.console import Console

        self._use_rich(Console(stderr=True))
        super().error(message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit with the error that these arguments are unknown."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        mistyped = next((argument for argument in unknown if argument.startswith("-")), "")
        self.error(f"unknown arguments: {' '.join(unknown)}{suggestion(mistyped.partition('=')[0], flags)}")

    def complete_files(self) -> None:
        """Let shell completion offer files where an argument is a path (`complete` is read by shtab)."""
        for action in self._actions:
            if action.type is Path:
                action.complete = "file"  # type: ignore[attr-defined]

    def _use_rich(self, console: Console | None = None) -> None:
        from residuum.cli.help import HelpFormatter

        self.formatter_class = partial(HelpFormatter, console=console)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"unknown command {value!r}{suggestion(value, choices)}")
        problem = f"{value!r} is not one of {', '.join(choices)}{suggestion(str(value), choices)}"
        raise argparse.ArgumentError(action, problem)


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean X?` for the known word that is nearest, and nothing where none is near."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

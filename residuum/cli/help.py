"""The look of help and usage: rich-argparse, with short usage lines and examples that keep their lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text
from rich_argparse import RichHelpFormatter

from residuum.cli.output import capitalized


class HelpFormatter(RichHelpFormatter):
    """Help in colours on a terminal and as plain text elsewhere.

    A usage line names the positional arguments only: `residuum serve` has 40 options, which the help lists.
    """

    group_name_formatter = capitalized
    help_markup = text_markup = False  # brackets in a help text are brackets

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=26, **options)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        if usage is None:
            self._prog = f"{self._prog} [OPTIONS]"
            actions, groups = [action for action in actions if not action.option_strings], []
        super().add_usage(usage, actions, groups, prefix)

    def add_text(self, text: Any) -> None:
        """Add a paragraph; a text of several lines is a heading and examples, which keep their lines."""
        if isinstance(text, str) and "\n" in text:
            heading, _, examples = text.partition("\n")
            shown = Text(examples)
            shown.highlight_regex("#.*", "dim")
            text = Text.assemble((f"{capitalized(heading)}\n", "argparse.groups"), shown)
        super().add_text(text)

    def _rich_format_action(self, action: argparse.Action) -> Iterator[tuple[Text, Text | None]]:
        """List commands without a line for their placeholder, COMMAND."""
        if not isinstance(action, argparse._SubParsersAction):
            yield from super()._rich_format_action(action)
            return
        for command in action._get_subactions():
            yield from super()._rich_format_action(command)
